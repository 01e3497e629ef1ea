"""Three-dimensional noise power of a stack of particles.

Noise after back-projection is neither white nor radial: it follows the tilt geometry and the
CTF. At the signal-to-noise ratios of tomography the mean power of the particles, over random
orientations, is that noise (plus a little isotropic signal). It is measured per unit of
sampling on the half ball, averaged over the mirror images that a single tilt axis makes
equivalent, and smoothed where few particles leave it uncertain.
"""

import numpy as np
from scipy import ndimage

ENOUGH = 400.0  # independent values per frequency above which no smoothing is needed


def noise_power(
    mean_power: np.ndarray,
    mean_sampling: np.ndarray,
    vectors: np.ndarray,
    count: int,
    *,
    mirror_beam: bool = True,
) -> np.ndarray:
    """Noise power per unit of sampling.

    Args:
        mean_power: mean of ``|P|^2`` over the stack at the half-ball frequencies, ``[K]``.
        mean_sampling: mean sampling weight there (wedge or sum of CTF^2), ``[K]``.
        vectors: half-ball frequencies (kx, ky, kz), ``[K, 3]``, tilt axis y, beam z.
        count: particles that were averaged.
        mirror_beam: also average over ``kz -> -kz`` (a tilt range symmetric about zero).

    Returns:
        float32 ``[K]``, positive everywhere (1 where nothing is sampled).
    """
    reach = int(np.abs(vectors).max())
    side = 2 * reach + 1
    power, sampling = np.zeros((2, side, side, side))
    for sign in (1, -1):
        z, y, x = (sign * vectors[:, ::-1] + reach).T
        power[z, y, x] = mean_power
        sampling[z, y, x] = mean_sampling
    for axis in (1, 0) if mirror_beam else (1,):
        power = power + np.flip(power, axis)
        sampling = sampling + np.flip(sampling, axis)
    independent = count * (4 if mirror_beam else 2)
    if independent < ENOUGH:
        sigma = 0.5 * (ENOUGH / independent) ** (1 / 3)
        seen = sampling > 1e-6 * sampling.max()
        power = ndimage.gaussian_filter(np.where(seen, power, 0.0), sigma, mode="constant")
        sampling = ndimage.gaussian_filter(np.where(seen, sampling, 0.0), sigma, mode="constant")
    z, y, x = (vectors[:, ::-1] + reach).T
    power, sampling = power[z, y, x], sampling[z, y, x]
    floor = max(1e-6 * sampling.max(), np.finfo(np.float64).tiny)
    ratio = np.where(sampling > floor, power / np.maximum(sampling, floor), 0.0)
    known = ratio > 0
    if not known.any():
        return np.ones(len(vectors), np.float32)
    lowest = 1e-3 * np.median(ratio[known])
    return np.where(known, np.maximum(ratio, lowest), 1.0).astype(np.float32)
