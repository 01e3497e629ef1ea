"""The plain exhaustive search against a brute force in NumPy and against the score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import score as oracle

from sptjax import fourier, orientations, rotation, simulate, symmetry
from sptjax._errors import InputError
from sptjax.align import SearchPlan, Stage, align, grid_search, prepare
from sptjax.align._search import stack_tables
from sptjax.resample import SliceTable
from sptjax.score import Observations, observe, score

TURNS = rotation.random(jax.random.key(3), 70)  # more than a chunk, and no multiple of it

single = jax.jit(score, static_argnums=5)
stacked = jax.jit(stack_tables, static_argnums=(1, 2))


def setting(box, kmax, count, rng):
    """Reference, half ball, soft wedges of every particle, coloured noise and the particles."""
    reference = simulate.phantom(box)
    vectors = fourier.half_ball(kmax)
    region = np.abs(vectors[:, 2]) <= 1.7 * np.abs(vectors[:, 0])
    sampling = (region * rng.uniform(0.3, 2.0, (count, len(vectors)))).astype("f4")
    noise = (box**3 / 300 * rng.uniform(0.5, 2.0, len(vectors))).astype("f4")
    parts = rng.normal(size=(2, count, len(vectors)))
    data = (parts[0] + 1j * parts[1]) * np.sqrt(0.5 * noise * sampling)
    for i in range(count):
        shift = rng.integers(-2, 3, 3) + 0.3
        data[i] += sampling[i] * oracle.model(reference, vectors, TURNS[5 * i + 2], shift)
    return reference, vectors, sampling, noise, data.astype("c8")


# an odd box, and the whole ball of an even one, whose Nyquist planes hold both of a pair
@pytest.mark.parametrize(("box", "kmax"), [(12, 6), (13, 6)])
def test_equal_to_brute_force(box, kmax, rng):
    reach, keep = 3, 5
    reference, vectors, sampling, noise, data = setting(box, kmax, 2, rng)
    seen = observe(jnp.asarray(data), jnp.asarray(sampling), jnp.asarray(noise))
    found = grid_search(
        stacked(jnp.asarray(reference)[None], kmax, 2),
        seen,
        jnp.asarray(vectors),
        TURNS,
        box=box,
        max_shift_vox=reach,
        keep=keep,
    )
    brute = oracle.grid(reference, data, sampling, noise, vectors, TURNS, reach)
    for i, scores in enumerate(brute):
        flat = scores.reshape(len(TURNS), -1)
        best = np.argsort(-flat.max(1))[:keep]
        # quadratic slicing: 1.4e-3 of the amplitudes
        np.testing.assert_allclose(found.score[i, 0], flat.max(1)[best], rtol=5e-3)
        assert best[0] == 5 * i + 2  # the planted one
        np.testing.assert_allclose(found.rotation[i, 0, 0], TURNS[best[0]], atol=1e-6)
        place = np.array(np.unravel_index(flat[best[0]].argmax(), scores.shape[1:]))[::-1] - reach
        np.testing.assert_allclose(
            found.shift[i, 0, 0], -np.asarray(TURNS[best[0]]) @ place, atol=1e-5
        )


@pytest.fixture(scope="module")
def easy():
    """Two clean particles of two references on a real grid, with its neighbours."""
    box, kmax, snr = 24, 8, 2.0
    maps = jnp.stack([jnp.asarray(simulate.phantom(box, state)) for state in (0, 2)])
    poses = simulate.random_poses(jax.random.key(6), 2, 2.5)
    geometry = simulate.TiltSeries(snr=snr)
    particles = simulate.white_wedge_particles(
        maps, jnp.asarray([0, 1], jnp.int32), poses, geometry, jax.random.key(7)
    )
    vectors = jnp.asarray(fourier.half_ball(kmax + 1))  # a wider band than is searched
    region = jnp.asarray(simulate.sampled_region(box, geometry))[None]
    power = float(maps.var(axis=(1, 2, 3)).mean()) / snr * box**3
    seen = observe(
        fourier.ball_coefficients(particles, vectors),
        fourier.ball_samples(region, vectors),
        jnp.full(len(vectors), power, jnp.float32),
    )
    return box, kmax, maps, poses, seen, orientations.uniform(30.0)


@pytest.fixture(scope="module")
def searched(easy):
    box, kmax, maps, _, seen, grid = easy
    tables = stacked(maps, kmax, 1)
    vectors = jnp.asarray(fourier.half_ball(kmax))

    def search(neighbours):
        return grid_search(
            tables,
            seen,
            vectors,
            grid.rotations,
            box=box,
            max_shift_vox=3,
            keep=4,
            neighbours=neighbours,
        )

    return tables, search(None), search(grid.neighbours)


@pytest.mark.parametrize("which", [1, 2])
def test_scores_are_the_score_at_their_own_poses(easy, searched, which):
    box, kmax, _, _, seen, _ = easy
    tables, found = searched[0], searched[which]
    wave = jnp.asarray(fourier.half_ball(kmax), jnp.float32)
    for i, c, m in np.ndindex(2, 2, 4):
        table = SliceTable(tables.real[c], tables.imag[c], tables.half, tables.pad, tables.order)
        row = Observations(seen.data[i : i + 1, : len(wave)], seen.weight[:, : len(wave)])
        turn, shift = found.rotation[i, c, m], found.shift[i, c, m]
        want = single(table, row, wave, turn, -turn.T @ shift, box)
        assert float(found.score[i, c, m]) == pytest.approx(float(want), rel=1e-4)
    assert (np.diff(found.score, axis=-1) <= 0).all()  # best first


def test_neighbours_leave_one_pose_for_every_peak(easy, searched):
    grid = easy[-1]
    _, plain, peaks = searched
    np.testing.assert_allclose(peaks.score[..., 0], plain.score[..., 0], rtol=1e-6)
    entries = np.asarray(grid.rotations).reshape(-1, 9)
    nearest = np.asarray(grid.neighbours)
    for i, c in np.ndindex(2, 2):
        rows = np.asarray(peaks.rotation[i, c]).reshape(-1, 9)
        index = [int(np.abs(entries - row).sum(1).argmin()) for row in rows]
        assert not any(b in nearest[a] for a in index for b in index if a != b)


def test_grid_poses_lie_in_the_cell_that_the_refined_search_finds(easy, searched):
    box, kmax, maps, poses, seen, grid = easy
    plan = SearchPlan(
        box=box,
        coarse_k=6,
        delta_deg=30.0,
        shift_step_vox=1.5,
        max_shift_vox=3.0,
        candidates=6,
        stages=(Stage(kmax, 6, 1),),
        distinct_deg=6.0,
    )
    refined = align(prepare(maps, plan, symmetry.parse("c1"), grid), seen)
    found = searched[1]
    for i in range(2):
        assert int(jnp.argmax(found.score[i, :, 0])) == i  # the right reference
        assert float(refined.score[i, i, 0]) > float(found.score[i, i, 0])
        turn, near = refined.rotation[i, i, 0], found.rotation[i, i, 0]
        assert float(rotation.angle_deg(turn, poses.rotation[i])) < 3
        # the best grid pose need not be the nearest one, but it is a near one
        assert float(rotation.angle_deg(turn, near)) < 1.5 * grid.covering_deg
        apart = -turn.T @ refined.shift[i, i, 0] + near.T @ found.shift[i, i, 0]
        assert float(jnp.abs(apart).max()) < 1


def test_a_window_wider_than_the_box_is_refused(easy, searched):
    _, kmax, _, _, seen, grid = easy
    with pytest.raises(InputError, match="12 voxels do not fit a box of 24"):
        grid_search(
            searched[0],
            seen,
            jnp.asarray(fourier.half_ball(kmax)),
            grid.rotations,
            box=24,
            max_shift_vox=12,
            keep=1,
        )
