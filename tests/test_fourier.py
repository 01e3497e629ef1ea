"""The Fourier convention against direct sums and NumPy's full transforms."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.score import transform as direct_sums

from sptjax import fourier

BOXES = (12, 13)  # even and odd


def centred(volume):
    return np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(volume)))


def radius(box):
    """``|k|`` on the centred grid of the full transform."""
    k = np.arange(box) - box // 2
    return np.sqrt((k[:, None, None] ** 2 + k[:, None] ** 2 + k**2).astype(float))


def gaussian(box, width, place=(0.0, 0.0, 0.0)):
    """Gaussian at ``place`` (x, y, z) from the centre voxel."""
    axis = np.arange(box) - box // 2
    x, y, z = (np.exp(-0.5 * ((axis - p) / width) ** 2) for p in place)
    return z[:, None, None] * y[:, None] * x


# ---------------------------------------------------------------- half ball


@settings(deadline=None, max_examples=25)
@given(st.floats(1, 7), st.floats(1, 7))
def test_a_lower_band_is_a_prefix_of_a_higher_one(a, b):
    low, high = sorted((a, b))
    small = fourier.half_ball(low)
    np.testing.assert_array_equal(fourier.half_ball(high)[: len(small)], small)
    assert len(small) == fourier.half_ball_size(low)


@settings(deadline=None, max_examples=25)
@given(st.floats(1, 6), st.floats(1, 6))
def test_half_ball_holds_one_of_every_friedel_pair(a, b):
    low, high = sorted((a, b))
    half = fourier.half_ball(high, low).astype(int)
    both = [tuple(k) for k in half] + [tuple(-k) for k in half]
    r = radius(15).ravel()
    count = np.sum((r <= high + 1e-9) & (r >= low - 1e-9))
    assert len(set(both)) == len(both) == count  # no pair twice, none left out
    assert (half[:, 0] >= 0).all()
    assert (np.diff((half**2).sum(1)) >= 0).all()


@pytest.mark.parametrize("box", BOXES)
def test_ball_coefficients_are_the_sums_of_the_definition(box, rng):
    volumes = rng.normal(size=(2, box, box, box)).astype(np.float32)
    vectors = fourier.half_ball(box / 2)
    got = np.asarray(fourier.ball_coefficients(jnp.asarray(volumes), jnp.asarray(vectors)))
    want = np.stack([direct_sums(v, vectors) for v in volumes])
    np.testing.assert_allclose(got, want, atol=2e-6 * box**3)  # eps * sum |f|


@pytest.mark.parametrize("box", BOXES)
def test_ball_samples_read_the_centred_grid(box):
    k = np.arange(box) - box // 2
    kz, ky, kx = np.meshgrid(k, k, k, indexing="ij")
    vectors = fourier.half_ball(box // 2 - 1)
    grid = jnp.asarray((kx + 100 * ky + 10_000 * kz)[None], jnp.float32)
    got = fourier.ball_samples(grid, jnp.asarray(vectors))
    np.testing.assert_array_equal(got[0], vectors @ np.array([1, 100, 10_000]))


# ---------------------------------------------------------------- grids and shells


@pytest.mark.parametrize("box", BOXES)
def test_half_grid_names_every_voxel_of_rfftn(box, rng):
    """A plane wave of each frequency puts all its power at the voxel that the grid names."""
    grid = fourier.half_grid(box)
    x = np.stack(np.meshgrid(*[np.arange(box)] * 3, indexing="ij")[::-1], -1)
    for place in rng.integers(0, (box, box, box // 2 + 1), (5, 3)):
        k = grid[tuple(place)]
        wave = np.cos(2 * np.pi / box * (x @ k)).astype(np.float32)
        power = np.abs(np.asarray(fourier.rfftn(jnp.asarray(wave))))
        assert power[tuple(place)] > 0.49 * box**3


@pytest.mark.parametrize("box", BOXES)
def test_centre_phase_moves_the_origin_to_the_centre_voxel(box):
    volume = np.zeros((box,) * 3, np.float32)
    volume[(box // 2,) * 3] = 1.0  # a point at the origin: coefficients 1 without phases
    phase = fourier.centre_phase(jnp.asarray(fourier.half_grid(box), jnp.float32), box)
    flat = np.asarray(fourier.rfftn(jnp.asarray(volume)) * phase)
    np.testing.assert_allclose(flat, 1, atol=1e-5)
    full = np.asarray(fourier.fft_centred(jnp.asarray(volume)))
    np.testing.assert_allclose(full, 1, atol=1e-5)


@pytest.mark.parametrize("box", BOXES)
def test_shell_means_equal_those_of_the_full_transform(box, rng):
    volume = rng.normal(size=(box,) * 3).astype(np.float32)
    power = jnp.abs(fourier.rfftn(jnp.asarray(volume))) ** 2
    got = np.asarray(fourier.shell_mean(power, box))
    shells = np.rint(radius(box)).astype(int).ravel()
    full = (np.abs(centred(volume)) ** 2).ravel()
    want = np.bincount(shells, full) / np.bincount(shells)
    np.testing.assert_allclose(got, want[: box // 2 + 1], rtol=1e-5)
    assert fourier.hermitian_count(box).sum() == box**3


@pytest.mark.parametrize("box", BOXES)
def test_radial_filter_multiplies_the_full_transform(box, rng):
    volume = rng.normal(size=(2, box, box, box)).astype(np.float32)
    gain = rng.uniform(0.5, 2, box // 2 + 1).astype(np.float32)
    got = np.asarray(fourier.radial_filter(jnp.asarray(volume), jnp.asarray(gain)))
    table = np.interp(radius(box), np.arange(len(gain)), gain, right=0.0)
    for g, v in zip(got, volume):
        want = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(centred(v) * table)).real)
        np.testing.assert_allclose(g, want, atol=2e-5)


# ---------------------------------------------------------------- resampling


@pytest.mark.parametrize("old", [24, 25])
@pytest.mark.parametrize("new", [18, 19, 36, 37])
def test_resampled_gaussian_is_the_gaussian_of_the_other_voxel_size(old, new):
    place = np.array([1.5, -2.0, 0.5])  # smooth: nothing beyond Nyquist of the smaller box
    got = fourier.fourier_resample(jnp.asarray(gaussian(old, 2.5, place), jnp.float32), new)
    want = gaussian(new, 2.5 * new / old, place * new / old)
    np.testing.assert_allclose(got, want, atol=2e-3)


@settings(deadline=None, max_examples=12)
@given(st.sampled_from([10, 11]), st.sampled_from([8, 15]), st.integers(0, 99))
def test_resampling_keeps_the_mean_and_every_shared_frequency(old, new, seed):
    volume = np.random.default_rng(seed).normal(size=(old,) * 3).astype(np.float32)
    got = np.asarray(fourier.fourier_resample(jnp.asarray(volume), new))
    assert got.mean() == pytest.approx(volume.mean(), abs=1e-6)
    vectors = fourier.half_ball((min(old, new) - 1) // 2)
    before, after = direct_sums(volume, vectors), direct_sums(got, vectors)
    np.testing.assert_allclose(after / new**3, before / old**3, atol=2e-6)
