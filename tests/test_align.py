"""Searches and refinements against planted poses, the noise limit and the score itself."""

import dataclasses
import logging

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sptjax import _chunk, fourier, resample, rotation, simulate, symmetry
from sptjax.align import SearchPlan, Stage, align, prepare
from sptjax.align._coarse import best_shifts, coarse_scores, distinct_maxima
from sptjax.align._refine import local_model, refine_pose, split_observation
from sptjax.align._search import _distinct
from sptjax.resample import SliceTable
from sptjax.score import Observations, observe, score

BOX, COUNT = 24, 12
PLAN = SearchPlan(
    box=BOX,
    coarse_k=6,
    delta_deg=15.0,
    shift_step_vox=1.8,
    max_shift_vox=3.6,
    candidates=8,
    stages=(Stage(7, 3, 4), Stage(10, 3, 1)),
    distinct_deg=6.0,
)
VECTORS = fourier.half_ball(PLAN.kmax)
WAVE = jnp.asarray(VECTORS, jnp.float32)
C1 = symmetry.parse("c1")
FULL = simulate.TiltSeries(-90, 90, 3)


def sampling_of(geometry):
    region = jnp.asarray(simulate.sampled_region(BOX, geometry))[None]
    return np.asarray(fourier.ball_samples(region, jnp.asarray(VECTORS)))


def observations(particles, sampling, power):
    data = fourier.ball_coefficients(particles, jnp.asarray(VECTORS))
    rows = jnp.asarray(np.broadcast_to(sampling, data.shape), jnp.float32)
    return observe(data, rows, jnp.full(len(VECTORS), power, jnp.float32))


def noise_level(maps, geometry):
    """Power of the noise of ``white_wedge_particles`` at every sampled frequency."""
    variance = float(maps.var(axis=(1, 2, 3)).mean())
    return variance / geometry.snr * BOX**3


def angles(found, truth, group=C1):
    return np.asarray(symmetry.angle_deg_modulo(truth, found, group))


@pytest.fixture(scope="module")
def maps():
    return jnp.stack([jnp.asarray(simulate.phantom(BOX, state)) for state in (0, 1, 2)])


@pytest.fixture(scope="module")
def planted():
    poses = simulate.random_poses(jax.random.key(21), COUNT, 3.0)
    return poses, np.arange(COUNT, dtype=np.int32) % 3


@pytest.fixture(scope="module")
def search(maps):
    return prepare(maps, PLAN, C1)


def simulated(maps, planted, geometry, seed=1):
    poses, classes = planted
    key = jax.random.key(seed)
    return simulate.white_wedge_particles(maps, jnp.asarray(classes), poses, geometry, key)


@pytest.fixture(scope="module")
def noisy(maps, planted, search):
    """Particles with a wedge and noise, every third of another map, and their alignment."""
    geometry = simulate.TiltSeries(snr=0.1)
    particles = simulated(maps, planted, geometry)
    seen = observations(particles, sampling_of(geometry), noise_level(maps, geometry))
    return seen, align(search, seen)


def particle_frame(turns, moves):
    """Where the reference's centre lies in the particle, ``-R^T t``."""
    return -np.einsum("nij,ni->nj", np.asarray(turns), np.asarray(moves))


local = jax.jit(local_model, static_argnums=6)


def information(search, seen, classes, turns, moves):
    """Fisher information ``[n, 6, 6]`` of the poses: the score squared times its curvature."""
    data, weight = split_observation(seen)
    fine, matrices = search.fine, []
    for i, (c, s) in enumerate(zip(classes, particle_frame(turns, moves))):
        table = SliceTable(fine.real[c], fine.imag[c], fine.half, fine.pad, fine.order)
        place = jnp.asarray(turns[i]), jnp.asarray(s)
        at = local(table, data[i], weight[i], WAVE.T, *place, BOX)
        matrices.append(float(at.score) ** 2 * np.asarray(at.curvature, np.float64))
    return np.stack(matrices)


def own(array, classes):
    """Best candidate of every particle against its own reference."""
    return np.asarray(array)[np.arange(len(classes)), classes, 0]


# ---------------------------------------------------------------- planted poses


