"""Fourier averages against direct sums, planted volumes, EMAN2's mean and group theory."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import fourier_average as oracle
from scipy.spatial.transform import Rotation

from sptjax import average
from sptjax._errors import InputError
from sptjax._types import Pose


def blobs(points, box, sigma=1.1):
    """Sum of Gaussians of different heights at (x, y, z) points relative to the centre."""
    axis = np.arange(box) - box // 2
    height = np.linspace(0.5, 1.5, len(points))
    g = [np.exp(-((axis - points[:, i : i + 1]) ** 2) / (2 * sigma**2)) for i in range(3)]
    return np.einsum("b,bz,by,bx->zyx", height, g[2], g[1], g[0], optimize=True)


def points(rng, box, number=40):
    direction = rng.normal(size=(number, 3))
    direction /= np.linalg.norm(direction, axis=1)[:, None]
    return direction * 0.33 * box * rng.random((number, 1)) ** (1 / 3)


def turns(rng, number):
    """Uniformly random rotation matrices."""
    return Rotation.from_quat(rng.normal(size=(number, 4))).as_matrix()


def wedge(box, half_angle_deg, cut="z"):
    """1 where the frequency is nearer to the xy plane than the angle (tilt axis y), else 0."""
    axis = np.arange(box) - box // 2
    z, _, x = np.meshgrid(axis, axis, axis, indexing="ij")
    along, across = (z, x) if cut == "z" else (x, z)
    limit = np.tan(np.deg2rad(half_angle_deg))
    return (np.abs(along) <= limit * np.abs(across) + 1e-6).astype(np.float32)


def masked_by(volume, grid):
    """Zero the frequencies where a centred Fourier grid is zero."""
    spectrum = np.fft.fftn(np.fft.ifftshift(volume)) * np.fft.ifftshift(grid)
    return np.fft.fftshift(np.fft.ifftn(spectrum).real)


def low_passed(volume, kmax):
    box = len(volume)
    radius = np.linalg.norm(oracle.half_frequencies(box), axis=-1)
    return np.fft.irfftn(np.fft.rfftn(volume) * (radius <= kmax), volume.shape, axes=(0, 1, 2))


def distance(a, b):
    a, b = np.asarray(a, np.complex128), np.asarray(b, np.complex128)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def stack(rng, number, box):
    """Random smooth particles with solvent near the faces, poses, groups, weights, sampling."""
    axis = np.exp(-(((np.arange(box) - box // 2) / (0.22 * box)) ** 2))
    window = axis[:, None, None] * axis[:, None] * axis
    return {
        "particles": rng.normal(size=(number, box, box, box)) * window,
        "rotations": turns(rng, number),
        "shifts": rng.normal(size=(number, 3)) * 1.5,
        "groups": rng.integers(0, 3, number),
        "weights": rng.random(number) + 0.5,
        "sampling": rng.random((number, box, box, box)),
    }


def added(data, sums, pick=slice(None), **options):
    f = lambda key: jnp.asarray(data[key][pick], jnp.float32)  # noqa: E731
    return average.add(
        sums,
        f("particles"),
        Pose(f("rotations"), f("shifts")),
        jnp.asarray(data["groups"][pick], jnp.int32),
        f("weights"),
        f("sampling"),
        **options,
    )


@pytest.mark.parametrize(("box", "order", "error"), [(16, 1, 3e-2), (16, 2, 5e-3), (15, 3, 1e-3)])
def test_sums_are_those_of_the_definition(rng, box, order, error):
    data = stack(rng, 5, box)
    sums = added(data, average.empty(box, 3), order=order)
    numerator, weight = oracle.sums(**data, number=3)
    assert distance(sums.numerator, numerator) < error
    np.testing.assert_allclose(sums.weight, weight, atol=1e-5)
    np.testing.assert_array_equal(sums.count, np.bincount(data["groups"], minlength=3))


def test_sums_do_not_depend_on_batches_and_merge_like_numbers(rng):
    data = stack(rng, 8, 12)
    zero = average.empty(12, 3)
    whole = added(data, zero)
    sums = zero
    for start in range(0, 8, 2):
        sums = added(data, sums, slice(start, start + 2))
    jax.tree.map(np.testing.assert_array_equal, sums, whole)
    a, b, c, d = (added(data, zero, slice(i, i + 2)) for i in (0, 2, 4, 6))
    left = average.merge(average.merge(average.merge(a, b), c), d)
    right = average.merge(a, average.merge(b, average.merge(c, d)))
    for sums in (left, right, average.merge(zero, right)):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), sums, whole)


def test_sums_may_give_their_memory_to_the_result(rng):
    """The same bits; what was given away is lost, what was not is left as it was."""
    particles = jnp.asarray(rng.normal(size=(3, 12, 12, 12)), jnp.float32)
    pose = Pose(jnp.asarray(turns(rng, 3), jnp.float32), jnp.zeros((3, 3)))
    groups = jnp.asarray([0, 1, 0])
    kept, given = average.empty(12, 2), average.empty(12, 2)
    wanted = average.add(kept, particles, pose, groups)
    found = average.add(given, particles, pose, groups, reuse=True)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
        np.testing.assert_array_equal(a, b)
    assert given.numerator.is_deleted()
    assert not np.asarray(kept.weight).any()


def test_weight_zero_and_foreign_groups_drop_even_broken_particles(rng):
    data = stack(rng, 6, 12)
    kept = added(data, average.empty(12, 3), slice(0, 3))
    data["weights"][3] = 0
    data["particles"][3] = np.nan
    data["rotations"][3] = np.nan
    data["weights"][4] = 0
    data["groups"][4:] = 7, -1
    sums = added(data, average.empty(12, 3))
    jax.tree.map(np.testing.assert_array_equal, sums, kept)


def test_groups_separate(rng):
    """Every group holds the mean of its own particles, an empty one is zero."""
    box = 24
    volumes = np.stack([blobs(points(rng, box), box) for _ in range(3)])
    groups = np.array([3, 0, 2])
    pose = Pose(jnp.broadcast_to(jnp.eye(3), (3, 3, 3)), jnp.zeros((3, 3)))
    sums = average.add(
        average.empty(box, 4), jnp.asarray(volumes, jnp.float32), pose, jnp.asarray(groups)
    )
    maps = np.asarray(average.finish(sums))
    for volume, group in zip(volumes, groups):
        assert distance(maps[group], low_passed(volume, box / 2)) < 2e-3
    np.testing.assert_array_equal(maps[1], 0)


@pytest.mark.parametrize(("order", "error"), [(1, 3e-2), (2, 4e-3), (3, 2e-3)])
def test_posed_copies_average_to_the_planted_volume(rng, order, error):
    """Analytic copies at random poses: no interpolation but the average's own."""
    box, number = 24, 12
    place = points(rng, box)
    rotations = turns(rng, number)
    shifts = rng.normal(size=(number, 3))
    copies = np.stack([blobs((place - t) @ r, box) for r, t in zip(rotations, shifts)])
    pose = Pose(jnp.asarray(rotations, jnp.float32), jnp.asarray(shifts, jnp.float32))
    sums = average.add(
        average.empty(box),
        jnp.asarray(copies, jnp.float32),
        pose,
        jnp.zeros(number, jnp.int32),
        order=order,
    )
    result = low_passed(np.asarray(average.finish(sums)[0]), box / 2 - 2)
    assert distance(result, low_passed(blobs(place, box), box / 2 - 2)) < error


