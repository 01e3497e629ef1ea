"""Classes at fixed poses: coefficients against an explicit transform, planted mixtures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from memory_stack import Memory

from sptjax import classify, fourier, simulate
from sptjax.classify import AlignedBand, align_band, split
from sptjax.particles import Sampling
from sptjax.tilt_series import TiltSeries, sampled_region

BOX = 16


def mixture(rng, sizes, size=600, difference=0.25, snr=0.08):
    """Whitened coefficients of classes that share most of their map, wedges at random."""
    normal = lambda *s: (rng.normal(size=s) + 1j * rng.normal(size=s)) / np.sqrt(2)  # noqa: E731
    shared = normal(size)
    maps = [np.sqrt(snr) * (shared + np.sqrt(difference) * normal(size)) for _ in sizes]
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    weight = (rng.random((len(labels), size)) < 0.7).astype(np.float32)
    data = weight * (np.stack(maps)[labels] + normal(len(labels), size))
    signal = np.full(size, snr, np.float32)
    band = AlignedBand(jnp.asarray(data, jnp.complex64), jnp.asarray(weight), jnp.asarray(signal))
    return band, labels


def agreement(found, labels):
    """Fraction right under the best naming of two classes."""
    right = np.mean(found == labels)
    return max(right, 1 - right)


def test_coefficients_of_unmoved_particles_are_their_transforms(rng):
    volumes = rng.normal(size=(5, BOX, BOX, BOX)).astype(np.float32)
    grid = np.ones((BOX,) * 3, np.float32)
    grid[:, :, 5] = grid[:, :, 11] = 0  # kx = -3 and 3 are missing
    identity = np.broadcast_to(np.eye(3, dtype=np.float32), (5, 3, 3))
    band = align_band(
        Memory(volumes), Sampling(grid), np.arange(5), identity, np.zeros((5, 3), np.float32), 5
    )
    vectors = fourier.half_ball(5)
    shifted = np.fft.fftshift(
        np.fft.fftn(np.fft.ifftshift(volumes, (1, 2, 3)), axes=(1, 2, 3)), (1, 2, 3)
    )
    index = vectors[:, ::-1] + BOX // 2
    wanted = shifted[:, index[:, 0], index[:, 1], index[:, 2]]
    seen = np.abs(vectors[:, 0]) != 3
    assert np.array_equal(np.asarray(band.weight) > 0.5, np.tile(seen, (5, 1)))
    got = np.asarray(band.data)
    assert np.abs(got[:, ~seen]).max() < 0.03  # of unit power: spline interpolation
    for shell in range(1, 6):
        here = seen & (np.rint(np.linalg.norm(vectors, axis=1)) == shell)
        assert np.mean(np.abs(got[:, here]) ** 2) == pytest.approx(1, rel=0.02)
        scale = np.vdot(wanted[:, here], got[:, here]) / np.sum(np.abs(wanted[:, here]) ** 2)
        assert abs(scale.imag) < 0.01 * scale.real
        rest = got[:, here] - scale * wanted[:, here]
        assert np.linalg.norm(rest) < 0.02 * np.linalg.norm(got[:, here])


def test_coefficients_follow_the_poses(rng):
    """Particles made from one map by known poses have the same coefficients in its frame."""
    map_ = np.asarray(simulate.phantom(BOX, 0))
    pose = simulate.random_poses(jax.random.key(1), 4, 1.5)
    geometry = TiltSeries(-60, 60, 3, snr=1e6)
    volumes = np.asarray(
        simulate.white_wedge_particles(
            jnp.asarray(map_)[None], jnp.zeros(4, int), pose, geometry, jax.random.key(2)
        )
    )
    region = sampled_region(BOX, geometry).astype(np.float32)
    band = align_band(
        Memory(volumes),
        Sampling(region),
        np.arange(4),
        np.asarray(pose.rotation),
        np.asarray(pose.shift),
        4,
    )
    weight, data = np.asarray(band.weight), np.asarray(band.data)
    both = (weight[0] > 0.9) & (weight[1] > 0.9)
    assert both.sum() > 30

    def correlation(a, b):
        return np.vdot(a, b).real / np.sqrt(np.vdot(a, a) * np.vdot(b, b)).real

    assert correlation(data[0, both], data[1, both]) > 0.9
    still = np.broadcast_to(np.eye(3, dtype=np.float32), (4, 3, 3))
    unmoved = align_band(
        Memory(volumes), Sampling(region), np.arange(4), still, np.zeros((4, 3), np.float32), 4
    ).data
    assert correlation(np.asarray(unmoved)[0], np.asarray(unmoved)[1]) < 0.6


def test_planted_classes_are_found(rng):
    band, labels = mixture(rng, (70, 50), difference=0.35)
    found = split(band, 2, key=jax.random.key(0))
    assert agreement(found.classes, labels) > 0.95
    assert found.gain > 0.5
    assert np.allclose(found.responsibility.sum(1), 1, atol=1e-4)


def test_three_classes_are_found(rng):
    band, labels = mixture(rng, (50, 50, 50), difference=0.4)
    found = split(band, 3, key=jax.random.key(0)).classes
    table = np.array([[np.sum((found == i) & (labels == j)) for j in range(3)] for i in range(3)])
    assert table.max(0).sum() > 0.93 * len(labels)
    assert len(set(table.argmax(0))) == 3


def test_chance_groups_are_told_from_classes(rng):
    """Two groups of one kind gain something too, but no more than without any differences."""
    alone, _ = mixture(rng, (100,))
    both, _ = mixture(rng, (50, 50), difference=0.35)
    chance, real = (split(band, 2, key=jax.random.key(0)) for band in (alone, both))
    assert not chance.supported
    assert real.supported
    assert real.gain > 1.5 * real.chance


def test_leaving_particles_out_is_what_finds_weak_classes(rng):
    """The likelihood that keeps a particle in its own class average stays near its start."""
    band, labels = mixture(rng, (60, 60))
    left_out = split(band, 2, key=jax.random.key(0)).classes
    data, weight = np.asarray(band.data), np.asarray(band.weight)
    own = rng.integers(0, 2, len(labels))
    for _ in range(30):
        score = []
        for c in (0, 1):
            model = data[own == c].sum(0) / (weight[own == c].sum(0) + 1)
            score.append((2 * (data.conj() * model).real - weight * np.abs(model) ** 2).sum(1))
        own = np.argmax(score, 0)
    assert agreement(left_out, labels) > agreement(own, labels) + 0.2


def test_the_band_follows_the_memory():
    assert classify.widest_band(100, 64) == 30
    many = classify.widest_band(1_000_000, 64)
    assert 4 <= many < 8