def test_clean_particles_give_their_poses_back(maps, planted, search):
    poses, classes = planted
    seen = observations(simulated(maps, planted, FULL), np.ones((1, len(VECTORS))), 1e3)
    found = align(search, seen)
    error = angles(own(found.rotation, classes), poses.rotation)
    move = np.linalg.norm(own(found.shift, classes) - poses.shift, axis=1)
    # linear slicing is wrong by 1 % of the amplitudes; measured medians 0.2 degrees, 0.01 voxels
    assert np.median(error) < 0.5
    assert error.max() < 1.5
    assert np.median(move) < 0.03
    assert move.max() < 0.1


def test_noisy_particles_are_found_to_the_limit_of_their_noise(planted, search, noisy):
    """Errors weighed by the information matrix, score^2 times curvature, are chi-square of 6."""
    poses, classes = planted
    seen, found = noisy
    turns, moves = own(found.rotation, classes), own(found.shift, classes)
    assert angles(turns, poses.rotation).max() < 15  # nobody is lost
    turned = rotation.log(rotation.multiply(jnp.asarray(turns), rotation.transpose(poses.rotation)))
    moved = particle_frame(turns, moves) - particle_frame(poses.rotation, poses.shift)
    error = np.concatenate([turned, moved], axis=1)
    matrices = information(search, seen, classes, turns, moves)
    chi_square = np.einsum("ni,nij,nj->n", error, matrices, error)
    # the mean of 12 has expectation 6 and deviation 1; linearisation and slicing cost a little
    assert 3 < np.mean(chi_square) < 10


def test_the_right_reference_wins(planted, noisy):
    _, classes = planted
    best = np.asarray(noisy[1].score[:, :, 0])
    assert (best.argmax(1) == classes).all()
    margin = np.sort(best, axis=1)
    assert np.mean(margin[:, -1] - margin[:, -2]) > 1.2  # standard deviations


