"""PCA of posed particles: SVD where nothing is missing, planted states where a wedge is."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from memory_stack import Memory

from sptjax import fourier, masks, pca, simulate
from sptjax._errors import InputError
from sptjax.classify import AlignedBand, align_band
from sptjax.particles import Sampling
from sptjax.tilt_series import TiltSeries, sampled_region

BOX, KMAX = 24, 8


def band_of(data, weight=None, signal=1.0):
    weight = np.ones(data.shape) if weight is None else weight
    signal = np.full(data.shape[1], signal)
    return AlignedBand(
        jnp.asarray(data, jnp.complex64),
        jnp.asarray(weight, jnp.float32),
        jnp.asarray(signal, jnp.float32),
    )


def real_rows(coefficients):
    return np.sqrt(2) * np.concatenate([coefficients.real, coefficients.imag], 1)


def normal(rng, *shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)


def accuracy(found, labels):
    """Share right under the best naming."""
    names = itertools.permutations(range(labels.max() + 1))
    return max(np.mean(np.array(p)[found] == labels) for p in names)


def test_complete_data_give_the_singular_value_decomposition(rng):
    n, size = 40, 300
    planted = normal(rng, n, 3) * [6, 3, 1.5]
    data = normal(rng, size) + planted.real @ normal(rng, 3, size) + 0.3 * normal(rng, n, size)
    found = pca.fit(band_of(data), 3, key=jax.random.key(0), variation=None, rounds=100)
    rows = real_rows(data)
    u, s, vt = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    basis = real_rows(found.basis)
    assert np.allclose(basis @ basis.T, np.eye(3), atol=1e-4)
    assert np.abs(np.sum(basis * vt[:3], 1)) == pytest.approx(1, abs=2e-3)
    wanted = u[:, :3] * s[:3]
    signs = np.sign(np.sum(found.coordinates * wanted, 0))
    error = found.coordinates * signs - wanted
    assert np.linalg.norm(error, axis=0) / s[:3] == pytest.approx(0, abs=0.03)
    assert found.variance == pytest.approx(s[:3] ** 2 / n, rel=0.05)
    assert found.share == pytest.approx(s[:3] ** 2 / np.sum(s**2), rel=0.07)
    assert np.abs(found.mean - data.mean(0)).max() < 0.1 * np.abs(data.mean(0)).max()
    correlation = np.corrcoef(found.coordinates.T)
    assert np.abs(correlation - np.eye(3)).max() < 0.02


def test_what_is_missing_does_not_matter(rng):
    """Values under a weight of zero may be anything."""
    data, seen = normal(rng, 40, 300), rng.random((40, 300)) < 0.6
    fits = [
        pca.fit(band_of(np.where(seen, data, other), seen), 3, key=jax.random.key(0), rounds=8)
        for other in (0, 1e3)
    ]
    assert np.allclose(fits[0].coordinates, fits[1].coordinates, atol=1e-3)
    assert np.allclose(fits[0].basis, fits[1].basis, atol=1e-4)


def test_planted_coordinates_are_found_behind_wedges(rng):
    """Coordinates correlate with the planted ones although every particle lacks half."""
    n, size = 80, 500
    planted = rng.normal(size=(n, 1))
    seen = np.zeros((n, size))
    for i, first in enumerate(rng.integers(0, size, n)):  # a different half for everyone
        seen[i, (first + np.arange(size // 2)) % size] = 1
    shared = 5 * normal(rng, size)  # a strong mean: its absence must not pass for a difference
    data = seen * (shared + planted * 0.5 * normal(rng, 1, size) + normal(rng, n, size))
    aware, blind = (
        pca.fit(band, 1, key=jax.random.key(0)).coordinates[:, 0]
        for band in (band_of(data, seen), band_of(data))
    )
    agreement = [abs(np.corrcoef(x, planted[:, 0])[0, 1]) for x in (aware, blind)]
    assert agreement[0] > 0.95
    assert agreement[1] < 0.3


@pytest.fixture(scope="module")
def states():
    """Bands of posed particles in two and in three states, with a wedge of 80 degrees missing."""
    n, found = 96, {}
    maps = jnp.asarray(np.stack([simulate.phantom(BOX, kind) for kind in (0, 2, 1)]))
    geometry = TiltSeries(-50, 50, 5, snr=0.05)
    poses = simulate.random_poses(jax.random.key(1), n, 1.5)
    for name, count in (("two", 2), ("three", 3)):
        labels = np.arange(n) % count
        volumes = simulate.white_wedge_particles(
            maps, jnp.asarray(labels), poses, geometry, jax.random.key(2)
        )
        found[name] = (
            align_band(
                Memory(np.asarray(volumes)),
                Sampling(sampled_region(BOX, geometry).astype(np.float32)),
                np.arange(n),
                np.asarray(poses.rotation),
                np.asarray(poses.shift),
                KMAX,
            ),
            labels,
        )
    return found


@pytest.mark.parametrize(("name", "margin"), [("two", 0.3), ("three", 0.15)])
def test_states_behind_wedges_are_told_apart(states, name, margin):
    """Wedge-aware: nearly all right. Missing coefficients taken for zeros: a margin less."""
    band, labels = states[name]
    count = labels.max() + 1
    blind = dataclasses.replace(band, weight=jnp.ones_like(band.weight))
    right = []
    for each in (band, blind):
        coordinates = pca.fit(each, count, key=jax.random.key(0)).coordinates
        right.append(accuracy(pca.kmeans(coordinates, count, seed=0), labels))
    assert right[0] > 0.93
    assert right[1] < right[0] - margin


def test_a_mask_confines_the_eigenvolumes(states):
    band, labels = states["two"]
    mask, vectors = masks.sphere(BOX, 8, 2), fourier.half_ball(KMAX)
    space = pca.MaskedSpace(mask, KMAX)
    plain, masked = (pca.fit(band, 2, key=jax.random.key(0), space=own) for own in (None, space))

    def outside(found):
        box = 2 * (KMAX + 1)
        volumes = fourier.from_ball(jnp.asarray(found.basis), jnp.asarray(vectors), box)
        small = np.asarray(fourier.fourier_resample(mask, box))
        power = np.asarray(volumes) ** 2
        return power[:, small < 0.05].sum() / power.sum()

    assert outside(masked) < 0.05 < outside(plain)
    assert accuracy(pca.kmeans(masked.coordinates, 2, seed=0), labels) > 0.95


def test_volumes_of_a_ball_have_its_coefficients(rng):
    vectors = jnp.asarray(fourier.half_ball(5))
    values = normal(rng, 2, len(vectors)).astype(np.complex64)
    for box in (12, 16):
        volumes = fourier.from_ball(jnp.asarray(values), vectors, box)
        again = np.asarray(fourier.ball_coefficients(volumes, vectors))
        assert np.allclose(again, values, atol=1e-4)
        power = np.sum(np.asarray(volumes) ** 2) * box**3
        assert power == pytest.approx(2 * np.sum(np.abs(values) ** 2), rel=1e-4)


def test_kmeans_finds_clusters_the_largest_first(rng):
    centres = np.array([[0, 0], [5, 0], [0, 5], [5, 5]])
    labels = np.repeat(np.arange(4), [10, 40, 20, 30])
    points = centres[labels] + 0.3 * rng.normal(size=(100, 2))
    found = pca.kmeans(points, 4, seed=3)
    assert accuracy(found, labels) == 1
    assert np.bincount(found).tolist() == [40, 30, 20, 10]
    assert np.array_equal(found, pca.kmeans(points, 4, seed=3))


def test_impossible_counts_are_refused(rng):
    band = band_of(normal(rng, 5, 20))
    for count in (0, 5):
        with pytest.raises(InputError, match=f"{count} components: from 1 to 4"):
            pca.fit(band, count, key=jax.random.key(0))
    for count, points in ((4, rng.normal(size=(3, 2))), (2, np.zeros((3, 2))), (0, np.eye(3))):
        with pytest.raises(InputError, match=f"{count} classes cannot be made of 3"):
            pca.kmeans(points, count, seed=0)


def test_differences_outside_a_mask_are_taken_away(rng):
    """Complete particles: the difference from the mean is multiplied by the mask."""
    box = 2 * (KMAX + 1)
    axis = np.arange(box) - box // 2
    mask = np.exp(-(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2) / 30).astype(
        np.float32
    )
    volumes = rng.normal(size=(6, box, box, box)).astype(np.float32)
    vectors = jnp.asarray(fourier.half_ball(KMAX))
    data = fourier.ball_coefficients(jnp.asarray(volumes), vectors)
    found = pca.confined(band_of(data), pca.MaskedSpace(jnp.asarray(mask), KMAX))
    banded = np.asarray(fourier.from_ball(data, vectors, box))
    mean = banded.sum(0) / 7  # one particle's worth of nothing besides the six
    again = fourier.ball_coefficients(jnp.asarray(mask * (banded - mean)), vectors)
    wanted = np.asarray(data).sum(0) / 7 + np.asarray(again)
    assert np.allclose(np.asarray(found.data), wanted, atol=3e-3 * np.abs(wanted).max())
