"""Averages back to the centre of their box, and the poses with them (``--autocenter``)."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from . import processors
from ._types import Volume
from .preprocess import automask_reference
from .processors import PROCESSORS, Centring, Processor
from .symmetry import Symmetry


@dataclasses.dataclass(frozen=True)
class Autocentre:
    """How averages are centred."""

    centring: Centring
    mask: Processor | None = None  # of the copy on which the centre is found
    preprocess: bool = False  # of that copy: high-pass, shrink, low-pass
    automask: bool = False  # of that copy


def centre_shift(
    volume: Volume, apix: float, symmetry: Symmetry, settings: Autocentre
) -> np.ndarray:
    """Translation (x, y, z), voxels, that centres an average as far as its symmetry allows.

    A Cn axis or a helix leaves the shift along z; a group with more axes leaves none.

    Args:
        volume: the average.
        apix: voxel size, angstrom.
        symmetry: of the average.
        settings: how to find the centre.
    """
    free = _free_axes(symmetry)
    if not free.any() or not float(jnp.ptp(volume)) > 0:
        return np.zeros(3, np.float32)
    copy = volume
    if settings.mask is not None:
        copy = copy * settings.mask(jnp.ones_like(copy), apix)
    if settings.automask:
        copy = copy * automask_reference(volume, apix)
    if settings.preprocess:
        box = volume.shape[-1]
        steps = (
            PROCESSORS["filter.highpass.gauss"](cutoff_freq=2 / (apix * box)),
            PROCESSORS["math.meanshrink"](n=2),
            PROCESSORS["filter.lowpass.gauss"](cutoff_freq=1 / (4 * apix)),
        )
        copy = processors.apply(steps, copy, apix)
        # two voxels become one between them: its centre lies half a voxel higher
        found = 2 * np.asarray(settings.centring.shift(copy, 2 * apix)) - 0.5
    else:
        found = np.asarray(settings.centring.shift(copy, apix))
    return np.where(free, found, 0).astype(np.float32)


def _free_axes(symmetry: Symmetry) -> np.ndarray:
    if symmetry.name == "c1":
        return np.ones(3, bool)
    along_z = symmetry.name.startswith("c") or symmetry.helix is not None
    return np.array([False, False, along_z])
