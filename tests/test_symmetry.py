"""Point groups against EMAN2's operators, the group axioms and brute force in SciPy."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sptjax import rotation, symmetry
from sptjax._errors import InputError

NAMES = ["c1", "c2", "c4", "c7", "d2", "d3", "d7", "tet", "oct", "icos", "icos2"]
ORDERS = [1, 2, 4, 7, 4, 6, 14, 12, 24, 60, 60]

reduce = jax.jit(symmetry.reduce)
inside = jax.jit(symmetry.in_asymmetric_unit)


def random_rotations(rng, n):
    return jnp.asarray(Rotation.random(n, rng=rng).as_matrix(), jnp.float32)


def orbits(r, operators):
    """Every S R, in float64."""
    return np.einsum("gij,njk->ngik", np.asarray(operators, float), np.asarray(r, float))


def angles(r):
    """Rotation angles in degrees of matrices with any leading axes, by SciPy."""
    return np.degrees(Rotation.from_matrix(r.reshape(-1, 3, 3)).magnitude()).reshape(r.shape[:-2])


@pytest.mark.parametrize("name", NAMES)
def test_operators_are_eman2s(golden, name):
    expected = json.loads((golden / "symmetries.json").read_text())[name]
    theirs = np.array(expected["ops"]).reshape(-1, 3, 4)[:, :, :3]
    ours = np.asarray(symmetry.parse(name).operators)
    assert len(ours) == expected["nsym"]
    distance = np.abs(ours[:, None] - theirs[None]).max((2, 3))
    assert distance.min(0).max() < 1e-5
    assert distance.min(1).max() < 1e-5
    if name[0] in "cd":
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(("name", "order"), list(zip(NAMES, ORDERS)))
def test_operators_form_a_group(name, order):
    group = symmetry.parse(name)
    operators = np.asarray(group.operators, float)
    assert len(group) == order
    np.testing.assert_array_equal(operators[0], np.eye(3))
    products = np.einsum("aij,bjk->abik", operators, operators)
    distance = np.abs(products[:, :, None] - operators).max((3, 4))
    assert distance.min(2).max() < 1e-6  # closed
    assert (np.sort(distance.argmin(2), axis=1) == np.arange(order)).all()  # rows permute it
    np.testing.assert_allclose(np.linalg.det(operators), 1, atol=1e-6)
    identity = np.abs(operators @ operators.transpose(0, 2, 1) - np.eye(3)).max()
    assert identity < 3e-7  # exact golden ratio, also for icos2


def test_icos2_is_icos_turned_as_eman2_turns_it():
    """EMAN2's helper rotation from the 5-fold to the 2-fold setting: az 90, alt 31.717474."""
    turn = rotation.from_euler(jnp.asarray([90, 31.717474, 0]), rotation.Convention.EMAN)
    turn = np.asarray(turn, float)
    moved = turn @ np.asarray(symmetry.parse("icos").operators, float) @ turn.T
    icos2 = np.asarray(symmetry.parse("icos2").operators, float)
    assert np.abs(moved[:, None] - icos2).max((2, 3)).min(1).max() < 1e-6


def test_names():
    assert symmetry.parse(" ICOS5 ").name == "icos"
    assert symmetry.parse("D7").name == "d7"
    assert symmetry.parse("c12").operators.dtype == jnp.float32
    np.testing.assert_allclose(symmetry.parse("d1").operators[1], np.diag([1, -1, -1]))


@pytest.mark.parametrize("name", ["", "c", "c0", "d-1", "c2.5", "h", "helical", "i", "c 4"])
def test_other_names_are_refused_with_the_list(name):
    with pytest.raises(InputError, match="accepted are c<n>, d<n>"):
        symmetry.parse(name)


@pytest.mark.parametrize("name", ["c1", "c7", "d7", "oct", "icos"])
def test_reduce_finds_the_smallest_angle_and_is_constant_on_orbits(rng, name):
    group = symmetry.parse(name)
    r = random_rotations(rng, 50)
    got = reduce(r, group)
    all_angles = angles(orbits(r, group.operators))
    np.testing.assert_allclose(angles(np.asarray(got, float)), all_angles.min(1), atol=1e-4)
    np.testing.assert_array_equal(reduce(got, group), got)
    in_orbit = np.abs(orbits(r, group.operators) - np.asarray(got)[:, None]).max((2, 3)).min(1)
    assert in_orbit.max() < 1e-6
    for k in rng.integers(len(group), size=3):
        other = rotation.multiply(group.operators[k], r)
        np.testing.assert_allclose(reduce(other, group), got, atol=2e-6)


@pytest.mark.parametrize("name", ["c1", "c4", "d7", "tet", "icos2"])
def test_asymmetric_unit_is_one_fundamental_domain(rng, name):
    group = symmetry.parse(name)
    r = random_rotations(rng, 300)
    members = np.asarray(inside(symmetry.orbit(r, group), group))
    assert (members.sum(1) >= 1).all()
    assert (members.sum(1) == 1).mean() > 0.98  # exactly one equivalent inside, off the border
    assert bool(jnp.all(inside(reduce(r, group), group)))
    fraction, expected = inside(random_rotations(rng, 300), group).mean(), 1 / len(group)
    assert abs(fraction - expected) < 4 * np.sqrt(expected * (1 - expected) / 300) + 1e-9


@pytest.mark.parametrize("name", ["c1", "c7", "d3", "oct"])
def test_angle_modulo_symmetry(rng, name):
    group = symmetry.parse(name)
    a, b = random_rotations(rng, 40), random_rotations(rng, 40)
    modulo = jax.jit(symmetry.angle_deg_modulo)
    differences = np.asarray(b, float).transpose(0, 2, 1)[:, None] @ orbits(a, group.operators)
    np.testing.assert_allclose(modulo(a, b, group), angles(differences).min(1), atol=1e-4)
    same = rotation.multiply(group.operators[-1], a)
    np.testing.assert_allclose(modulo(same, a, group), 0, atol=2e-4)


def test_left_multiplication_is_what_leaves_a_symmetric_reference_unchanged(rng):
    """Points of a d7 reference seen in a particle fit it again under every S R, not R S."""
    group = symmetry.parse("d7")
    reference = np.asarray(group.operators, float) @ np.array([5.0, 2.0, 3.0])
    r = random_rotations(rng, 1)
    particle = reference @ np.asarray(r[0], float)  # R' x_ref

    def misfit(equivalent):
        mapped = particle @ np.asarray(equivalent, float).T
        return np.linalg.norm(mapped[:, None] - reference, axis=2).min(1).max()

    assert max(misfit(e) for e in symmetry.orbit(r, group)[0]) < 1e-5
    assert misfit(np.asarray(r[0]) @ np.asarray(group.operators[3])) > 0.5


def test_unbatched_code_maps_over_a_batch(rng):
    group = symmetry.parse("tet")
    r = random_rotations(rng, 5)
    mapped = jax.vmap(symmetry.reduce, in_axes=(0, None))(r, group)
    np.testing.assert_allclose(mapped, symmetry.reduce(r, group), atol=1e-6)
    assert symmetry.orbit(r[0], group).shape == (12, 3, 3)