def test_every_particle_has_its_own_wedge(maps, planted, search):
    """Three tilt ranges in one call, one of them lopsided, with their own sampling rows."""
    poses, classes = planted
    ranges = [(-60, 60), (-40, 40), (-20, 70)]
    tilts = [simulate.TiltSeries(low, high, snr=0.3) for low, high in ranges]
    stacks = [np.asarray(simulated(maps, planted, geometry)) for geometry in tilts]
    pick = (np.arange(COUNT) // 3) % 3
    particles = np.stack([stacks[p][i] for i, p in enumerate(pick)])
    rows = np.concatenate([sampling_of(tilts[p]) for p in pick])
    assert len(np.unique(rows.sum(1))) > 1
    power = noise_level(maps, tilts[0])
    right = align(search, observations(jnp.asarray(particles), rows, power))
    error = angles(own(right.rotation, classes), poses.rotation)
    assert np.median(error) < 2
    assert error.max() < 8
    # a lopsided wedge read as another one costs score
    wrong = align(search, observations(jnp.asarray(particles), rows[pick == 2][[0]], power))
    gain = own(right.score, classes) - own(wrong.score, classes)
    np.testing.assert_allclose(gain[pick == 2], 0, atol=1e-3)
    assert gain[pick != 2].min() > 0


def symmetric_lumps(group):
    """Gaussian lumps in general position, and all their images under the group."""
    axis = np.arange(BOX) - BOX // 2
    places = np.array([[6.0, 1.5, 2.5], [2.0, -1.0, 5.0]])
    images = np.einsum("gij,bj->gbi", group.operators, places).reshape(-1, 3)
    x, y, z = (np.exp(-0.5 * ((axis - images[:, i, None]) / 1.2) ** 2) for i in range(3))
    return jnp.asarray(np.einsum("bz,by,bx->zyx", z, y, x, optimize=True), jnp.float32)


@pytest.mark.parametrize("name", ["c4", "d7", "icos"])
def test_symmetric_references_search_one_asymmetric_unit(name):
    group = symmetry.parse(name)
    reference = symmetric_lumps(group)[None]
    plan = dataclasses.replace(PLAN, stages=(Stage(10, 5, 1),), candidates=6)
    search = prepare(reference, plan, group)
    everything = 8 * np.pi**2 / np.radians(plan.delta_deg) ** 3
    assert len(search.rotations) * len(group) == pytest.approx(everything, rel=0.12)
    poses = simulate.random_poses(jax.random.key(3), 6, 3.0)
    geometry = simulate.TiltSeries(snr=0.3)
    planted = (poses, np.zeros(6, np.int32))
    seen = observations(
        simulated(reference, planted, geometry),
        sampling_of(geometry),
        noise_level(reference, geometry),
    )
    found = align(search, seen)
    turns, moves = np.asarray(found.rotation[:, 0, 0]), np.asarray(found.shift[:, 0, 0])
    error = angles(turns, poses.rotation, group)
    limit = [np.linalg.inv(m) for m in information(search, seen, planted[1], turns, moves)]
    expected = np.degrees(np.sqrt(np.mean([np.trace(c[:3, :3]) for c in limit])))
    assert np.sqrt(np.mean(error**2)) < 1.7 * expected  # 18 numbers: 1 +- 0.17
    assert expected < 4
    # poses of symmetric particles are equal modulo the group: so are the shifts, turned along
    back = symmetry.orbit(jnp.asarray(turns), group)
    nearest = np.argmin(rotation.angle_deg(back, poses.rotation[:, None]), axis=1)
    moved = np.einsum("nij,nj->ni", group.operators[nearest], moves)
    assert np.median(np.linalg.norm(moved - poses.shift, axis=1)) < 0.2
    if name == "c4":  # results do not depend on the size of the batch
        two = align(search, Observations(seen.data[:2], seen.weight[:2]))
        np.testing.assert_allclose(two.score, found.score[:2], rtol=1e-5)
        np.testing.assert_allclose(two.rotation, found.rotation[:2], atol=1e-4)
        np.testing.assert_allclose(two.shift, found.shift[:2], atol=1e-3)


# ---------------------------------------------------------------- batches and compilations


def test_results_do_not_depend_on_the_company(search, noisy):
    """The same particle in another row, beside other particles, gets the same numbers."""
    seen, together = noisy
    rows = np.array([3, 3, 7, 0, 11, 7, 2, 5, 5, 5, 1, 3])
    mixed = align(search, Observations(seen.data[rows], seen.weight[rows]))
    for one, other in zip(jax.tree.leaves(together), jax.tree.leaves(mixed)):
        np.testing.assert_array_equal(np.asarray(one)[rows], other)


def compilations(caplog, work):
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        jax.block_until_ready(work())
    return sum(record.message.startswith("Compiling") for record in caplog.records)


def test_new_references_do_not_compile_again(maps, noisy, search, caplog):
    seen, _ = noisy
    other = prepare(maps[::-1] * 1.5, PLAN, C1)
    assert compilations(caplog, lambda: align(other, seen)) == 0
    # the counter counts
    assert compilations(caplog, lambda: jax.jit(lambda x: x * 2)(np.ones(3, np.float32))) == 1


# ---------------------------------------------------------------- parts


@pytest.fixture(scope="module")
def low(maps, search, noisy):
    """Exhaustive scores in float32 and with bfloat16 operands."""
    seen, _ = noisy
    size = fourier.half_ball_size(PLAN.coarse_k)
    band = Observations(seen.data[:4, :size], seen.weight[:4, :size])
    run = eqx.filter_jit(coarse_scores)
    turns, static = search.rotations[:300], {"box": BOX, "chunk": 128}

    def scores(dtype):
        return run(search.coarse, band, WAVE[:size], turns, search.shifts, dtype=dtype, **static)

    exact = scores(jnp.float32)
    chosen = jax.lax.top_k(exact, 2)[1]
    shifts = eqx.filter_jit(best_shifts)(
        search.coarse, band, WAVE[:size], turns[chosen], search.shifts, box=BOX
    )
    return band, exact, scores(jnp.bfloat16), chosen, shifts


def test_exhaustive_scores_are_the_score_at_the_best_shift(search, low, rng):
    band, scores, _, chosen, shifts = low
    coarse, single = search.coarse, jax.jit(score, static_argnums=5)
    for i, c, m in zip(*(rng.integers(0, n, 8) for n in chosen.shape)):
        table = SliceTable(coarse.real[c], coarse.imag[c], coarse.half, coarse.pad, coarse.order)
        row = Observations(band.data[i : i + 1], band.weight[i : i + 1])
        vectors = WAVE[: band.data.shape[1]]
        q = chosen[i, c, m]
        turn = search.rotations[q]
        best = single(table, row, vectors, turn, shifts[i, c, m], BOX)
        assert float(scores[i, c, q]) == pytest.approx(float(best), abs=2e-4)
        for other in rng.integers(0, len(search.shifts), 5):  # and no shift does better
            value = single(table, row, vectors, turn, search.shifts[other], BOX)
            assert float(value) <= float(best) + 2e-4


def test_bfloat16_operands_cost_a_hundredth_of_the_score(low):
    """Rounding to 8 bits is random: it averages out over the sum."""
    exact, rounded = low[1:3]
    largest = float(jnp.abs(exact).max())
    assert np.abs(np.asarray(rounded - exact)).max() < 1e-2 * largest
    assert np.abs(np.asarray(rounded - exact)).max() > 0  # the option does something


def test_refinement_climbs_from_anywhere_and_never_falls(maps, planted, noisy):
    poses, classes = planted
    seen, _ = noisy
    data, weight = split_observation(seen)
    table = jax.jit(lambda m: resample.slice_table(m, PLAN.kmax, 1))(maps[0])

    @jax.jit
    def climb(i, turn, shift):
        refined = refine_pose(table, data[i], weight[i], WAVE.T, turn, shift, box=BOX, steps=5)
        row = Observations(seen.data[i][None], seen.weight[i][None])
        before, after = (
            score(table, row, WAVE, r, s, BOX) for r, s in ((turn, shift), refined[:2])
        )
        return before, after, refined

    truth = particle_frame(poses.rotation, poses.shift)
    far = rotation.random(jax.random.key(8), 8)
    for i in np.flatnonzero(classes == 0):
        before, after, refined = climb(i, far[i % 8], jnp.zeros(3, jnp.float32))
        assert float(after) >= float(before) - 1e-4
        assert float(after) == pytest.approx(float(refined[2]), abs=1e-3)
        np.testing.assert_allclose(refined[0] @ refined[0].T, np.eye(3), atol=1e-5)
        # from within a grid cell it arrives at the planted pose, and beats it
        off = rotation.exp(jnp.asarray([0.12, -0.1, 0.09], jnp.float32)) @ poses.rotation[i]
        at_truth = climb(i, poses.rotation[i], jnp.asarray(truth[i]))[0]
        _, after, refined = climb(i, off, jnp.asarray(truth[i] + [0.6, -0.5, 0.7], jnp.float32))
        assert float(after) > float(at_truth)
        assert float(rotation.angle_deg(refined[0], poses.rotation[i])) < 8


def test_distinct_candidates_are_distinct_modulo_the_group():
    group = symmetry.parse("c4")
    turns = rotation.random(jax.random.key(4), 3)
    nudge = rotation.exp(jnp.asarray([0.01, 0.02, 0.0], jnp.float32))
    candidates = jnp.stack(
        [
            turns[0],
            group.operators[1] @ turns[0],  # the same particle
            nudge @ group.operators[3] @ turns[0],  # almost
            turns[1],
            turns[2],
            turns[0] @ group.operators[1],  # a symmetry of nothing: another pose
        ]
    )
    rank = jnp.asarray([9.0, 10, 8, 3, 5, 1], jnp.float32)
    limit = jnp.cos(jnp.deg2rad(jnp.float32(6.0)))
    kept = _distinct(candidates, rank, group.operators, limit, 4)
    np.testing.assert_array_equal(kept, [1, 4, 3, 5])
    # with room for all, copies come last, best first
    kept = _distinct(candidates, rank, group.operators, limit, 6)
    np.testing.assert_array_equal(kept, [1, 4, 3, 5, 0, 2])


def test_maxima_of_the_grid_come_before_their_slopes():
    scores = jnp.asarray([1.0, 5, 4, 2, 3, 2.5, 0], jnp.float32)  # on a ring
    ring = (np.arange(7)[:, None] + [-1, 1]) % 7
    np.testing.assert_array_equal(distinct_maxima(scores, jnp.asarray(ring), 2), [1, 4])
    np.testing.assert_array_equal(distinct_maxima(scores, jnp.asarray(ring), 4), [1, 4, 2, 5])


def test_many_poses_at_a_time_are_the_poses_one_after_the_other(search, noisy, monkeypatch):
    """Accelerators work on many candidates at once, in batches that need not come out even."""
    seen, one_by_one = noisy
    kinds = []

    class Other:
        @property
        def platform(self):
            kinds.append("asked")
            return "gpu"

    monkeypatch.setattr(_chunk, "_devices", [Other()])
    monkeypatch.setattr(_chunk, "AT_ONCE", 7)
    jax.clear_caches()
    together = align(search, seen)
    jax.clear_caches()
    assert kinds
    np.testing.assert_allclose(together.score, one_by_one.score, rtol=1e-4)
    turn = rotation.angle_deg(together.rotation[:, :, 0], one_by_one.rotation[:, :, 0])
    assert np.max(turn) < 0.05
    np.testing.assert_allclose(together.shift, one_by_one.shift, atol=0.01)
