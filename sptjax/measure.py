"""From class averages to FSC curves and the references of the next round."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from . import fourier, masks, resolution, rotation
from .averaging import Averages
from .halves import align_halves
from .state import CURVES
from .symmetry import Symmetry


@dataclasses.dataclass(frozen=True)
class Measured:
    """Maps and curves of one round."""

    maps: np.ndarray  # [c, n, n, n], both halves
    halves: np.ndarray  # [c, 2, n, n, n], odd moved onto even
    fsc: np.ndarray  # [c, 4, s]: one row per name in CURVES
    odd_to_even: np.ndarray | None  # [c, 3, 4], of gold-standard halves


def measure(
    averages: Averages,
    weights: np.ndarray,
    symmetries: tuple[Symmetry, ...],
    key: jax.Array,
    *,
    gold_standard: bool,
) -> Measured:
    """Compare the halves of every class; gold-standard ones are first brought together.

    Args:
        averages: of the round.
        weights: ``[c, 2]``, total weight of the particles in each half.
        symmetries: one per class.
        key: of the phases randomised for the mask correction.
        gold_standard: the halves were refined apart and may have drifted.
    """
    own, merged = averages.halves(), averages.merged()
    halves, maps, fsc, moved = [], [], [], []
    for c, symmetry in enumerate(symmetries):
        even, odd, both = own[c, 0], own[c, 1], merged[c]
        if gold_standard:
            odd, pose = align_halves(even, odd, symmetry)
            moved.append(np.asarray(rotation.pose_to_matrix34(pose)))
            share = weights[c] / max(weights[c].sum(), 1e-30)
            both = jnp.float32(share[0]) * even + jnp.float32(share[1]) * odd
        fsc.append(_fsc_curves(jax.random.fold_in(key, c), even, odd, both))
        halves.append(np.stack([np.asarray(even), np.asarray(odd)]))
        maps.append(np.asarray(both))
    together = np.stack(moved) if moved else None
    return Measured(np.stack(maps), np.stack(halves), np.stack(fsc), together)


def _fsc_curves(key, even, odd, both) -> np.ndarray:
    """The curves named in CURVES, ``[4, s]``."""
    box = even.shape[-1]
    unmasked = resolution.fsc(even, odd)
    if not float(jnp.abs(both).max()) > 0:
        return np.full((len(CURVES), box // 2 + 1), np.nan, np.float32)
    mask = jnp.asarray(masks.automask(both))
    tight = jnp.asarray(masks.automask(both, dilate_vox=0.0))
    masked = resolution.fsc_corrected(key, even, odd, mask)
    curves = (unmasked, masked.masked, resolution.fsc_masked(even, odd, tight), masked.corrected)
    return np.stack([np.asarray(x) for x in curves])


def next_references(
    averages: Averages, curves: np.ndarray, weights: np.ndarray, *, gold_standard: bool
) -> np.ndarray:
    """Wiener-filtered averages; classes share one filter and radial power, to compare scores.

    Args:
        averages: of the round.
        curves: ``[c, 4, s]`` as in :class:`Measured`.
        weights: ``[c, 2]``, total weight of the particles in each half.
        gold_standard: every half gets references of its own.

    Returns:
        ``[h, c, n, n, n]`` with ``h`` 2 or 1.
    """
    n_classes, shells = len(curves), curves.shape[-1]
    box = 2 * (shells - 1)
    count = weights.sum(1)
    weight = np.where(np.isfinite(curves[:, 0]), count[:, None], 0)
    mean = np.nansum(weight * np.nan_to_num(curves[:, 0]), 0) / np.maximum(weight.sum(0), 1e-30)
    gain = resolution.wiener_gain(jnp.asarray(mean, jnp.float32))
    ratio = (1 - gain) / jnp.maximum(gain, 1e-6)  # noise to signal of the merged map
    edge = masks.sphere(box, box / 2 - 2, 2.0)
    if gold_standard:  # one half has twice the noise
        maps = averages.filtered_halves(jnp.tile(2 * ratio, (n_classes, 1))).swapaxes(0, 1)
        return np.asarray(maps * edge[None, None])
    maps = averages.filtered(jnp.tile(ratio, (n_classes, 1)))
    return np.asarray(_common_power(maps) * edge[None])[None]


@jax.jit
def _common_power(maps):
    """Maps rescaled, shell by shell, to the mean radial power of those that are not empty."""
    box = maps.shape[-1]
    power = jax.vmap(lambda v: fourier.shell_mean(jnp.abs(fourier.rfftn(v)) ** 2, box))(maps)
    filled = (power.sum(1) > 0).astype(power.dtype)[:, None]
    mean = (power * filled).sum(0) / jnp.maximum(filled.sum(), 1)
    gain = jnp.sqrt(mean[None] / jnp.where(power > 1e-12 * power.max(), power, jnp.inf))
    return jax.vmap(fourier.radial_filter)(maps, gain)
