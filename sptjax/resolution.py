"""Fourier shell correlation, and what is read from it.

An FSC curve has one value per shell ``round(|k|) = 0 ... n // 2`` in Fourier pixels, so shell
``s`` lies at ``n * apix / s`` angstrom. A shell in which a map has no power is NaN.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from . import fourier
from ._types import Volume

Curve = Float[Array, " s"]


class CorrectedFSC(NamedTuple):
    """FSC of two half maps inside a mask, corrected for the correlation made by the mask."""

    unmasked: Curve
    masked: Curve
    randomised: Curve  # masked, after randomising the phases from the shell below on
    corrected: Curve
    from_shell: Int[Array, ""]


@jax.jit
def fsc(a: Volume, b: Volume) -> Curve:
    """Fourier shell correlation ``sum Re F G* / sqrt(sum |F|^2 sum |G|^2)`` of every shell.

    The numbers of EMAN2's ``calc_fourier_shell_correlation``. Friedel partners count once. A
    shell is empty, and NaN, where the mean power of either map is at the level of
    single-precision rounding (1e-12 of its mean over all voxels); EMAN2 moves the later
    shells forward instead.

    Args:
        a: map ``[n, n, n]``.
        b: map of the same box.

    Returns:
        ``[n // 2 + 1]``, shell 0 (the mean densities) included.
    """
    box = a.shape[-1]
    f, g = fourier.rfftn(a), fourier.rfftn(b)
    cross = _shell_sum(f.real * g.real + f.imag * g.imag, box)
    powers = [_shell_sum(x.real**2 + x.imag**2, box) for x in (f, g)]
    count = jnp.asarray(_shell_count(box))
    full = jnp.ones(cross.shape, bool)
    for power, volume in zip(powers, (a, b)):
        # Parseval: the mean power of a Fourier voxel is the sum of the squared densities
        full &= power > 1e-12 * (volume * volume).sum() * count
    product = jnp.sqrt(powers[0]) * jnp.sqrt(powers[1])
    return jnp.where(full, cross / jnp.where(full, product, 1), jnp.nan)


def fsc_masked(a: Volume, b: Volume, mask: Volume) -> Curve:
    """FSC of two maps multiplied by a mask, as :func:`fsc`.

    Args:
        a: map ``[n, n, n]``.
        b: map of the same box.
        mask: same box, 0 to 1.
    """
    return fsc(a * mask, b * mask)


@jax.jit
def phase_randomise(
    key: PRNGKeyArray, volume: Volume, from_shell: float | Float[Array, ""]
) -> Volume:
    """Replace the phases of all frequencies ``|k| >= from_shell`` by uniform random ones.

    The phases are those of real white noise, so Hermitian symmetry holds exactly, amplitudes
    are kept and the result is real. The mean density is never touched.
    EMAN2: ``filter.lowpass.randomphase``.

    Args:
        key: consumed.
        volume: ``[z, y, x]``.
        from_shell: Fourier pixels; ``n * apix / d`` for a resolution of ``d`` angstrom.
    """
    box = volume.shape[-1]
    spectrum = fourier.rfftn(volume)
    noise = fourier.rfftn(jax.random.normal(key, volume.shape, volume.dtype))
    amplitude, angle = jnp.abs(spectrum), jnp.angle(noise)
    scrambled = lax.complex(amplitude * jnp.cos(angle), amplitude * jnp.sin(angle))
    square = _squared_radius(box)
    limit = jnp.asarray(from_shell, jnp.float32)
    moved = (square >= limit * limit - 1e-3) & (square > 0)
    return fourier.irfftn(jnp.where(moved, scrambled, spectrum), box)


@jax.jit
def fsc_corrected(key: PRNGKeyArray, half1: Volume, half2: Volume, mask: Volume) -> CorrectedFSC:
    """Masked FSC, corrected by phase randomisation (Chen et al. 2013, Ultramicroscopy 135:24).

    ``(FSC_masked - FSC_randomised) / (1 - FSC_randomised)``. Phases are randomised, in each
    half on its own, from the first shell where the unmasked FSC is below 0.8. The correction
    starts two shells later (the mask smears true signal over that distance); below, the
    masked curve is returned.

    Args:
        key: consumed.
        half1: map of one half set, refined independently of the other.
        half2: map of the other half set.
        mask: soft mask, the same for both.
    """
    key1, key2 = jax.random.split(key)
    unmasked = fsc(half1, half2)
    masked = fsc_masked(half1, half2, mask)
    start = band_limit(unmasked, 0.8)
    limit = start.astype(jnp.float32)
    random1 = phase_randomise(key1, half1, limit)
    random2 = phase_randomise(key2, half2, limit)
    randomised = fsc_masked(random1, random2, mask)
    usable = jnp.minimum(randomised, 1 - 1e-3)
    corrected = (masked - usable) / (1 - usable)
    shells = jnp.arange(masked.shape[0])
    return CorrectedFSC(
        unmasked, masked, randomised, jnp.where(shells < start + 2, masked, corrected), start
    )


def resolution_angstrom(curve: Curve | np.ndarray, apix: float, threshold: float = 0.143) -> float:
    """Resolution at the first crossing of an FSC curve below the threshold, in angstrom.

    The crossing is interpolated linearly between shells; shell 0 is ignored. A curve that
    ends in empty (NaN) shells claims nothing beyond its last shell with a value.

    Args:
        curve: ``[n // 2 + 1]`` values of a box of even side ``n``.
        apix: angstrom per voxel.
        threshold: 0.143 for independent half maps (Rosenthal & Henderson 2003), 0.5 against
            a known structure.

    Returns:
        Angstrom; Nyquist (``2 * apix``) if the curve never falls below the threshold,
        infinity if it starts below.
    """
    values = np.asarray(curve, np.float64)
    length = 2 * (len(values) - 1) * apix
    last = 0
    for shell in range(1, len(values)):
        if np.isnan(values[shell]):
            if last:
                break
            continue
        if values[shell] < threshold:
            if last == 0:
                return math.inf
            drop = (values[last] - threshold) / (values[last] - values[shell])
            return length / (last + drop)
        last = shell
    return length / last if last else math.inf


def band_limit(curve: Curve, threshold: float = 0.143) -> Int[Array, ""]:
    """First shell from 1 on whose FSC is below the threshold or empty; their number if none.

    Empty shells before the first one with a value are passed over.

    Args:
        curve: FSC of the shells from 0 on.
        threshold: below which a shell claims nothing.
    """
    begun = jnp.cumsum(jnp.isfinite(curve).at[0].set(False)) > 0
    below = begun & ~(curve >= threshold)
    return jnp.where(below.any(), jnp.argmax(below), curve.shape[0]).astype(jnp.int32)


def ssnr_from_fsc(curve: Curve) -> Curve:
    """Spectral signal-to-noise ratio of the merged map, ``2 FSC / (1 - FSC)``.

    Args:
        curve: FSC of two independent half maps; values below 0 and empty shells give 0.
    """
    known = jnp.clip(jnp.nan_to_num(curve), 0, 1 - 1e-6)
    return 2 * known / (1 - known)


def wiener_gain(curve: Curve, threshold: float = 0.143) -> Curve:
    """Gain of every shell that makes the merged map the best estimate of the structure.

    ``2 FSC / (1 + FSC)``: the Wiener filter ``SSNR / (SSNR + 1)``, the squared figure of merit
    of Rosenthal & Henderson (2003, J Mol Biol 333:721). It is averaged over three neighbouring
    shells with weights 1/4, 1/2, 1/4, falls to 0 by half a cosine over the last three shells
    above the threshold, and is 0 from the first shell on where the curve, averaged likewise, is
    below it: one shell of weak contrast transfer or of chance does not end a map. A curve that
    stays above is not tapered. Use it with :func:`sptjax.fourier.radial_filter`.

    Args:
        curve: FSC of two independent half maps.
        threshold: FSC at which the map ends.
    """
    curve = curve.at[0].set(curve[1])  # one coefficient tells nothing about its error
    known = jnp.clip(jnp.nan_to_num(curve), 0, 1)
    smooth = _three_shells(2 * known / (1 + known))
    finite = jnp.isfinite(curve).astype(curve.dtype)
    mean = _three_shells(jnp.nan_to_num(curve)) / jnp.maximum(_three_shells(finite), 0.25)
    limit = band_limit(jnp.where(finite > 0, mean, jnp.nan), threshold)
    width = jnp.where(limit < curve.shape[0], jnp.minimum(3, limit // 3), 0)
    left = jnp.clip((limit - jnp.arange(curve.shape[0])) / (width + 1), 0, 1)
    return smooth * (0.5 - 0.5 * jnp.cos(jnp.pi * left))


def _three_shells(curve: Curve) -> Curve:
    """Mean over neighbours, weights 1/4, 1/2, 1/4."""
    padded = jnp.pad(curve, 1, mode="edge")
    return 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]


def _shell_sum(values: Float[Array, "z y h"], box: int) -> Curve:
    """Sum of a half-grid quantity over the shells 0 ... n // 2, Friedel partners counted once.

    Every plane is summed on its own first: short sums keep single precision.
    """
    shells = box // 2 + 2  # the last one collects the corners
    index = np.minimum(fourier.shell_index(box), shells - 1).reshape(box, -1)
    index = index + shells * np.arange(box)[:, None]
    share = jnp.asarray(_friedel_share(box))
    sums = jnp.zeros(box * shells, values.dtype).at[index.ravel()].add((values * share).ravel())
    return sums.reshape(box, shells).sum(0)[:-1]


def _shell_count(box: int) -> np.ndarray:
    """Frequencies in every shell, one of each Friedel pair."""
    index = fourier.shell_index(box).ravel()
    return np.bincount(index, _friedel_share(box).ravel())[: box // 2 + 1].astype(np.float32)


def _friedel_share(box: int) -> np.ndarray:
    """1, or 0 for the half-grid voxels whose Friedel partner is counted already.

    Those have kx = 0 and a negative kz, or kz = 0 and a negative ky. The Nyquist planes of an
    even box hold both partners and keep them, as in EMAN2 (this touches only the last shell).
    """
    kx, ky, kz = np.moveaxis(fourier.half_grid(box), -1, 0)
    negative_y, negative_z = ((k < 0) & (2 * k > -box) for k in (ky, kz))
    repeated = (kx == 0) & (negative_z | ((kz == 0) & negative_y))
    return (~repeated).astype(np.float32)


def _squared_radius(box: int) -> Float[Array, "z y h"]:
    return jnp.asarray((fourier.half_grid(box) ** 2).sum(-1), jnp.float32)
