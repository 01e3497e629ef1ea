"""FSC against its definition and EMAN2; corrections and filters against planted signals."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import shells

from sptjax import fourier, masks, resolution


def noise(rng, box):
    return jnp.asarray(rng.normal(size=(box,) * 3), jnp.float32)


def filtered(volume, gain):
    """Multiply by a radial gain of the shells 0 ... n // 2; nothing beyond."""
    box = volume.shape[-1]
    radius = np.linalg.norm(fourier.half_grid(box), axis=-1)
    table = np.interp(radius, np.arange(len(gain)), gain, right=0)
    spectrum = np.fft.rfftn(np.asarray(volume, np.float64)) * table
    return jnp.asarray(np.fft.irfftn(spectrum, volume.shape, axes=(0, 1, 2)), jnp.float32)


def coloured(rng, box, width):
    """Noise with a Gaussian spectrum of the given width in Fourier pixels."""
    return filtered(noise(rng, box), np.exp(-((np.arange(box // 2 + 1) / width) ** 2)))


def test_fsc_has_the_numbers_of_eman2(golden):
    answer = json.loads((golden / "comparators.json").read_text())["fsc"]
    with np.load(golden / "comparators.npz") as volumes:
        curve = resolution.fsc(*(jnp.asarray(volumes[k]) for k in ("ptcl_wedge", "ref_aligned")))
    np.testing.assert_allclose(curve, answer["fsc"], atol=1e-5)
    np.testing.assert_array_equal(2 * resolution._shell_count(24), answer["count"])


@pytest.mark.parametrize("box", [15, 16])
def test_fsc_is_its_definition(rng, box):
    a = noise(rng, box)
    b = noise(rng, box) + a
    expected = shells.fsc(np.asarray(a, np.float64), np.asarray(b, np.float64))
    # partners on the Nyquist plane of an even box weigh twice in the last shell
    last = slice(None, -1) if box % 2 == 0 else slice(None)
    np.testing.assert_allclose(resolution.fsc(a, b)[last], expected[last], atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100), share=st.floats(-1, 1))
def test_fsc_is_symmetric_bounded_and_blind_to_scale(seed, scale, share):
    rng = np.random.default_rng(seed)
    a = noise(rng, 8)
    b = noise(rng, 8) + np.float32(share) * a
    curve = np.asarray(resolution.fsc(a, b))
    np.testing.assert_array_equal(curve, resolution.fsc(b, a))
    np.testing.assert_allclose(resolution.fsc(a * np.float32(scale), b), curve, atol=1e-5)
    np.testing.assert_allclose(resolution.fsc(a, -b), -curve, atol=1e-6)
    assert np.abs(curve).max() <= 1 + 1e-6
    np.testing.assert_allclose(resolution.fsc(a, a), 1, atol=1e-6)


def test_empty_shells_are_nan_in_place(rng):
    """A band-passed map has no power outside its band; the shells keep their index."""
    gain = (np.arange(17) > 2) & (np.arange(17) < 9)
    a, b = noise(rng, 32), noise(rng, 32)
    curve = np.asarray(resolution.fsc(filtered(a, gain), b))
    full = np.asarray(resolution.fsc(a, b))
    np.testing.assert_array_equal(np.isnan(curve[[0, 1, 10, 11, 12, 13, 14, 15, 16]]), True)
    np.testing.assert_allclose(curve[4:8], full[4:8], atol=1e-5)


def test_fsc_of_two_halves_matches_the_planted_snr(rng):
    box, snr = 32, 0.5
    signal = coloured(rng, box, 40.0)
    sd = math.sqrt(1 / snr)
    # the same spectrum for signal and noise: one SNR for all shells
    halves = [signal + np.float32(sd) * coloured(rng, box, 40.0) for _ in range(2)]
    curve = np.asarray(resolution.fsc(*halves))
    expected = snr / (1 + snr)
    error = (1 - expected**2) / np.sqrt(resolution._shell_count(box))
    assert (np.abs(curve - expected) < 5 * error)[3:].all()
    ssnr = np.asarray(resolution.ssnr_from_fsc(jnp.asarray(curve)))
    assert np.abs(ssnr[8:].mean() / (2 * snr) - 1) < 0.2  # the merged map has twice the SNR


@pytest.mark.parametrize("from_shell", [0, 3, 5.5])
def test_phase_randomisation_keeps_amplitudes_and_low_shells(rng, from_shell):
    volume = noise(rng, 16) + 0.5
    random = resolution.phase_randomise(jax.random.key(3), volume, from_shell)
    assert random.dtype == jnp.float32
    before, after = (np.fft.rfftn(np.asarray(v, np.float64)) for v in (volume, random))
    np.testing.assert_allclose(np.abs(after), np.abs(before), atol=1e-3)
    radius = np.linalg.norm(fourier.half_grid(16), axis=-1)
    kept = (radius < from_shell) | (radius == 0)
    np.testing.assert_allclose(after[kept], before[kept], atol=1e-3)
    turn = (after / before)[~kept & (fourier.hermitian_count(16) == 2)]
    assert abs((turn / np.abs(turn)).mean()) < 5 / np.sqrt(turn.size)


def test_phase_randomisation_draws_by_key(rng):
    volume = noise(rng, 8)
    one, same, other = (resolution.phase_randomise(jax.random.key(k), volume, 1) for k in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(resolution.fsc(one, other))[2:].max() < 0.6


def test_correction_removes_the_correlation_made_by_a_tight_mask(rng):
    """Two maps share a smooth blob; beyond it they are independent noise."""
    box = 32
    blob = np.asarray(masks.sphere(box, 3.0, 12.0))
    halves = [jnp.asarray(blob + 0.1 * rng.normal(size=(box,) * 3), jnp.float32) for _ in "ab"]
    mask = masks.sphere(box, 5.0)
    curves = resolution.fsc_corrected(jax.random.key(0), *halves, mask)
    assert np.abs(curves.unmasked[8:]).mean() < 0.15
    assert np.asarray(curves.masked)[8:].mean() > 0.5
    assert abs(np.asarray(curves.corrected)[8:].mean()) < 0.25
    start = int(curves.from_shell)
    assert 2 <= start < 8
    np.testing.assert_array_equal(curves.corrected[: start + 2], curves.masked[: start + 2])
    m, r = (np.asarray(c, np.float64)[start + 2 :] for c in (curves.masked, curves.randomised))
    usable = r < 0.99
    expected = ((m - r) / (1 - r))[usable]
    np.testing.assert_allclose(curves.corrected[start + 2 :][usable], expected, atol=1e-4)


def test_correction_keeps_a_true_signal(rng):
    signal = noise(rng, 32)
    halves = [signal + np.float32(0.8) * noise(rng, 32) for _ in range(2)]
    curves = resolution.fsc_corrected(jax.random.key(0), *halves, masks.sphere(32, 11.0, 5.0))
    np.testing.assert_allclose(curves.corrected[6:], 1 / 1.64, atol=0.2)


STRAIGHT = 1 - np.arange(17) / 16  # falls through 0.143 at shell 13.712, through 0.5 at 8


@pytest.mark.parametrize(
    ("curve", "threshold", "shell"),
    [
        (STRAIGHT, 0.143, 13.712),
        (STRAIGHT, 0.5, 8.0),
        (np.full(17, 0.9), 0.143, 16.0),  # Nyquist
        (np.r_[1.0, np.full(16, 0.1)], 0.143, 0.0),  # starts below: infinitely coarse
        (np.r_[0.0, np.full(8, 1.0), np.zeros(8)], 0.5, 8.5),  # shell 0 is ignored
        (np.r_[np.full(9, 1.0), np.full(8, np.nan)], 0.143, 8.0),  # nothing known beyond
        (np.r_[1, np.nan, np.full(8, 1.0), np.zeros(7)], 0.5, 9.5),
        (np.r_[np.full(5, 0.9), 0.1, np.full(11, 0.9)], 0.5, 4.5),  # the first crossing
    ],
)
def test_resolution_of_known_curves(curve, threshold, shell):
    apix = 2.5
    expected = 32 * apix / shell if shell else math.inf
    assert resolution.resolution_angstrom(curve, apix, threshold) == pytest.approx(expected)
    if not shell:
        assert int(resolution.band_limit(jnp.asarray(curve), threshold)) == 1


@pytest.mark.parametrize(
    ("curve", "limit"),
    [
        (STRAIGHT, 14),
        (np.full(17, 0.9), 17),
        (np.r_[np.full(9, 1.0), np.full(8, np.nan)], 9),
        (np.r_[0.0, np.nan, np.full(8, 1.0), np.zeros(7)], 10),
    ],
)
def test_band_limit_is_the_first_shell_below(curve, limit):
    assert int(resolution.band_limit(jnp.asarray(curve, jnp.float32))) == limit


def test_wiener_gain_follows_the_fsc_and_ends_at_the_limit():
    curve = jnp.asarray(STRAIGHT, jnp.float32)
    gain = np.asarray(resolution.wiener_gain(curve))
    ssnr = np.asarray(resolution.ssnr_from_fsc(curve))
    np.testing.assert_allclose(gain[1:11], (ssnr / (1 + ssnr))[1:11], atol=0.02)
    np.testing.assert_array_equal(gain[14:], 0)
    assert (np.diff(gain) <= 0).all()
    assert np.abs(np.diff(gain)).max() < 0.25  # no cliff
    np.testing.assert_allclose(resolution.wiener_gain(jnp.ones(9)), 1, atol=1e-6)


def test_one_weak_shell_does_not_end_a_map():
    curve = np.full(17, 0.4, np.float32)
    curve[12:] = 0.0
    weak = curve.copy()
    weak[5] = 0.05  # a zero of the contrast transfer, or chance
    gain, clear = (np.asarray(resolution.wiener_gain(jnp.asarray(x))) for x in (weak, curve))
    np.testing.assert_allclose(gain[8:], clear[8:])
    assert 0 < gain[5] < clear[5]
    assert gain[6:11].min() > 0
    weak[5:8] = 0.05  # three in a row do
    np.testing.assert_array_equal(resolution.wiener_gain(jnp.asarray(weak))[6:], 0)


def test_wiener_gain_minimises_the_error_of_the_merged_map(rng):
    box = 32
    signal = coloured(rng, box, 7.0)
    sd = 0.15
    halves = [signal + np.float32(sd) * noise(rng, box) for _ in range(2)]
    merged = 0.5 * (halves[0] + halves[1])
    gain = np.asarray(resolution.wiener_gain(resolution.fsc(*halves)))

    def error(volume):
        return float(((volume - signal) ** 2).sum())

    best = error(filtered(merged, gain))
    assert best < 0.5 * error(merged)
    for cut in range(2, 16):  # no sharp low-pass does better
        assert best < error(filtered(merged, np.arange(box // 2 + 1) < cut))
