"""Covariances of poses, modes and their probabilities: by definition and against planted truth."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from alignment_setting import BOX, C1, moved, particles_of, truth_of, volumes_of
from scipy import stats

from sptjax import fourier, io, rotation, simulate
from sptjax.align import AlignmentSettings, Refine3D, View, align_particles
from sptjax.align import linear_rows as rows_of
from sptjax.phantom import phantom
from sptjax.resample import slice_table
from sptjax.uncertainty import _sampled, pose_table
from sptjax.uncertainty._noise import NoiseModel, covariance, neighbours
from sptjax.uncertainty._posterior import Amplitudes, Linear, Lists, evidence, posterior
from sptjax.uncertainty._sampled import second_moments

COUNT = 96
LOCAL = AlignmentSettings(aligner=None, fine=Refine3D(), search_vox=3)
GEOMETRY = simulate.TiltSeries(-60, 60, snr=0.1)
FAINT = 0.004  # scores of 6.7


@pytest.fixture(scope="module")
def planted():
    """Poses, particles with their noise power known, and the map."""
    map_ = phantom(BOX)[None]
    poses = simulate.random_poses(jax.random.key(3), COUNT, 2.0)
    volumes = volumes_of(map_, np.zeros(COUNT, int), poses, GEOMETRY, seed=4)
    return poses, particles_of(np.asarray(volumes), GEOMETRY), map_


@pytest.fixture(scope="module")
def table(planted):
    poses, particles, map_ = planted
    rows = np.arange(COUNT)
    start = moved(truth_of(poses), 2.0, 0.3)
    found = align_particles(particles, rows, map_, (C1,), LOCAL, expected_score=15.0, start=start)
    return pose_table(
        View(particles, map_), rows, found, (C1,), LOCAL, expected_score=15.0, modes=1
    )


def errors(table, poses):
    """Turns in degrees and moves of the place in voxels from the first mode to the truth."""
    turn, shift = table.rotation[:, 0], table.shift[:, 0]
    known, right = np.asarray(poses.rotation), np.asarray(poses.shift)
    away = np.degrees(np.asarray(rotation.log(jnp.asarray(known @ turn.swapaxes(1, 2)))))
    place = -np.einsum("nji,nj->ni", turn, shift)
    return np.concatenate([away, -np.einsum("nji,nj->ni", known, right) - place], 1)


def squared(error, covariance, part):
    inverse = np.linalg.inv(covariance[:, part, part].astype(float))
    return np.einsum("ni,nij,nj->n", error[:, part], inverse, error[:, part])


@pytest.mark.parametrize("part", [slice(0, 6), slice(0, 3), slice(3, 6)])
def test_truths_lie_where_the_covariance_says(planted, table, part):
    """The mean of chi-square over its freedom is 1 +- sqrt(2 / freedom / n)."""
    distance = squared(errors(table, planted[0]), table.covariance[:, 0], part)
    freedom = part.stop - part.start
    spread = np.sqrt(2 / freedom / COUNT)
    assert abs(distance.mean() / freedom - 1) < 3.5 * spread < 0.5 * 0.9
    for level in (0.68, 0.95):
        inside = int((distance <= stats.chi2.ppf(level, freedom)).sum())
        low, high = stats.binom.interval(0.998, COUNT, level)
        assert low <= inside <= high


def test_a_covariance_off_by_half_would_be_seen(planted, table):
    distance = squared(errors(table, planted[0]), table.covariance[:, 0], slice(0, 6))
    limit = 3.5 * np.sqrt(2 / 6 / COUNT)
    for factor in (1.5, 1 / 1.5):
        assert abs(distance.mean() / 6 / factor - 1) > limit


def test_noise_covariance_by_its_definition(rng):
    """Against the sum over all pairs of frequencies of the ball."""
    vectors = fourier.half_ball(3)
    around, count = neighbours(vectors), len(vectors)
    power = rng.uniform(0.5, 2, count)
    near = rng.normal(size=(13, count)) + 1j * rng.normal(size=(13, count))
    rows = rng.normal(size=(4, count)) + 1j * rng.normal(size=(4, count))
    shift, box = rng.normal(size=3), 24
    model = NoiseModel(jnp.asarray(power, jnp.float32), jnp.asarray(near, jnp.complex64))
    found = covariance(
        model, around, jnp.asarray(rows, jnp.complex64), jnp.asarray(shift, jnp.float32), box
    )
    steps = np.asarray(around.steps).astype(int)
    value = {tuple(k): rows[:, i] for i, k in enumerate(vectors)}
    value |= {tuple(-k): rows[:, i].conj() for i, k in enumerate(vectors)}
    wanted = np.zeros((4, 4), complex)
    for i, k in enumerate(vectors):
        for sign in (1, -1):  # the mirror image of a frequency has the conjugate of everything
            c = (lambda x: x) if sign > 0 else np.conj
            own = value[tuple(sign * k)]
            wanted += power[i] * np.outer(own.conj(), own)
            for d, step in enumerate(steps):
                other = value.get(tuple(sign * (k + step)))
                if other is None:
                    continue
                phase = np.exp(-2j * np.pi * (sign * step) @ shift / box)
                term = c(near[d, i]) * phase * np.outer(own.conj(), other)
                wanted += term + term.conj().T
    np.testing.assert_allclose(found, np.real(wanted), rtol=2e-4, atol=1e-3)


def test_linear_rows_are_derivatives(planted):
    """Of the shifted, weighted reference, by differences."""
    table = slice_table(jnp.asarray(planted[2][0]), 6, 3)
    vectors = jnp.asarray(fourier.half_ball(5).T, jnp.float32)
    count = vectors.shape[1]
    weight, data = jnp.linspace(0.5, 1.5, count), jnp.zeros((2, count))
    turn, place = rotation.random(jax.random.key(0), 1)[0], np.array([0.5, -1.0, 2.0], np.float32)

    @jax.jit
    def both(turn, place):
        return rows_of(table, data, weight, vectors, turn, place, BOX)

    def linear(turn, place):
        return np.asarray(both(turn, place))

    def reference(turn, place):
        rows = linear(turn, jnp.asarray(place))
        angle = -2 * np.pi / BOX * np.asarray(vectors.T @ place)
        return (rows[6, 0] + 1j * rows[6, 1]) * np.exp(1j * angle)

    rows = linear(turn, jnp.asarray(place))
    angle = -2 * np.pi / BOX * np.asarray(vectors.T @ place)
    for i in range(6):
        step = np.zeros(6, np.float32)
        step[i] = 0.02
        two = [
            reference(rotation.exp(jnp.asarray(s * step[:3])) @ turn, place + s * step[3:])
            for s in (1, -1)
        ]
        difference = (two[0] - two[1]) / 0.04
        row = (rows[i, 0] + 1j * rows[i, 1]) * np.exp(1j * angle)
        assert np.abs(row - difference).max() < 0.02 * np.abs(row).max()


def test_evidence_is_a_ratio_of_densities():
    known = Amplitudes(0.8, 0.1)
    score, unit = np.linspace(-3, 12, 7), np.full(7, 9.0)
    value, slope = evidence(score, unit, known)
    right = stats.norm.logpdf(score, 0.8 * 9, np.hypot(1, 0.9))
    np.testing.assert_allclose(value, right - stats.norm.logpdf(score))
    up, _ = evidence(score + 1e-4, unit, known)
    np.testing.assert_allclose(slope, (up - value) / 1e-4, rtol=1e-3, atol=1e-3)


def simple(score, unit=10.0):
    """Particles whose six parameters are known equally well, by their scores ``[n, m]``."""
    score = np.asarray(score, float)
    normal = np.broadcast_to(np.diag([3.0] * 6 + [1.0]) * unit**2, (*score.shape, 7, 7))
    along = np.zeros((*score.shape, 7))
    along[..., 6] = score * unit
    return Linear(normal, normal, along)


def by_chance(rng, n, m, count=20_000, level=2.5):
    """The best of many normal scores, which self-similarity lifts; best first."""
    return level + stats.norm.isf(rng.exponential(size=(n, m)).cumsum(1) / count)


def with_right_poses(rng, lists, share, amplitude, unit=10.0):
    """Lists of which a share holds the right pose too, and where it is, -1 where it is not."""
    n, m = lists.shape
    there = rng.random(n) < share
    score = np.sqrt(rng.normal(amplitude * unit, 1, n) ** 2 + 6)
    every = np.concatenate([lists, np.where(there, score, -np.inf)[:, None]], 1)
    order = np.argsort(-every, axis=1)[:, :m]
    place = order == m
    held = place.any(1) & there
    return np.take_along_axis(every, order, 1), np.where(held, place.argmax(1), -1)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.8, 1.0])
def test_lists_hold_the_right_pose_as_often_as_stated(rng, share):
    score, place = with_right_poses(rng, by_chance(rng, 4000, 8), share, 0.9)
    found = posterior([simple(score)], [np.ones(score.shape, bool)], True, BOX)
    stated, held = found.inside[0].sum(1), place >= 0
    few = share < 0.5  # too certain where most are wrong
    assert found.amplitudes[0].mean == pytest.approx(0.9, abs=0.04 if few else 0.01)
    assert stated.mean() == pytest.approx(held.mean(), abs=0.05 if few else 0.02)
    if few or share == 1:
        return  # where all are right, hardly a list is in doubt
    for low, high in itertools.pairwise([0, 0.05, 0.2, 0.5, 0.8, 0.95, 1.01]):
        some = (stated >= low) & (stated < high)
        error = np.sqrt(stated[some].mean() * (1 - stated[some].mean()) / some.sum())
        assert some.sum() >= 20
        assert abs(held[some].mean() - stated[some].mean()) < 3 * error + 0.1


def test_noise_alone_holds_hardly_a_pose(rng):
    score = by_chance(rng, 2000, 8)
    found = posterior([simple(score)], [np.ones(score.shape, bool)], True, BOX)
    assert found.inside[0].sum(1).mean() < 0.15
    given = posterior([simple(score)], [np.ones(score.shape, bool)], False, BOX)
    np.testing.assert_allclose(given.inside[0].sum(1), 1)


@pytest.mark.parametrize("amplitude", [0.9, 1.5])
def test_particles_that_resemble_themselves_are_found(rng, amplitude):
    """Equivalents that the search was not told of score as well as the right pose."""
    best = np.sqrt(rng.normal(10 * amplitude, 1, 500) ** 2 + 6)
    score = best[:, None] - rng.exponential(0.05, (500, 8)).cumsum(1)
    found = posterior([simple(score)], [np.ones(score.shape, bool)], True, BOX)
    assert found.inside[0].sum(1).mean() > 0.8


def test_the_rate_of_chance(rng):
    """Of exponential tails, as it was; lists too short say nothing."""
    chance = 5 - np.log(rng.exponential(size=(4000, 8)).cumsum(1)) / 2.5
    score, _ = with_right_poses(rng, chance, 1.0, 1.5)
    score[:50, 1:] = -np.inf
    nothing = np.zeros(len(score))
    lists = Lists(score, np.full_like(score, 10), nothing + 1.5, nothing)
    assert lists.chance_rate() == pytest.approx(2.5, rel=0.03)
    assert np.isfinite(lists.log_chance(2.5)).all()
    # two events above the third best, by the definition of the rate
    base, rate = score[99, 2], 2.5
    above = np.linspace(base, base + 20, 20001)
    some = dataclasses.replace(lists, score=np.stack([above, above, np.full(20001, base)], 1))
    assert np.trapezoid(np.exp(some.log_chance(rate)[:, 0]), above) == pytest.approx(2, rel=1e-3)


def test_clear_modes_are_certain_and_close_ones_are_not(rng):
    clear = rng.normal(10, 1, 200)
    score = np.stack([clear, rng.normal(4, 0.5, 200)], 1)
    score[0] = 10.0, 9.9
    own = [np.ones(score.shape, bool)]
    found = posterior([simple(score)], own, True, BOX)
    assert np.median(found.inside[0][1:, 0]) > 0.99
    assert 0.5 < found.inside[0][0, 0] < 0.8
    assert found.amplitudes[0].mean == pytest.approx(1 - 3 / 100, abs=0.03)


def test_covariance_by_its_definition(rng):
    """The inverse information of pose and amplitude together; with other noise the sandwich."""
    half = rng.normal(size=(2, 3, 7, 7))
    normal = 50 * np.einsum("...ij,...kj->...ik", half, half) + 2000 * np.eye(7)
    linear = Linear(normal, normal, np.ones((2, 3, 7)))
    a = np.full((2, 3), 2.0)
    joint = normal * np.array([2.0] * 6 + [1])[:, None] * np.array([2.0] * 6 + [1])
    wanted = np.linalg.inv(joint)[..., :6, :6]
    np.testing.assert_allclose(linear.covariance(a, BOX), wanted, rtol=1e-3, atol=1e-7)
    doubled = dataclasses.replace(linear, spread=3 * normal)
    np.testing.assert_allclose(doubled.covariance(a, BOX), 3 * wanted, rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("name", ["modes.hdf", "modes.json"])
def test_tables_are_read_back(table, tmp_path, name):
    io.write_pose_table(tmp_path / name, table)
    back = io.read_pose_table(tmp_path / name)
    for field in dataclasses.fields(table):
        old, new = getattr(table, field.name), getattr(back, field.name)
        assert new.dtype == old.dtype
        np.testing.assert_allclose(new, old, atol=0 if name.endswith("hdf") else 1e-6)


def test_the_transfer_of_a_mode():
    two = io.PoseTable(
        *(np.zeros(s, np.float32) for s in ((2, 2, 3, 3), (2, 2, 3))),
        classes=np.array([[1, 0], [0, -1]]),
        score=np.zeros((2, 2)),
        probability=np.array([[0.6, 0.3], [0.9, 0.0]]),
        covariance=np.zeros((2, 2, 6, 6)),
        elsewhere=np.array([0.1, 0.1]),
        entropy=np.zeros(2),
        displacement=np.array([[0.0, 2.0], [1.0, 0.0]]),
    )
    wave = (np.pi / 2) ** 2 / 6
    np.testing.assert_allclose(two.transfer(np.array([1, 1])), [0.6, 0.0])
    wanted = [0.3 * np.exp(-4 * wave), 0.9 * np.exp(-wave)]
    np.testing.assert_allclose(two.transfer(np.array([0, 0])), wanted, rtol=1e-6)


def test_a_score_that_bends_less_knows_less(rng):
    """Curvature as expected changes nothing; half of it doubles the covariance."""
    half = rng.normal(size=(2, 3, 7, 7))
    normal = 50 * np.einsum("...ij,...kj->...ik", half, half) + 2000 * np.eye(7)
    linear, a = Linear(normal, normal, np.ones((2, 3, 7))), np.full((2, 3), 2.0)
    steps = linear.steps(a, BOX)
    information, _ = linear.profiled()
    expected = -2.0 * steps[:, :2] @ information[:, :2] / np.sqrt(normal[:, :2, 6:, 6:])
    before = linear.covariance(a, BOX)
    after = linear.bent(expected, steps, a, BOX).covariance(a, BOX)
    np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-9)
    flatter = linear.bent(expected / 2, steps, a, BOX).covariance(a, BOX)
    np.testing.assert_allclose(flatter[:, :2], 2 * before[:, :2], rtol=5e-3, atol=1e-6)
    np.testing.assert_allclose(flatter[:, 2], before[:, 2], rtol=1e-6, atol=1e-9)


def test_what_the_search_missed_is_elsewhere(rng):
    """Particles of which a search lists chance maxima alone, a quarter of all."""
    right = np.arange(200) % 4 > 0
    best = np.where(right, rng.normal(10, 1, 200), rng.normal(5, 0.3, 200))
    score = np.stack([best, rng.normal(4.5, 0.2, 200)], 1)
    found = posterior([simple(score)], [np.ones(score.shape, bool)], [3e4], BOX).inside[0]
    assert found[right & (best > 8), 0].min() > 0.9
    assert found[~right].sum(1).max() < 0.1
    assert found.sum() == pytest.approx(right.sum(), abs=2)


def bell(x):
    """Half the square of a score of 6.5 that falls like a bell: wider than its parabola."""
    return 6.5**2 / 2 * np.exp(-(x**2).sum(-1) / 6.5**2)


def test_second_moments_by_their_definition(rng):
    """Of a density that depends on a radius alone, by quadrature along it; axes stretched."""
    radius = np.linspace(0, 14, 20_001)
    density = np.exp(bell(radius[:, None])) * radius**5
    wanted = (density * radius**2).sum() / density.sum() / 6
    assert wanted > 1.25  # that of the parabola is 1
    axes = np.linalg.qr(rng.normal(size=(20, 6, 6)))[0] * rng.uniform(0.75, 1.3, (20, 1, 6))
    back = np.linalg.inv(axes)
    one = np.broadcast_to(np.eye(6), axes.shape)
    found = second_moments(lambda x: bell(np.einsum("nij,nqj->nqi", back, x)), one)
    ratio = back @ found @ back.swapaxes(1, 2) / wanted
    assert np.trace(ratio, axis1=1, axis2=2).mean() / 6 == pytest.approx(1, abs=0.1)
    values = np.linalg.eigvalsh(ratio)
    assert values[:, 0].mean() > 0.8
    assert values[:, -1].mean() < 1.35


def test_second_moments_of_a_gaussian_are_its_covariance(rng):
    half = rng.normal(size=(3, 6, 6)) / 3
    wanted = half @ half.swapaxes(1, 2) + 0.5 * np.eye(6)
    inverse = np.linalg.inv(wanted)
    found = second_moments(lambda x: -np.einsum("nqi,nij,nqj->nq", x, inverse, x) / 2, wanted)
    values = np.linalg.eigvalsh(inverse @ found)
    np.testing.assert_allclose(values, 1, atol=0.3)


def test_regions_of_faint_particles_hold_their_truths():
    """Regions from the curvature alone are too small."""
    poses = simulate.random_poses(jax.random.key(5), COUNT, 2.0)
    geometry = dataclasses.replace(GEOMETRY, snr=FAINT)
    map_ = phantom(BOX)[None]
    volumes = volumes_of(map_, np.zeros(COUNT, int), poses, geometry, seed=6)
    particles, rows = particles_of(np.asarray(volumes), geometry), np.arange(COUNT)
    start = moved(truth_of(poses), 2.0, 0.3)
    found = align_particles(particles, rows, map_, (C1,), LOCAL, expected_score=7.0, start=start)
    tables = []
    for clear in (0.0, _sampled.CLEAR):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_sampled, "CLEAR", clear)
            tables.append(
                pose_table(
                    View(particles, map_), rows, found, (C1,), LOCAL, expected_score=7.0, modes=1
                )
            )
    assert 5 < tables[0].score.mean() < 8
    before, after = (squared(errors(t, poses), t.covariance[:, 0], slice(0, 6)) for t in tables)
    low, high = stats.binom.interval(0.998, COUNT, 0.95)
    limit = stats.chi2.ppf(0.95, 6)
    assert (before <= limit).sum() < low <= (after <= limit).sum() <= high


def test_classes_are_told_apart_whatever_the_noise_of_their_members():
    """One of two similar maps has noisier particles: with noise by class it would lose them."""
    whole = np.asarray(phantom(BOX))
    part = whole.copy()
    part[:, :, BOX // 2 + 2 :] *= 0.4
    maps, own = np.stack([whole, part]), np.arange(COUNT) % 2
    poses = simulate.random_poses(jax.random.key(5), COUNT, 2.0)
    noisy = dataclasses.replace(GEOMETRY, snr=0.03)
    sets = (volumes_of(jnp.asarray(maps), own, poses, g, seed=6) for g in (GEOMETRY, noisy))
    volumes = np.where(own[:, None, None, None] == 1, *reversed([np.asarray(v) for v in sets]))
    particles, rows = particles_of(volumes, GEOMETRY), np.arange(COUNT)
    found = truth_of(poses)
    start = dataclasses.replace(
        found, **{k: np.repeat(getattr(found, k), 2, 1) for k in ("rotation", "shift", "score")}
    )
    found = align_particles(
        particles, rows, maps, (C1, C1), LOCAL, expected_score=15.0, start=start
    )
    table = pose_table(
        View(particles, maps), rows, found, (C1, C1), LOCAL, expected_score=15.0, modes=2
    )
    share = np.where(table.classes == 1, table.probability, 0).sum(1)
    assert np.mean((share > 0.5) == own) > 0.9