def test_average_of_wedge_copies_is_the_copy_where_sampled(rng):
    """Same wedge and pose for all: the wedge stays empty, the rest is the particle."""
    box = 24
    grid = wedge(box, 60)
    copy = masked_by(blobs(points(rng, box), box), grid)
    pose = Pose(jnp.broadcast_to(jnp.eye(3), (5, 3, 3)), jnp.zeros((5, 3)))
    sums = average.add(
        average.empty(box),
        jnp.asarray(np.stack([copy] * 5), jnp.float32),
        pose,
        jnp.zeros(5, jnp.int32),
        jnp.asarray([1.0, 2.0, 0.5, 3.0, 1.0]),
        jnp.asarray(grid),
    )
    result = average.finish(sums)[0]
    assert distance(result, low_passed(copy, box / 2)) < 1e-2
    np.testing.assert_allclose(np.asarray(sums.weight[0]).max(), 7.5, rtol=1e-6)
    leak = masked_by(np.asarray(result), 1 - grid)
    assert np.linalg.norm(leak) < 1e-5 * np.linalg.norm(copy)


def test_two_complementary_wedges_fill_fourier_space(rng):
    """Half of the frequencies each; a quarter turn about the tilt axis joins them."""
    box = 24
    place = points(rng, box)
    truth = blobs(place, box)
    grid = wedge(box, 45)
    turn = Rotation.from_euler("y", 90, degrees=True).as_matrix()
    rotations = np.stack([np.eye(3), turn])
    particles = [masked_by(blobs(place @ r, box), grid) for r in rotations]
    pose = Pose(jnp.asarray(rotations, jnp.float32), jnp.zeros((2, 3)))
    args = jnp.asarray(np.stack(particles), jnp.float32), pose
    sampling = jnp.asarray(grid)

    def error(groups, weights):
        sums = average.add(average.empty(box), *args, groups, weights, sampling)
        result = average.finish(sums)[0]
        kmax = box / 2 - 1
        return distance(low_passed(np.asarray(result), kmax), low_passed(truth, kmax))

    groups = jnp.zeros(2, jnp.int32)
    assert error(groups, jnp.asarray([1.0, 1.0])) < 0.03
    # unequal weights are divided out wherever only one particle contributes
    assert error(groups, jnp.asarray([1.0, 5.0])) < 0.03
    assert error(groups, jnp.asarray([1.0, 0.0])) > 0.3
    assert error(groups, jnp.asarray([0.0, 1.0])) > 0.3


