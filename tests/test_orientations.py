"""Orientation sets against EMAN2's lists, exact geometry (convex hull) and brute force."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation

from sptjax import orientations, rotation, symmetry
from sptjax._errors import InputError

COVERED = ["c1", "c4", "d7", "tet", "oct", "icos", "icos2"]


@functools.cache
def uniform(delta, name):
    return orientations.uniform(delta, symmetry.parse(name))


def equivalents(a_set, name):
    """All S R of a set as float64 matrices [g, q, 3, 3]."""
    operators = np.asarray(symmetry.parse(name).operators, float)
    return np.einsum("gij,qjk->gqik", operators, np.asarray(a_set.rotations, float))


def distances(a_set, name, rotations):
    """Brute-force angles in degrees [n, q] of rotations to entries, modulo the symmetry."""
    cosine = np.einsum("gqij,nij->ngq", equivalents(a_set, name), rotations, optimize=True)
    return np.degrees(np.arccos(((cosine.max(1) - 1) / 2).clip(-1, 1)))


# ---------------------------------------------------------------- EMAN2's generator


@pytest.mark.parametrize("delta", [30, 15, 12])
def test_eman2s_lists(golden, delta):
    answers = json.loads((golden / "symmetries.json").read_text())
    n_compared = 0
    for name, answer in answers.items():
        expected = answer.get(f"orient_{delta}_1")
        if expected is None:
            continue
        directions = orientations._eman_directions(delta, symmetry.parse(name))
        assert len(directions) == expected["count"], name
        first = np.array(expected["first"])
        ours = np.column_stack([directions[: len(first)], np.zeros(len(first))])
        ours, theirs = (Rotation.from_euler("ZXZ", a, degrees=True) for a in (ours, first))
        np.testing.assert_allclose(ours.as_matrix(), theirs.as_matrix(), atol=1e-5, err_msg=name)
        n_compared += 1
    assert n_compared == 10


@pytest.mark.parametrize(
    ("delta", "counts"),
    [
        (30, (49, 7, 4, 3, 3)),
        (12, (291, 23, 25, 13, 5)),
        (10, (419, 33, 34, 19, 9)),
        (7.49992, (743, 60, 63, 35, 14)),
        (5, (1665, 124, 138, 73, 29)),
    ],
)
def test_eman2s_counts(delta, counts):
    names = ("c1", "d7", "tet", "oct", "icos")
    got = [len(orientations._eman_directions(delta, symmetry.parse(n))) for n in names]
    assert tuple(got) == counts


def test_eman_set_holds_the_transposes_phi_fastest():
    a_set = orientations.eman(12, 12)
    assert len(a_set) == 291 * 30
    g = np.asarray(a_set.rotations).transpose(0, 2, 1)
    # EMAN2's formula for az = 57.71681, alt = 12 (third direction) and phi = 0, 12
    for k, phi in ((2 * 30, 0), (2 * 30 + 1, 12)):
        expected = Rotation.from_euler("ZXZ", [57.71681, 12, phi], degrees=True).as_matrix().T
        np.testing.assert_allclose(g[k], expected, atol=1e-6)
    assert len(orientations.eman(90, 7)) == len(orientations.eman(90, 180)) // 2 * 52


# ---------------------------------------------------------------- covering


@pytest.mark.parametrize("delta", [30, 20])
def test_covering_radius_is_the_exact_one(delta):
    """The farthest rotation is the centre of a facet of the hull of the quaternions."""
    a_set = uniform(delta, "c1")
    q = Rotation.from_matrix(np.asarray(a_set.rotations, float)).as_quat()
    nearest_facet = -ConvexHull(np.concatenate([q, -q])).equations[:, 4].max()
    exact = np.degrees(2 * np.arccos(nearest_facet))
    assert 0.99 * exact < a_set.covering_deg < exact + 1e-3
    assert exact < delta


@pytest.mark.parametrize("name", COVERED)
@pytest.mark.parametrize("kind", ["uniform", "eman"])
def test_equivalents_of_a_set_cover_all_rotations(rng, kind, name):
    group = symmetry.parse(name)
    a_set = uniform(25, name) if kind == "uniform" else orientations.eman(30, 30, group)
    samples = Rotation.random(1000, rng=rng).as_matrix()
    farthest = distances(a_set, name, samples).min(1).max()
    assert farthest <= 1.01 * a_set.covering_deg
    assert farthest > 0.6 * a_set.covering_deg
    assert a_set.covering_deg < 1.5 * (25 if kind == "uniform" else 30)


@pytest.mark.parametrize("name", COVERED)
def test_uniform_set_fills_one_asymmetric_unit(name):
    group = symmetry.parse(name)
    a_set = uniform(12, name)
    whole = round(8 * np.pi**2 / np.radians(12) ** 3)
    assert len(uniform(12, "c1")) == whole
    assert abs(len(a_set) * len(group) / whole - 1) < 0.03
    assert bool(symmetry.in_asymmetric_unit(a_set.rotations, group).all())
    assert a_set.spacing_deg == 12
    assert a_set.covering_deg < 1.2 * 12


def test_uniform_set_is_even():
    """The nearest entry of a random rotation: spread of its distance, against chance."""
    near = np.asarray(uniform(12, "c1").neighbours)[:, 0]
    r = np.asarray(uniform(12, "c1").rotations, float)
    gap = np.degrees(Rotation.from_matrix(r.transpose(0, 2, 1) @ r[near]).magnitude())
    assert gap.min() > 0.55 * 12
    assert gap.max() < 1.1 * 12


# ---------------------------------------------------------------- neighbours


@pytest.mark.parametrize(("delta", "name"), [(30, "c1"), (25, "c4"), (15, "d7"), (12, "icos2")])
def test_neighbours_are_the_nearest_modulo_the_symmetry(delta, name):
    a_set = uniform(delta, name)
    table = np.asarray(a_set.neighbours)
    assert table.dtype == np.int32
    assert table.shape == (len(a_set), 14)
    away = distances(a_set, name, np.asarray(a_set.rotations, float))
    np.fill_diagonal(away, np.inf)
    listed = np.take_along_axis(away, table, axis=1)
    assert np.isfinite(listed).all()  # never the entry itself
    assert (np.diff(np.sort(table, axis=1), axis=1) > 0).all()  # no repeats
    np.testing.assert_allclose(listed, np.sort(away, axis=1)[:, :14], atol=2e-3)


def test_small_sets_fill_their_table_with_the_entry_itself():
    a_set = uniform(30, "icos")
    q = len(a_set)
    assert 1 < q < 14
    table = np.asarray(a_set.neighbours)
    for i, row in enumerate(table):
        assert sorted(row[: q - 1]) == [j for j in range(q) if j != i]
        assert (row[q - 1 :] == i).all()
    assert len(uniform(180, "icos")) == 1  # never empty


# ---------------------------------------------------------------- local


def test_local_set_is_a_lattice_around_the_identity(rng):
    a_set = orientations.local(30, 6)
    r = np.asarray(a_set.rotations, float)
    np.testing.assert_allclose(r[0], np.eye(3), atol=1e-7)
    vectors = Rotation.from_matrix(r).as_rotvec(degrees=True)
    length = np.linalg.norm(vectors, axis=1)
    assert (np.diff(length) > -1e-4).all()
    assert length.max() <= 30 + 1e-4
    assert abs(len(a_set) / (4 / 3 * np.pi * (30 / 6) ** 3) - 1) < 0.1
    cell = 2 ** (1 / 3) * 6  # first shells of a body-centred cubic lattice
    shells = np.linalg.norm(vectors[np.asarray(a_set.neighbours)[0]], axis=1)
    np.testing.assert_allclose(shells, [cell * 0.75**0.5] * 8 + [cell] * 6, atol=1e-3)

    axis = rng.normal(size=(500, 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    angle = rng.uniform(size=(500, 1)) ** (1 / 3)
    inner = Rotation.from_rotvec(axis * angle * (30 - 0.71 * 6), degrees=True).as_matrix()
    assert distances(a_set, "c1", inner).min(1).max() < 0.7045 * 6
    ball = Rotation.from_rotvec(axis * angle * 30, degrees=True).as_matrix()
    assert distances(a_set, "c1", ball).min(1).max() < 1.01 * a_set.covering_deg


def test_local_set_of_one():
    a_set = orientations.local(2, 20)
    assert len(a_set) == 1
    assert a_set.covering_deg == pytest.approx(2, abs=0.02)
    assert (np.asarray(a_set.neighbours) == 0).all()


# ---------------------------------------------------------------- use and misuse


def test_a_set_is_an_argument_of_jitted_code():
    a_set = uniform(30, "c1")
    trace = jax.jit(lambda s: s.rotations.trace(axis1=1, axis2=2) + s.spacing_deg)(a_set)
    np.testing.assert_allclose(trace, np.trace(a_set.rotations, axis1=1, axis2=2) + 30, rtol=1e-5)


def test_bad_steps_are_refused():
    for delta in (0, -5, 181, float("nan")):
        with pytest.raises(InputError, match="delta must be above 0"):
            orientations.uniform(delta)
    with pytest.raises(InputError, match="dphi must be"):
        orientations.eman(10, 0)
    with pytest.raises(InputError, match="range must be"):
        orientations.local(0, 1)
    for too_many in (
        lambda: orientations.uniform(1),
        lambda: orientations.eman(1, 1),
        lambda: orientations.local(180, 1),
    ):
        with pytest.raises(InputError, match="limit is 4000000"):
            too_many()


def test_euler_grid_is_emans_loop():
    """Every (alt, az, phi) in order, as EMAN's matrix, particle to reference."""
    found = orientations.euler_grid((0, 90, 45), (20, 60, 20), (-30, 30, 30))
    loop = [(az, alt, phi) for alt in (20, 40, 60) for az in (0, 45) for phi in (-30, 0)]
    want = rotation.from_euler(jnp.asarray(loop, jnp.float32), rotation.Convention.EMAN)
    np.testing.assert_allclose(found.rotations, want, atol=1e-5)
    assert found.spacing_deg == 45
    with pytest.raises(InputError, match="az from"):
        orientations.euler_grid((9, 9, 10), (0, 180, 10), (0, 360, 10))
    with pytest.raises(InputError, match="4000000"):
        orientations.euler_grid((0, 360, 1), (0, 180, 1), (0, 360, 1))


def test_phi_range_of_emans_rings():
    whole, part = orientations.eman(45, 30), orientations.eman(45, 30, phi_deg=(60, 180))
    rows = np.asarray(whole.rotations).reshape(-1, 12, 3, 3)[:, 2:6].reshape(-1, 3, 3)
    np.testing.assert_allclose(part.rotations, rows, atol=1e-6)


@pytest.mark.parametrize("name", ["c1", "d3"])
def test_spacing_from_the_number_of_directions(name):
    group = symmetry.parse(name)
    for delta in (11.0, 30.0):
        count = len(orientations.eman(delta, 180, group)) // 2
        spacing = orientations.eman_spacing_deg(count, group)
        assert len(orientations.eman(spacing, 180, group)) // 2 == count
    with pytest.raises(InputError, match="n=0"):
        orientations.eman_spacing_deg(0, group)
