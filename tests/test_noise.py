"""Noise power: the averages by their definition, and from simulated stacks of coloured noise."""

import numpy as np
import pytest

from sptjax import fourier
from sptjax.noise import ENOUGH, noise_power

VECTORS = fourier.half_ball(6)
KX, KY, KZ = VECTORS.T.astype(float)
# the shape of back-projected noise: stronger along the beam, the same on both sides of the tilt
POWER = (3 + 2 * np.cos(0.4 * KZ) + 0.5 * np.abs(KY)) * np.exp(-0.1 * np.hypot(KX, KZ))
WEDGE = (np.abs(KZ) <= 1.8 * np.abs(KX)).astype(float)


def mean_power(rng, power, count):
    """Mean of ``|P|^2`` over a stack of complex noise: exponential of that mean."""
    return power * rng.exponential(size=(count, len(power))).mean(0)


@pytest.mark.parametrize("mirror_beam", [True, False])
def test_mirror_images_are_averaged_and_nothing_else(mirror_beam, rng):
    """Against a loop over frequencies; enough particles, so no smoothing."""
    power, sampling = rng.uniform(1, 9, (2, len(VECTORS)))
    given = {}
    for k, p, s in zip(VECTORS, power, sampling):
        given[tuple(k)] = given[tuple(-k)] = (p, s)
    want = []
    for x, y, z in VECTORS:
        images = [(x, y, z), (x, -y, z)] + mirror_beam * [(x, y, -z), (x, -y, -z)]
        total = np.sum([given[image] for image in images], axis=0)
        want.append(total[0] / total[1])
    got = noise_power(power, sampling, VECTORS, int(ENOUGH), mirror_beam=mirror_beam)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert got.dtype == np.float32


def test_estimate_from_many_particles_is_as_good_as_counting_allows(rng):
    count = 500
    got = noise_power(mean_power(rng, POWER * WEDGE, count), WEDGE, VECTORS, count)
    seen = WEDGE > 0
    general = seen & (KX * KY * KZ != 0)  # four independent mirror images
    ratio = got / POWER - 1
    error = 1 / np.sqrt(4 * count)
    assert np.sqrt(np.mean(ratio[general] ** 2)) == pytest.approx(error, rel=0.25)
    assert abs(ratio[general].mean()) < 5 * error / np.sqrt(general.sum() / 4)
    assert np.abs(ratio[seen]).max() < 5 / np.sqrt(count)  # on an axis all four are one
    np.testing.assert_array_equal(got[~seen], 1)


def test_sampling_divides_the_power(rng):
    """CTF-like weights: particles carry W N, the estimate is N."""
    count, weight = 2000, 0.2 + 3 * np.sin(0.7 * np.hypot(KX, KY)) ** 2
    got = noise_power(mean_power(rng, POWER * weight, count), weight, VECTORS, count)
    np.testing.assert_allclose(got / POWER, 1, atol=5 / np.sqrt(count))


def test_few_particles_are_smoothed(rng):
    """Three particles leave a plain ratio uncertain by 30 %; smoothing takes most of it away."""
    count, slow = 3, POWER**0.3
    estimates = [
        noise_power(mean_power(rng, slow * WEDGE, count), WEDGE, VECTORS, count) for _ in range(20)
    ]
    inside = (WEDGE > 0) & (np.linalg.norm(VECTORS, axis=1) > 2)
    ratio = np.stack(estimates)[:, inside] / slow[inside]
    plain = 1 / np.sqrt(4 * count)
    assert ratio.std(0).mean() < 0.4 * plain
    assert abs(ratio.mean() - 1) < 0.05  # and it does not shift the level


def test_estimates_stay_positive():
    power = np.where(np.arange(len(VECTORS)) % 50 == 0, 0.0, 1.0)
    got = noise_power(power, np.ones(len(VECTORS)), VECTORS, 10_000)
    assert got.min() > 0
    empty = noise_power(0 * power, 0 * power, VECTORS, 10_000)
    np.testing.assert_array_equal(empty, 1)