def test_without_sampling_the_average_is_the_mean_of_eman2(golden):
    with np.load(golden / "averagers.npz") as answers:
        particles, mean = answers["in"], answers["a00"]
    rows = json.loads((golden / "averagers.json").read_text())
    assert rows[0]["name"] == "mean"
    box, number = mean.shape[0], len(particles)
    pose = Pose(jnp.broadcast_to(jnp.eye(3), (number, 3, 3)), jnp.zeros((number, 3)))
    sums = average.add(
        average.empty(box), jnp.asarray(particles), pose, jnp.zeros(number, jnp.int32), order=3
    )
    assert distance(average.finish(sums)[0], low_passed(mean, box / 2)) < 1e-2


def test_floor_damps_poorly_sampled_frequencies_and_unsampled_ones_are_zero():
    box = 8
    inside = np.linalg.norm(oracle.half_frequencies(box), axis=-1) <= box / 2
    weight = inside.astype(np.float32)
    weight[0, 0, 1] = 0.01  # |k| = 1: the others of the shell weigh 1
    weight[0, 1, 0] = weight[0, -1, 0] = 0
    numerator = np.where(inside, 1.0, 0.0).astype(np.complex64)
    sums = average.FourierSums(
        jnp.asarray(numerator)[None], jnp.asarray(weight)[None], jnp.asarray([9])
    )
    result = np.asarray(average.finish(sums, floor=0.2)[0])
    found = np.fft.rfftn(result) * np.exp(
        2j * np.pi / box * oracle.half_frequencies(box).sum(-1) * (box // 2)
    )
    shell = np.rint(np.linalg.norm(oracle.half_frequencies(box), axis=-1)) == 1
    expected = np.where(weight > 0, 1.0, 0.0)
    count = np.where(oracle.half_frequencies(box)[..., 0] == 0, 1, 2)
    mean = (weight * count)[shell].sum() / count[shell].sum()
    expected[0, 0, 1] = 1 / (0.2 * mean)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def operators(golden, name):
    rows = json.loads((golden / "symmetries.json").read_text())[name]["ops"]
    return np.array(rows).reshape(-1, 3, 4)[:, :, :3]


def symmetric_pair(rng, group, grid):
    """A planted symmetric volume and three sums over eight wedge-masked copies of it.

    As they are, symmetrised, and with every copy added at all composed poses.
    """
    box = len(grid)
    base = points(rng, box, 6)

    def seen(rotation):
        return sum(blobs(base @ g.T @ rotation, box) for g in group)

    rotations = turns(rng, 8)
    particles = jnp.asarray([masked_by(seen(r), grid) for r in rotations], jnp.float32)

    def add(sums, operator):
        pose = Pose(jnp.asarray(operator @ rotations, jnp.float32), jnp.zeros((8, 3)))
        groups = jnp.zeros(8, jnp.int32)
        return average.add(sums, particles, pose, groups, sampling=jnp.asarray(grid))

    once = add(average.empty(box), np.eye(3))
    each = average.empty(box)
    for operator in group:
        each = add(each, operator)
    return seen(np.eye(3)), once, average.symmetrise(once, group), each


def inner_map(sums):
    volume = np.asarray(average.finish(sums)[0])
    return low_passed(volume, len(volume) / 2 - 2)


def test_symmetrising_by_a_group_of_the_grid_is_exact(rng, golden):
    _, once, symmetrised, each = symmetric_pair(rng, operators(golden, "c4"), wedge(20, 60))
    assert distance(symmetrised.numerator, each.numerator) < 2e-3  # Nyquist voxels are ambiguous
    inner = np.linalg.norm(oracle.half_frequencies(20), axis=-1) < 10
    assert distance(symmetrised.numerator[:, inner], each.numerator[:, inner]) < 1e-6
    assert distance(symmetrised.weight[:, inner], each.weight[:, inner]) < 1e-6
    np.testing.assert_array_equal(symmetrised.count, 8)
    same = average.symmetrise(once, np.eye(3)[None])
    np.testing.assert_array_equal(same.numerator, once.numerator)
    np.testing.assert_array_equal(same.weight, once.weight)


@pytest.mark.parametrize("name", ["d7", "icos"])
def test_symmetrised_sums_equal_composed_poses_without_a_wedge(rng, golden, name):
    truth, _, symmetrised, each = symmetric_pair(
        rng, operators(golden, name), np.ones((20, 20, 20), np.float32)
    )
    truth = low_passed(truth, 8)
    assert distance(inner_map(symmetrised), inner_map(each)) < 2e-3
    assert distance(inner_map(symmetrised), truth) < 3e-3
    inner = np.linalg.norm(oracle.half_frequencies(20), axis=-1) <= 8
    np.testing.assert_allclose(symmetrised.weight[:, inner], each.weight[:, inner], rtol=1e-5)


@pytest.mark.parametrize("name", ["d7", "icos"])
def test_symmetry_fills_the_wedge_as_well_as_composed_poses_do(rng, golden, name):
    """Without noise, the edges of the wedges are all that is left of the error."""
    truth, once, symmetrised, each = symmetric_pair(rng, operators(golden, name), wedge(20, 60))
    truth = low_passed(truth, 8)
    found = distance(inner_map(symmetrised), truth)
    assert found < 1.15 * distance(inner_map(each), truth)
    assert found < 0.8 * distance(inner_map(once), truth)


def test_boxes_must_agree():
    pose = Pose(jnp.eye(3)[None], jnp.zeros((1, 3)))
    group = jnp.zeros(1, jnp.int32)
    with pytest.raises(InputError, match="box 16"):
        average.add(average.empty(16), jnp.zeros((1, 8, 8, 8)), pose, group)
    with pytest.raises(InputError, match="Sampling"):
        average.add(
            average.empty(8), jnp.zeros((1, 8, 8, 8)), pose, group, sampling=jnp.ones((16,) * 3)
        )
