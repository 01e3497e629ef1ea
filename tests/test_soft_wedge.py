"""Wedges with soft edges: the model by definition, and fits against planted ranges and edges."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import script_runs
from scipy import special
from test_wedge import ctf, red, tomogram_boxes

from sptjax import io, phantom, simulate, soft_wedge, wedge
from sptjax.soft_wedge import SoftWedge, fit_wedge

LIMIT_DEG, SOFT_VOX = 1.0, 0.25  # what the fit promises at box 32, beside noise
AROUND = wedge.Wedge(-60, 60)


def planted(low, high, soft=0.0, axis="y"):
    return SoftWedge(jnp.float32(low), jnp.float32(high), jnp.float32(soft), axis)


def power_of(volumes):
    total = wedge.accumulate_power(None, np.asarray(volumes, np.float32))
    return wedge.to_centred(total, volumes.shape[-1])


def filtered_noise(rng, count, truth, box=32):
    """Noise whose expected power is the planted share, in the Fourier space of the box."""
    gain = np.sqrt(np.fft.ifftshift(soft_wedge.region(box, truth)))
    noise = np.fft.fftn(rng.normal(size=(count, box, box, box)), axes=(1, 2, 3))
    return np.fft.ifftn(noise * gain, axes=(1, 2, 3)).real


def assert_found(found, low, high, soft=None):
    assert found is not None
    limits = np.array([float(found.wedge.min_deg), float(found.wedge.max_deg)])
    assert (np.abs(limits - [low, high]) < LIMIT_DEG + 2 * found.error_deg).all(), limits
    if soft is not None:
        assert abs(float(found.wedge.soft_vox) - soft) < SOFT_VOX


# ---------------------------------------------------------------- the model


@pytest.mark.parametrize("axis", ["x", "y"])
@pytest.mark.parametrize("limits", [(-60, 60), (-20, 75), (-60, 50)])
def test_sharp_edges_are_those_of_the_sharp_wedge(limits, axis):
    found = soft_wedge.region(33, planted(*limits, axis=axis))
    wanted = wedge.region(33, wedge.Wedge(*limits, axis=axis))
    away = np.abs(found - wanted)
    assert away.max() <= 0.5  # on the edge itself
    assert (away > 1e-3).mean() < 0.005


def test_share_by_definition():
    low, high, soft = np.radians(-40), np.radians(55), 1.3
    rng = np.random.default_rng(0)
    across, beam = rng.uniform(-12, 12, (2, 50))
    first = special.ndtr((beam * np.cos(low) - across * np.sin(low)) / soft)
    last = special.ndtr((across * np.sin(high) - beam * np.cos(high)) / soft)
    wanted = first * last + (1 - first) * (1 - last)
    for sign in (1, -1):  # Friedel mates alike
        x, z = (jnp.asarray(sign * k, jnp.float32) for k in (across, beam))
        found = soft_wedge.sampled_share(planted(-40, 55, 1.3), x, z)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("box", [16, 17])
def test_a_filter_by_the_region_keeps_volumes_real(box):
    values = np.fft.ifftshift(soft_wedge.region(box, planted(-40, 61, 1.2)))
    assert np.abs(np.fft.ifftn(values).imag).max() < 1e-7
    assert values[0, 0, 0] == 1


def test_misfit_is_the_gamma_likelihood_at_its_best_level(rng):
    """Every ring searched for its level by hand."""
    truth, residue = planted(-50, 60, 0.8), jnp.log(jnp.asarray([0.1, 0.05, 0.2], jnp.float32))
    power = soft_wedge.measured(power_of(rng.normal(size=(2, 16, 16, 16))), AROUND)
    share = np.asarray(soft_wedge.sampled_share(truth, power.across, power.beam, 0.4), float)
    rest = np.exp(np.interp(power.place, [0, 0.5, 1], residue))
    shape = 0.02 + share + (1 - share) * rest
    total, count, ring = 0.0, np.asarray(power.count, float), np.asarray(power.ring)
    for r in range(power.rings):
        own = ring == r
        level = np.geomspace(1e-3, 1e3, 20001)[:, None]
        mean = level * shape[own]
        values = np.asarray(power.power, float)[own]
        total += (count[own] * (np.log(mean) + values / mean)).sum(1).min()
    wanted = total / count.sum() - 1  # the term of the data is one per value at the best level
    np.testing.assert_allclose(soft_wedge.misfit(truth, residue, power, 0.4), wanted, atol=1e-5)


def test_misfit_has_gradients(rng):
    power = soft_wedge.measured(power_of(filtered_noise(rng, 2, planted(-60, 60, 0.7))), AROUND)
    residue = jnp.full(3, jnp.log(1e-3), jnp.float32)
    slope = jax.grad(soft_wedge.misfit)(planted(-57, 60, 0.7), residue, power)
    sides = [
        soft_wedge.misfit(planted(-57 + step, 60, 0.7), residue, power) for step in (-0.1, 0.1)
    ]
    assert abs(float(slope.min_deg) - float(sides[1] - sides[0]) / 0.2) < 2e-4
    assert float(slope.min_deg) > 2e-3  # down to the planted -60


# ---------------------------------------------------------------- planted ranges and edges


@pytest.mark.parametrize("tilts", [(-60, 60), (-44, 44), (-60, 50)])
def test_range_of_boxes_cut_from_a_tomogram(rng, tilts):
    for colour in (red, ctf):
        boxes = tomogram_boxes(rng, 32, 2, tilts, colour)
        assert_found(fit_wedge(power_of(boxes)), *tilts, soft=0.0)
        assert_found(fit_wedge(power_of(boxes[:1])), *tilts)  # one particle of pure noise


@pytest.mark.parametrize(
    ("tilts", "soft"),
    [
        ((-60, 60), 0.0),
        ((-45, 45), None),  # sharp, but half of its edge lies on the lattice and counts half
        ((-60, 50), 0.7),
        ((-60, 60), 1.5),
        ((-45, 45), 1.5),
    ],
)
def test_planted_softness(rng, tilts, soft):
    found = fit_wedge(power_of(filtered_noise(rng, 12, planted(*tilts, soft=soft or 0.0))))
    assert_found(found, *tilts, soft=soft)
    assert found is not None
    assert found.fades == (soft is not None and soft > 0.5)


def test_axis_x(rng):
    found = fit_wedge(power_of(filtered_noise(rng, 4, planted(-50, 60, 0.5, "x"))))
    assert found is not None
    assert found.wedge.axis == "x"
    assert_found(found, -50, 60)


def test_a_simulated_series_reaches_half_a_step_past_its_last_tilt():
    geometry = simulate.TiltSeries(-45, 60, 3.0, snr=0.1)
    poses = simulate.random_poses(jax.random.key(1), 8, 2.0)
    map_ = phantom.phantom(32, 0)[None]
    particles = simulate.simulate(map_, np.zeros(8, int), poses, 12.0, geometry, jax.random.key(2))
    assert_found(fit_wedge(power_of(particles)), -46.5, 61.5)


def test_no_wedge_is_none(rng):
    assert fit_wedge(power_of(rng.normal(size=(4, 24, 24, 24)))) is None


def test_errors_are_those_of_repeated_draws(rng):
    """One particle each: the scatter of the limits against the stated errors."""
    limits, stated = [], []
    for _ in range(12):
        found = fit_wedge(power_of(filtered_noise(rng, 1, planted(-60, 50))))
        assert found is not None
        limits.append([float(found.wedge.min_deg), float(found.wedge.max_deg)])
        stated.append(found.error_deg)
    ratio = np.sqrt(np.var(limits, axis=0, ddof=1).mean() / np.square(stated).mean())
    assert 0.5 < ratio < 2  # standard error of the ratio: 0.15


def test_words():
    found = soft_wedge.Fitted(planted(-60.04, 50.3, 0.72), np.array([0.312, 0.03]))
    wanted = "tilts -60.0 ± 0.31 to 50.3 ± 0.03 degrees about y, edges 0.72 voxels soft"
    assert found.describe() == wanted


def test_option_value_fit(rng, tmp_path):
    path = tmp_path / "particles.hdf"
    io.write_hdf(path, list(filtered_noise(rng, 3, planted(-60, 50)).astype(np.float32)), 10.0)
    said, inputs = [], script_runs.load("_inputs")
    particles = inputs.open_particles(str(path), 0.0, 0)
    sampling = inputs.find_sampling("fit", False, particles, said.append)
    assert re.fullmatch(r"--wedge=fit: tilts -\d\d.* to \d\d.* voxels soft", said[0])
    wanted = wedge.region(32, wedge.Wedge(-60, 50))
    assert np.abs(sampling.shared - wanted).mean() < 0.02
    assert not sampling.premultiplied
    noise = tmp_path / "noise.hdf"
    io.write_hdf(noise, list(rng.normal(size=(3, 32, 32, 32)).astype(np.float32)), 10.0)
    none = inputs.find_sampling(
        "fit", False, inputs.open_particles(str(noise), 0.0, 0), said.append
    )
    assert (none.shared == 1).all()
    assert said[1].startswith("--wedge=fit: no missing wedge found")


def test_soft_region_is_nearer_to_the_published_weights(shared_data):
    """Doses and contrast transfer let real weights fade towards the last tilts."""
    with io.open_stack(shared_data / "real_ribosomes" / "particles.hdf") as stack:
        particles = np.asarray(stack.read(np.arange(40)))
    with io.open_stack(shared_data / "real_ribosomes" / "weights.hdf") as stack:
        weights = np.asarray(stack.read(np.arange(0, 40, 10)))
    radius = np.linalg.norm(np.indices((32,) * 3) - 16, axis=0)
    ball, shell = (radius > 3) & (radius < 14), np.rint(radius).astype(int)
    gain = []
    for series, weight in enumerate(weights):
        mean = np.bincount(shell.ravel(), weight.ravel()) / np.bincount(shell.ravel())
        relative = (weight / np.maximum(mean[shell], 1e-30))[ball]
        power = power_of(particles[10 * series : 10 * series + 10])
        fitted, sharp = fit_wedge(power), wedge.estimate(power).wedge
        assert fitted is not None
        assert sharp is not None
        grids = soft_wedge.region(32, fitted.wedge), wedge.region(32, sharp)
        soft, hard = (np.corrcoef(relative, grid[ball])[0, 1] for grid in grids)
        gain.append(soft - hard)
    assert np.mean(gain) > 0.01  # -0.006, 0.033, 0.030, 0.043
