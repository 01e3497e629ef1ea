"""Self-symmetry of phantoms with planted axes, and what the symmetry leaves open."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from alignment_setting import APIX, BOX, Volumes
from generate_setting import sampling
from scipy.spatial.transform import Rotation
from test_symmetry_align import Symmetric, density

from sptjax import generate, masks, symmetry
from sptjax._errors import InputError
from sptjax.generate import SymmetrySettings
from sptjax.generate._self_symmetry import _cosets
from sptjax.selection import Selection

COUNT = 4


def particles_of(thing, rng, noise=0.4):
    """Particles at random poses, with noise, times the wedge."""
    turns = Rotation.random(COUNT, rng=rng).as_matrix()
    shifts = rng.uniform(-1, 1, (COUNT, 3))
    region = np.fft.ifftshift(sampling().shared)
    out = []
    for turn, shift in zip(turns, shifts):
        clean = np.asarray(thing.moved(turn, shift))
        noisy = clean + noise * clean.std() * rng.normal(size=clean.shape)
        out.append(np.fft.ifftn(np.fft.fftn(noisy) * region).real)
    return turns, shifts, np.asarray(out, np.float32)


@pytest.fixture(
    scope="module",
    params=[pytest.param("c4", marks=pytest.mark.long), pytest.param("d7", marks=pytest.mark.slow)],
)
def solved(request):
    rng = np.random.default_rng(3)
    thing = Symmetric(request.param, rng)
    turns, shifts, volumes = particles_of(thing, rng)
    material = generate.prepare(Volumes(volumes), sampling(), APIX)
    settings = SymmetrySettings(thing.group, steps=4, search_vox=2.0)
    found = generate.put_on_axes(material, np.arange(COUNT), settings)
    together = generate.bring_together(material, found, settings)
    return thing, turns, shifts, found, together


def relative(poses, turns):
    """Symmetric frame of the phantom to that of the result, one rotation per particle."""
    return np.asarray(poses.rotation) @ turns


def test_axes_are_found(solved):
    thing, turns, shifts, found, _ = solved
    frame = relative(found, turns)
    if thing.group.name == "c4":
        error = np.degrees(np.arccos(np.clip(np.abs(frame[:, 2, 2]), 0, 1)))
    else:
        error = np.asarray(
            symmetry.angle_deg_modulo(
                jnp.asarray(frame, jnp.float32), jnp.eye(3)[None], symmetry.parse("d14")
            )
        )
    assert error.max() < 3
    centre = np.einsum("nij,nj->ni", found.rotation, shifts) + found.shift
    off = np.linalg.norm(centre[:, :2] if thing.group.name == "c4" else centre, axis=1)
    assert off.max() < 0.5


def test_one_frame_for_all(solved):
    """After the second step all frames differ from the phantom's by one and the same move."""
    thing, turns, shifts, found, together = solved
    frames = relative(together.poses, turns).astype(np.float32)
    first = jnp.asarray(frames[:1])
    error = symmetry.angle_deg_modulo(first, jnp.asarray(frames), thing.group)
    assert np.asarray(error).max() < 4
    before = relative(found, turns).astype(np.float32)
    apart = symmetry.angle_deg_modulo(jnp.asarray(before[:1]), jnp.asarray(before), thing.group)
    assert np.asarray(apart).max() > 10  # else there was nothing to settle
    centre = np.einsum("nij,nj->ni", together.poses.rotation, shifts) + together.poses.shift
    assert np.abs(centre - centre[0])[:, 2].max() < 0.6


def test_average_shows_the_phantom(solved):
    thing, turns, _, _, together = solved
    frame = relative(together.poses, turns)[0]
    shift = together.poses.shift[0] - together.poses.rotation[0] @ (
        -solved[2][0]
    )  # where the phantom's centre went
    truth = np.asarray(thing.moved(frame, shift))
    a, b = together.map - together.map.mean(), truth - truth.mean()
    assert (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()) > 0.85


