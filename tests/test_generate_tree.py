"""Pairs over the intersection of two wedges, and the binary tree: planted particles, NumPy sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from alignment_setting import BOX
from generate_setting import fsc_in_frame, mean_fsc, planted, spread_deg

from sptjax import fourier, generate, rotation
from sptjax._errors import InputError
from sptjax.generate import TreeSettings
from sptjax.generate._maps import raw_maps
from sptjax.generate._material import on_centred_grid, on_grid
from sptjax.generate._pairs import (
    _Band,
    _compare,
    _indices,
    _sampled,
    _table,
    band_of,
    compare_pairs,
)
from sptjax.score import Observations, slice_reference


@pytest.fixture(scope="module")
def grown():
    _, _, _, material = planted()
    settings = TreeSettings(search_vox=2.0)
    return generate.binary_tree(material, np.arange(8), settings, keep_maps=True)


def test_half_ball_values_go_back_to_volumes_and_grids(rng):
    volume = rng.normal(size=(BOX,) * 3).astype(np.float32)
    vectors = fourier.half_ball(9)
    data = fourier.ball_coefficients(jnp.asarray(volume)[None], jnp.asarray(vectors))[0]
    wave = jnp.asarray(vectors, jnp.float32)
    whole = np.fft.fftshift(np.fft.fftn(volume))
    axis = np.arange(BOX) - BOX // 2
    square = axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis**2
    whole[(square > 81) | (square == 0)] = 0
    want = np.fft.ifftn(np.fft.ifftshift(whole)).real
    np.testing.assert_allclose(on_grid(data, wave, BOX), want, atol=2e-6)
    values = rng.uniform(size=len(vectors)).astype(np.float32)
    grid = np.asarray(on_centred_grid(jnp.asarray(values), wave, BOX))
    for (x, y, z), value in zip(vectors[::97], values[::97]):
        assert grid[z + 12, y + 12, x + 12] == value == grid[12 - z, 12 - y, 12 - x]


def test_evidence_is_that_of_the_intersection():
    """NumPy sums over the frequencies that both have, objects as they lie."""
    *_, material = planted()
    objects = material.singles(np.arange(3))
    a, b = objects.data[0].astype(complex), objects.data[1].astype(complex)
    wa, wb = objects.weight[:2].astype(float)
    both = (wa > 0) & (wb > 0)
    assert 0.5 < both.mean() < 0.8
    a, b, wa, wb, s = (x[both] for x in (a, b, wa, wb, material.signal))
    rho = (a.conj() * b).real.sum() / np.sqrt(
        (wb / wa * np.abs(a) ** 2).sum() * (wa / wb * np.abs(b) ** 2).sum()
    )
    count = 2 * material.filled * (s * wa * wb).sum() ** 2 / ((s * wa * wb) ** 2).sum()
    want = np.sign(rho) * np.sqrt(-count * np.log(1 - rho**2))
    found = compare_pairs(material, objects, 0, np.array([1, 0]))
    # the fixed object is read from a table: 3 % where its wedge ends
    assert abs(found[0] - want) < 0.03 * abs(want) + 0.1
    assert found[1] > 5 * abs(found[0])


def test_the_scan_reads_what_the_refinement_reads():
    """Nearest samples against interpolated ones, of a noisy particle with its wedge."""
    *_, material = planted()
    objects, size = material.singles(np.arange(1)), fourier.half_ball_size(6)
    vectors = jnp.asarray(material.vectors[:size], jnp.float32)
    signal = jnp.asarray(material.signal[:size])
    band = _Band(vectors, signal, jnp.float32(material.filled), BOX)
    data, weight = (jnp.asarray(x[0, :size]) for x in (objects.data, objects.weight))
    exact, fast = _table(data, weight, band, 6), _sampled(data, weight, band, 6)
    for turn in rotation.random(jax.random.key(4), 4):
        index = _indices(Observations(data[None], weight[None]), band, turn[None], 6)
        pairs = zip(exact.slices(vectors.T, turn), fast.slices(index[0]))
        for (want, got), least in zip(pairs, (0.98, 0.98, 0.95, 0.99)):
            assert want @ got > least * np.linalg.norm(want) * np.linalg.norm(got)
            assert abs(np.linalg.norm(got) / np.linalg.norm(want) - 1) < 0.1


def test_missing_wedge_counts_on_neither_side():
    """A pair at its true pose: over the intersection the correlation is higher than over all."""
    _, poses, _, material = planted(snr=20.0)
    objects = material.singles(np.arange(8))
    band = _Band(
        jnp.asarray(material.vectors, jnp.float32), jnp.asarray(material.signal),
        jnp.float32(material.filled), BOX,
    )  # fmt: skip
    kmax, gains = band_of(material), []
    for i, j in ((0, 1), (2, 3), (4, 5)):
        table = _table(jnp.asarray(objects.data[i]), jnp.asarray(objects.weight[i]), band, kmax)
        between = rotation.compose(rotation.invert(_pose(poses, i)), _pose(poses, j))
        place = -between.rotation.T @ between.shift
        args = jnp.asarray(objects.data[j]), jnp.asarray(objects.weight[j]), band
        _, rho = _compare(table, *args, between.rotation, place)
        moved = np.asarray(slice_reference(table.data, band.vectors, between.rotation, place, BOX))
        blind = (moved.conj() * objects.data[j]).real.sum() / (
            np.linalg.norm(moved) * np.linalg.norm(objects.data[j])
        )
        gains.append((float(rho), blind))
    seen, blind = np.array(gains).T
    assert seen.min() > 0.85
    assert (seen - blind).min() > 0.1


def _pose(poses, i):
    return jax.tree.map(lambda x: x[i], poses)


def test_tree_pairs_neighbours_and_keeps_even_members_still(grown):
    assert [level.count for level in grown.levels] == [8, 4, 2, 1]
    for level, node in enumerate(([0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 1, 1, 2, 2, 3, 3])):
        assert grown.levels[level].node.tolist() == node
    first = grown.levels[1]
    even = slice(0, 8, 2)
    np.testing.assert_array_equal(first.rotation[even], np.broadcast_to(np.eye(3), (4, 3, 3)))
    last = grown.levels[-1]
    np.testing.assert_array_equal(last.rotation[0], np.eye(3))
    np.testing.assert_allclose(last.rotation @ last.rotation.swapaxes(1, 2), np.broadcast_to(
        np.eye(3), (8, 3, 3)), atol=1e-6)  # fmt: skip


def test_poses_compose_along_the_branches(grown):
    """Two particles of one node keep their relation at every level above it."""
    relation = [level.rotation[2].T @ level.rotation[3] for level in grown.levels[1:]]
    for other in relation[1:]:
        np.testing.assert_allclose(other, relation[0], atol=1e-6)


def test_tree_recovers_the_planted_map(grown):
    truth, poses, _, material = planted()
    result = generate.tree_reference(grown)
    angles = spread_deg(result.rotation, poses)
    assert np.median(angles) < 6
    score = fsc_in_frame(result, truth, poses, np.arange(8))
    at_random = raw_maps(
        material, np.arange(8), np.broadcast_to(np.eye(3), (8, 3, 3)), np.zeros((8, 3)),
        np.zeros(8, int), 1,
    )[0]  # fmt: skip
    assert score > 0.75
    assert score > mean_fsc(at_random, truth) + 0.3


def test_seeds_levels_and_order():
    *_, material = planted()
    assert [generate.largest_power_of_two(n) for n in (2, 3, 4, 7, 8, 9)] == [2, 2, 4, 4, 8, 8]
    stopped = generate.binary_tree(
        material, np.arange(8), TreeSettings(search_vox=2.0, seeds=7, levels=1)
    )
    assert len(stopped.indices) == 4
    assert [level.count for level in stopped.levels] == [4, 2]
    assert stopped.levels[-1].maps.shape == (2, BOX, BOX, BOX)
    with pytest.raises(InputError, match="at least 2 particles"):
        generate.binary_tree(material, np.arange(1), TreeSettings())
