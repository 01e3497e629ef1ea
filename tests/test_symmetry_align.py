"""Symmetry copies of poses, and volumes put on their symmetry axes: planted poses, NumPy scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sptjax import fourier, orientations, rotation, symmetry
from sptjax._errors import InputError
from sptjax._types import Pose
from sptjax.align import align_to_symmetry, best_symmetry_copy, stack_tables
from sptjax.score import observe

BOX = 24
AXIS = np.arange(BOX) - BOX // 2


def density(points, height, sigma=1.4):
    g = [np.exp(-((AXIS - points[:, i : i + 1]) ** 2) / (2 * sigma**2)) for i in range(3)]
    return np.einsum("b,bz,by,bx->zyx", height, g[2], g[1], g[0], optimize=True)


def wedge(limit):
    z, _, x = np.meshgrid(AXIS, AXIS, AXIS, indexing="ij")
    return (np.abs(z) <= limit * np.abs(x) + 1e-6).astype(np.float32)


class Symmetric:
    """Gaussians repeated by the operators of a symmetry, drawn at any pose."""

    def __init__(self, name, rng):
        self.group = symmetry.parse(name)
        self.operators = np.asarray(self.group.operators, float)
        unit = rng.normal(size=(7, 3)) * np.array([1, 1, 0.8])
        unit *= (rng.uniform(3, 7.5, 7) / np.linalg.norm(unit, axis=1))[:, None]
        self.points = np.concatenate([unit @ s.T for s in self.operators])
        self.height = np.tile(rng.uniform(0.5, 1.5, 7), len(self.operators))

    def moved(self, turn, shift=(0, 0, 0)):
        """The volume whose pose to the symmetric frame is the inverse of (turn, shift)."""
        return jnp.asarray(density(self.points @ turn.T + shift, self.height), jnp.float32)

    def symmetrised_ccc(self, volume_points):
        """Correlation of a drawn volume with its mean over the operators."""
        given = density(volume_points, self.height)
        mean = np.mean([density(volume_points @ s.T, self.height) for s in self.operators], 0)
        a, b = given - given.mean(), mean - mean.mean()
        return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def axis_error_deg(pose, turn):
    """Angle between z and the moved 4-fold axis."""
    return np.degrees(np.arccos(np.clip((np.asarray(pose.rotation, float) @ turn)[2, 2], -1, 1)))


def modulo_deg(pose, turn, name):
    whole = jnp.asarray(np.asarray(pose.rotation, float) @ turn, jnp.float32)
    return float(symmetry.angle_deg_modulo(whole, jnp.eye(3), symmetry.parse(name)))


TILT = Rotation.from_rotvec([12 * 0.6, 12 * 0.8, 0], degrees=True).as_matrix()
GRIDS = {name: orientations.uniform(8.0, symmetry.parse(name)) for name in ("c4", "d7")}


def aligned(thing, turn, shift=(0, 0, 0), seed=0, **options):
    grid = GRIDS[thing.group.name]
    volume = options.pop("volume", None)
    volume = thing.moved(turn, shift) if volume is None else volume
    key = jax.random.key(seed)
    if thing.group.name == "d7":  # one compilation for all
        options.setdefault("sampling", jnp.ones_like(volume))
    return align_to_symmetry(volume, thing.group, key=key, starts=6, grid=grid, **options)


@pytest.mark.parametrize("seed", [0, 1])
def test_tilted_c4_is_put_on_its_axis(rng, seed):
    thing = Symmetric("c4", rng)
    shift = np.array([1.3, -0.8, 0.6])
    pose, score = aligned(thing, TILT, shift, seed)
    assert axis_error_deg(pose, TILT) < 0.5
    # the moved centre lies on the axis; nothing is shifted along it, nothing turned about it
    centre = np.asarray(rotation.apply(pose, jnp.asarray(shift, jnp.float32)))
    assert np.linalg.norm(centre[:2]) < 0.1
    assert abs(float(pose.shift[2])) < 1e-5
    assert abs(float(pose.rotation[1, 0] - pose.rotation[0, 1])) < 1e-4
    assert score > 0.995


def test_tilted_d7_is_put_on_its_axes(rng):
    thing = Symmetric("d7", rng)
    shift = np.array([0.9, -0.8, -1.2])
    pose, score = aligned(thing, TILT, shift)
    assert modulo_deg(pose, TILT, "d14") < 0.5  # d14: turns that map the axes of d7 on each other
    np.testing.assert_allclose(
        rotation.apply(pose, jnp.asarray(shift, jnp.float32)), np.zeros(3), atol=0.1
    )
    assert score > 0.995


def test_any_orientation_is_found_in_noise_and_wedge(rng):
    thing = Symmetric("d7", rng)
    grid = wedge(1.7)
    turn = Rotation.random(rng=rng).as_matrix()
    clean = np.asarray(thing.moved(turn))
    noisy = clean + rng.normal(size=clean.shape) * clean.std()
    cut = np.fft.fftn(np.fft.ifftshift(noisy)) * np.fft.ifftshift(grid)
    volume = jnp.asarray(np.fft.fftshift(np.fft.ifftn(cut).real), jnp.float32)
    pose, _ = aligned(thing, turn, volume=volume, sampling=jnp.asarray(grid))
    assert modulo_deg(pose, turn, "d14") < 2


@pytest.mark.parametrize("name", ["c4", "d7"])
def test_random_orientations_are_found(rng, name):
    thing = Symmetric(name, rng)
    for turn in Rotation.random(3, rng=rng).as_matrix():
        pose, score = aligned(thing, turn)
        error = modulo_deg(pose, turn, "d14")
        if name == "c4":
            error = axis_error_deg(pose, turn)
            error = min(error, 180 - error)  # the ends of the axis are alike
        assert error < 2
        assert score > 0.99


def test_score_is_the_correlation_with_the_symmetrised_volume(rng):
    """Of points that are not symmetric, drawn at the pose that was found."""
    thing = Symmetric("c4", rng)
    broken = thing.points + rng.normal(size=thing.points.shape) * 0.8
    volume = jnp.asarray(density(broken @ TILT.T, thing.height), jnp.float32)
    pose, score = aligned(thing, TILT, volume=volume)
    placed = broken @ (np.asarray(pose.rotation, float) @ TILT).T + np.asarray(pose.shift)
    assert float(score) == pytest.approx(thing.symmetrised_ccc(placed), abs=0.01)
    nearby = Rotation.from_rotvec([12, 0, 0], degrees=True).as_matrix()
    assert thing.symmetrised_ccc(placed @ nearby.T) < float(score) - 0.01


def test_what_cannot_be_aligned_is_refused():
    volume, key = jnp.zeros((BOX,) * 3), jax.random.key(0)
    for name in ("c1", "h3:1:0:2"):
        with pytest.raises(InputError, match="no rotation"):
            align_to_symmetry(volume, symmetry.parse(name), key=key)
    with pytest.raises(InputError, match="kmax"):
        align_to_symmetry(volume, symmetry.parse("c2"), key=key, kmax=10)
    with pytest.raises(InputError, match="starts"):
        align_to_symmetry(volume, symmetry.parse("c2"), key=key, starts=0)


@pytest.mark.parametrize("name", ["d3", "h5:1:50:2.2"])
def test_best_symmetry_copy_undoes_a_planted_operator(rng, name):
    """Asymmetric particles whose start pose is one operator away from the truth."""
    group = symmetry.parse(name)
    points = rng.normal(size=(2, 9, 3)) * np.array([4, 4, 2.5])
    height = rng.uniform(0.5, 1.5, 9)
    maps = jnp.asarray(np.stack([density(p, height) for p in points]), jnp.float32)
    count = 4
    truth = Rotation.random(count, rng=rng)
    shifts = rng.normal(size=(count, 3))
    chosen = rng.permutation(len(group))[:count]
    particles, starts = [], []
    for i in range(count):
        inner = truth[i].inv().apply(points[i % 2] - shifts[i])
        particles.append(density(inner, height) + 0.05 * rng.normal(size=(BOX,) * 3))
        operator = np.asarray(group.operators[chosen[i]], float)
        rise = np.asarray(group.shifts[chosen[i]], float)
        starts.append((operator.T @ truth[i].as_matrix(), operator.T @ (shifts[i] - rise)))
    start = Pose(*(jnp.asarray(np.stack(x), jnp.float32)[:, None] for x in zip(*starts)))
    start = Pose(jnp.repeat(start.rotation, 2, 1), jnp.repeat(start.shift, 2, 1))
    vectors = jnp.asarray(fourier.half_ball(7))
    data = fourier.ball_coefficients(jnp.asarray(np.stack(particles), jnp.float32), vectors)
    seen = observe(data, jnp.ones((1, len(vectors))), jnp.ones(len(vectors)))
    wave = vectors.astype(jnp.float32)
    found = best_symmetry_copy(stack_tables(maps, 7), seen, wave, start, group, box=BOX, keep=3)
    assert found.score.shape == (count, 2, 3)
    assert bool((found.score[..., :-1] >= found.score[..., 1:]).all())
    each, own = np.arange(count), np.arange(count) % 2
    np.testing.assert_allclose(found.rotation[each, own, 0], truth.as_matrix(), atol=1e-5)
    np.testing.assert_allclose(found.shift[each, own, 0], shifts, atol=1e-5)
    assert bool((found.score[each, own, 0] > found.score[each, 1 - own, 0]).all())