@pytest.mark.slow
def test_a_reference_sets_the_frame():
    """Compared with a map on the axes, particles come to lie in its frame."""
    rng = np.random.default_rng(3)
    thing = Symmetric("c4", rng)
    turns, shifts, volumes = particles_of(thing, rng)
    material = generate.prepare(Volumes(volumes), sampling(), APIX)
    settings = SymmetrySettings(thing.group, steps=4, search_vox=2.0, rounds=3)
    found = generate.put_on_axes(material, np.arange(COUNT), settings)
    lifted = np.asarray(thing.moved(np.eye(3), (0, 0, 1.0)))
    together = generate.bring_together(material, found, settings, reference=lifted)
    frame = jnp.asarray(relative(together.poses, turns), jnp.float32)
    error = symmetry.angle_deg_modulo(frame, jnp.eye(3)[None], thing.group)
    assert np.asarray(error).max() < 4
    centre = np.einsum("nij,nj->ni", together.poses.rotation, shifts) + together.poses.shift
    assert np.abs(centre - [0, 0, 1]).max() < 0.6
    assert len(together.rounds) == 1
    assert together.poses.score.min() > 5


@pytest.mark.slow
def test_the_axis_of_a_helix_is_found():
    rng = np.random.default_rng(0)
    group = symmetry.parse("h6:1:50:2.2")
    turn, rise = (np.asarray(x[1], float) for x in (group.operators, group.shifts))
    unit = rng.normal(size=(5, 3)) * np.array([3.5, 3.5, 1.0])
    powers = [np.linalg.matrix_power(turn if k >= 0 else turn.T, abs(k)) for k in range(-9, 10)]
    points = np.concatenate([unit @ s.T + k * rise for k, s in zip(range(-9, 10), powers)])
    height = np.tile(rng.uniform(0.5, 1.5, 5), 19)
    turns = Rotation.random(3, rng=rng).as_matrix()
    shifts = rng.uniform(-0.7, 0.7, (3, 3))
    ball = np.asarray(masks.sphere(BOX, 9, 2.0))
    volumes = np.stack([density(points @ r.T + t, height) * ball for r, t in zip(turns, shifts)])
    noisy = volumes + 0.2 * volumes.std() * rng.normal(size=volumes.shape)
    material = generate.prepare(Volumes(noisy.astype(np.float32)), sampling(), APIX)
    settings = SymmetrySettings(group, steps=4, search_vox=2.0)
    found = generate.put_on_axes(material, np.arange(3), settings)
    frame = relative(found, turns)
    assert np.degrees(np.arccos(np.abs(frame[:, 2, 2]))).max() < 3
    centre = np.einsum("nij,nj->ni", found.rotation, shifts) + found.shift
    assert np.linalg.norm(centre[:, :2], axis=1).max() < 0.5


@pytest.mark.slow
def test_selection_is_applied():
    rng = np.random.default_rng(5)
    thing = Symmetric("c4", rng)
    _, _, volumes = particles_of(thing, rng)
    volumes[1] = rng.normal(size=(BOX,) * 3) * volumes[0].std()  # noise alone
    material = generate.prepare(Volumes(volumes), sampling(), APIX)
    settings = SymmetrySettings(
        thing.group, steps=4, search_vox=2.0, rounds=4, selection=Selection(keep=0.75)
    )
    found = generate.put_on_axes(material, np.arange(COUNT), settings)
    together = generate.bring_together(material, found, settings)
    assert together.used.tolist() == [True, False, True, True]
    assert len(together.rounds) == 2  # the kept set repeats
    assert generate.symmetry_reference(together).indices.tolist() == [0, 2, 3]


@pytest.mark.parametrize(("name", "count"), [("d2", 6), ("d7", 2), ("tet", 2), ("oct", 1)])
def test_cosets_keep_the_axes_and_are_distinct(name, count):
    group = np.asarray(symmetry.parse(name).operators, float)
    turns = _cosets(symmetry.parse(name))
    assert len(turns) == count
    for turn in turns:
        mates = turn @ group @ turn.T
        distance = np.abs(mates[:, None] - group[None]).max((2, 3)).min(1)
        assert distance.max() < 1e-5
    for i, j in itertools.combinations(range(count), 2):
        between = turns[i].T @ turns[j]
        assert np.abs(group - between).max((1, 2)).min() > 0.1


def test_no_symmetry_is_refused():
    with pytest.raises(InputError, match="other than c1"):
        SymmetrySettings(symmetry.parse("c1"))
