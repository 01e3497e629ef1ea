"""Class averages in one pass: against explicit averages, by every kind of averager."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from memory_stack import Memory

from sptjax import average, averagers, averaging, resample, simulate, symmetry
from sptjax._types import Pose
from sptjax.averaging import Assigned, Averaging, average_classes
from sptjax.particles import Sampling
from sptjax.processors import PROCESSORS

BOX, APIX, N = 16, 4.0, 10


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    pose = simulate.random_poses(jax.random.key(0), N, 1.5)
    base = np.asarray(simulate.phantom(BOX, 0))
    move = jax.vmap(lambda r, t: resample.transform(jnp.asarray(base), Pose(r.T, -r.T @ t)))
    volumes = np.asarray(move(pose.rotation, pose.shift))
    volumes = volumes + 0.1 * rng.normal(size=volumes.shape).astype(np.float32)
    classes = np.array([0, 1, 0, 0, 1, 1, 0, 1, 0, 1])
    weight = rng.uniform(0.2, 1, N).astype(np.float32)
    assigned = Assigned(
        np.arange(N), np.asarray(pose.rotation), np.asarray(pose.shift), classes, weight
    )
    return Memory(volumes), assigned, base


def run(data, settings, names=("c1", "c1"), grid=None):
    stack, assigned, _ = data
    grid = np.ones((BOX,) * 3, np.float32) if grid is None else grid
    groups = tuple(symmetry.parse(n) for n in names)
    return average_classes(stack, Sampling(grid), assigned, groups, settings, APIX, batch=4)


def aligned(data):
    stack, assigned, _ = data
    move = jax.vmap(lambda v, r, t: resample.transform(v, Pose(r, t)))
    arguments = (stack.volumes, assigned.rotation, assigned.shift)
    return np.asarray(move(*(jnp.asarray(x, jnp.float32) for x in arguments)))


def distance(found, wanted, kmax=6):
    """Relative difference of two maps up to a shell."""
    k = np.fft.fftfreq(BOX, 1 / BOX)
    inside = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2) <= kmax
    a, b = (np.fft.fftn(np.asarray(v))[inside] for v in (found, wanted))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def members(assigned, c, half=None):
    rows = assigned.classes == c
    return rows if half is None else rows & (assigned.indices % 2 == half)


@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_bits_depend_neither_on_batches_nor_on_how_many_go_side_by_side(
    data, monkeypatch, lanes, batch
):
    stack, assigned, _ = data
    every = tuple(symmetry.parse("c1") for _ in range(2))
    sampling = Sampling(np.ones((BOX,) * 3, np.float32))
    monkeypatch.setattr(averaging, "lanes", lambda: lanes)
    some = Assigned(*(x[[0, 1, 2, 4, 5, 9]] for x in dataclasses.astuple(assigned)[:5]))
    for rows in (assigned, some):
        found = average_classes(stack, sampling, rows, every, Averaging(), APIX, batch=batch)
        sums = average.empty(BOX, 4)
        blocks = []
        for first in (0, 2, 4, 6):  # cut at even particles: 0, 2, 4, 6
            last = first + 2 if first < 6 else N
            at = np.flatnonzero((rows.indices >= first) & (rows.indices < last))
            group = 2 * rows.classes[at] + rows.indices[at] % 2
            pose = Pose(jnp.asarray(rows.rotation[at]), jnp.asarray(rows.shift[at]))
            volumes = average.apply_sampling(
                jnp.asarray(stack.volumes[rows.indices[at]]), jnp.asarray(sampling.shared)
            )
            weight, grid = jnp.asarray(rows.weight[at]), jnp.asarray(sampling.shared)
            blocks.append(average.add(sums, volumes, pose, jnp.asarray(group), weight, grid))
        halves = [average.merge(*blocks[:2]), average.merge(*blocks[2:])]
        wanted = average.merge(*halves)
        np.testing.assert_array_equal(found.sums.numerator, wanted.numerator)
        np.testing.assert_array_equal(found.sums.weight, wanted.weight)


@pytest.mark.parametrize("averager", [averagers.Mean(), averagers.MeanTomo()])
def test_means_are_weighted_means_of_the_aligned_particles(data, averager):
    _, assigned, _ = data
    made = run(data, Averaging(averager))
    turned = aligned(data)
    for c in (0, 1):
        rows = members(assigned, c)
        wanted = np.average(turned[rows], axis=0, weights=assigned.weight[rows])
        assert distance(made.merged()[c], wanted) < 0.02
        for half in (0, 1):
            rows = members(assigned, c, half)
            wanted = np.average(turned[rows], axis=0, weights=assigned.weight[rows])
            assert distance(made.halves()[c, half], wanted) < 0.02


@pytest.mark.parametrize(
    ("averager", "rule"),
    [
        (averagers.Median(), lambda v: np.median(v, 0)),
        (averagers.MinMax(max=True), lambda v: v.max(0)),
        (averagers.Mean(ignore0=True), None),
    ],
)
def test_real_space_averagers_see_aligned_particles(data, averager, rule):
    _, assigned, _ = data
    made = run(data, Averaging(averager))
    turned = aligned(data)
    for c in (0, 1):
        rows = members(assigned, c)
        if rule is None:
            wanted = np.average(turned[rows], axis=0, weights=assigned.weight[rows])
        else:
            wanted = rule(turned[rows])
        np.testing.assert_allclose(np.asarray(made.merged())[c], wanted, atol=2e-4)


def test_processors_act_on_aligned_particles_before_the_average(data):
    clamp = PROCESSORS["threshold.clampminmax"](minval=-0.2, maxval=0.4)
    flip = PROCESSORS["math.linear"](scale=-1.0, shift=0.0)
    _, assigned, _ = data
    for averager in (averagers.Mean(), averagers.MeanTomo(), averagers.Median()):
        made = np.asarray(run(data, Averaging(averager, (clamp, flip))).merged())
        turned = -np.clip(aligned(data), -0.2, 0.4)
        for c in (0, 1):
            rows = members(assigned, c)
            wanted = np.average(turned[rows], axis=0, weights=assigned.weight[rows])
            if isinstance(averager, averagers.Median):
                wanted = np.median(turned[rows], 0)
            corr = np.corrcoef(made[c].ravel(), wanted.ravel())[0, 1]
            assert corr > 0.99
            assert made[c].max() < 0.3


def test_processed_particles_keep_their_missing_wedge(data):
    """With a sampling that a pose turns, the average by known sampling is not dimmed."""
    grid = np.ones((BOX,) * 3, np.float32)
    z, _, x = np.meshgrid(*[np.arange(BOX) - BOX // 2] * 3, indexing="ij")
    grid[np.abs(z) > np.abs(x) * np.tan(np.radians(60)) + 0.5] = 0
    nothing = PROCESSORS["math.linear"](scale=1.0, shift=0.0)
    direct = np.asarray(run(data, Averaging(), grid=grid).merged())
    via = np.asarray(run(data, Averaging(before=(nothing,)), grid=grid).merged())
    dimmed = np.asarray(run(data, Averaging(averagers.Mean()), grid=grid).merged())
    for c in (0, 1):
        assert np.corrcoef(direct[c].ravel(), via[c].ravel())[0, 1] > 0.97
        assert abs(via[c].std() / direct[c].std() - 1) < 0.1
        assert dimmed[c].std() < 0.95 * direct[c].std()


def test_symmetry_is_applied_unless_broken(data):
    names = ("c2", "c1")
    for averager in (averagers.MeanTomo(), averagers.Median()):
        made = np.asarray(run(data, Averaging(averager), names).merged())
        turn = lambda v: np.roll(v[:, ::-1, ::-1], (1, 1), (1, 2))  # noqa: E731
        inside = np.s_[3:-2, 3:-2, 3:-2]
        error = np.abs(made[0] - turn(made[0]))[inside].max() / made[0].std()
        other = np.abs(made[1] - turn(made[1]))[inside].max() / made[1].std()
        assert error < 0.1 < other
        broken = np.asarray(run(data, Averaging(averager, (), True), names).merged())
        assert np.abs(broken[0] - turn(broken[0]))[inside].max() / broken[0].std() > 0.3


def test_moving_averages_moves_their_maps(data):
    shifts = np.zeros((2, 2, 3), np.float32)
    shifts[0] = [2, -1, 1]
    for averager in (averagers.MeanTomo(), averagers.Median()):
        made = run(data, Averaging(averager))
        before, after = np.asarray(made.merged()), np.asarray(made.moved(shifts).merged())
        wanted = np.roll(before[0], (1, -1, 2), (0, 1, 2))
        assert distance(after[0], wanted) < 0.05 < distance(before[0], wanted)
        assert distance(after[1], before[1]) < 0.01


def test_filters_leave_what_is_clear_and_damp_what_is_not(data):
    ratio = np.full((2, BOX // 2 + 1), 1e-6, np.float32)
    ratio[:, 5:] = 9.0
    for averager in (averagers.MeanTomo(), averagers.Median()):
        made = run(data, Averaging(averager))
        plain = np.fft.fftn(np.asarray(made.merged()), axes=(1, 2, 3))
        damped = np.fft.fftn(np.asarray(made.filtered(jnp.asarray(ratio))), axes=(1, 2, 3))
        gain = np.abs(damped[:, 3, 0, 0]) / np.abs(plain[:, 3, 0, 0])
        assert gain == pytest.approx([1, 1], rel=0.01)
        gain = np.abs(damped[:, 6, 0, 0]) / np.abs(plain[:, 6, 0, 0])
        assert gain == pytest.approx([0.1, 0.1], rel=0.02)
        halves = np.asarray(made.filtered_halves(jnp.asarray(ratio)))
        assert halves.shape == (2, 2, BOX, BOX, BOX)
        assert np.abs(halves[:, 0] - halves[:, 1]).max() > 0
