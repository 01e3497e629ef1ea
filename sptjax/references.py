"""References prepared to match the copies in which particles are aligned.

References live at the sampling of the raw particles and are brought into each copy anew every
round, never from one copy to the next.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from ._types import Volumes
from .align import View
from .copies import Copies, Copy
from .preprocess import automask_reference, match_spectra


@dataclasses.dataclass(frozen=True, eq=False)
class ReferenceSettings:
    """How references are prepared for an alignment."""

    preprocess: bool = False  # like the particles; from the second round on in any case
    match: bool = False  # give them the radial power of the particles
    mask: np.ndarray | None = None  # [z, y, x], multiplied in, box of the raw particles
    automask: bool = False  # mask averages before they serve as references


def views(
    references: np.ndarray,
    copies: Copies,
    settings: ReferenceSettings,
    apix: float,
    *,
    own_averages: bool,
    noise_share: np.ndarray,
) -> tuple[View, View | None, View | None]:
    """References and particles as the coarse, fine and full stage see them.

    Args:
        references: ``[c, n, n, n]``, raw sampling.
        copies: of the particles.
        settings: of the references.
        apix: voxel size of the raw particles, angstrom.
        own_averages: the references are averages of the particles, not given from outside.
        noise_share: ``[s]``, part of the coarse copy's power that is noise, per shell.
    """
    maps = jnp.asarray(references, jnp.float32)
    if settings.automask and own_averages:
        maps = maps * jnp.stack([automask_reference(v, apix) for v in maps])
    if settings.mask is not None:
        maps = maps * jnp.asarray(settings.mask, jnp.float32)[None]
    preprocess = settings.preprocess or own_averages

    def view(copy: Copy | None) -> View | None:
        if copy is None:
            return None
        prepared = _prepared(maps, copy, preprocess, apix)
        if settings.match and copy.power is not None:
            prepared = match_spectra(prepared, jnp.asarray(copy.power))
        share = _share_of(noise_share, copy.particles.box)
        return View(copy.particles.with_noise_share(share), np.asarray(prepared), copy.scale)

    coarse = view(copies.coarse)
    assert coarse is not None
    return coarse, view(copies.fine), view(copies.full)


def _prepared(maps: Volumes, copy: Copy, preprocess: bool, apix: float) -> Volumes:
    pipeline = copy.pipeline if preprocess else copy.pipeline.resize_only()
    return maps if pipeline.trivial else pipeline(maps, apix)


def _share_of(share: np.ndarray, box: int) -> np.ndarray:
    """The share on the shells of another copy; all is noise beyond the measured ones."""
    shells = box // 2 + 1
    return np.pad(share[:shells], (0, max(0, shells - len(share))), constant_values=1.0)
