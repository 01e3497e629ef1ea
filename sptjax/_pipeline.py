"""The order of preprocessing, one for particles and references (EMAN2 ``e2spt_preproc``).

Normalise, mask, threshold, low-pass, high-pass, any processor, clip with a soft edge, shrink in
Fourier space. The centre voxel of a volume stays the centre voxel of its copy.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import fourier
from ._errors import InputError
from ._types import Volume, Volumes
from .processors import Centring, Processor, apply
from .processors._image import load_optional
from .processors._mask import Soft

SMALLEST_BOX = 12
_EDGE = Soft(outer_radius=-4.0)  # 1 up to n / 2 - 3 voxels, then a Gaussian of width 4


def _even(clip: int) -> int:
    return clip + clip % 2 if clip > 0 else clip


class Pipeline(eqx.Module):
    """What is done to a volume before it is aligned, step by step in the order of the fields.

    Attributes:
        mask: makes the mask of a box of ones.
        mask_volume: mask, multiplied to that of ``mask``; clipped or padded about its centre.
        normalise: sees the mask, which ``normalize.mask`` uses; then the volume is multiplied by
            the mask.
        threshold: applied to the masked volume.
        lowpass: first filter.
        highpass: second filter.
        preprocess: any other processor.
        clip: box cut out about the centre, or padded with zeros, voxels; an odd one is rounded up.
            Its edge is always smoothed. 0: off.
        shrink: factor of the voxel size; the box becomes the nearest even size, which the
            voxel size then follows. 0 or 1: off.

    Raises:
        InputError: clip or shrink below 0, a processor that centres each volume by itself (the
            raw particle would not move with it), a mask volume that is not finite, not positive
            anywhere or negative somewhere.
    """

    mask: Processor | None = None
    mask_volume: Volume | None = eqx.field(default=None, converter=load_optional)
    normalise: Processor | None = None
    threshold: Processor | None = None
    lowpass: Processor | None = None
    highpass: Processor | None = None
    preprocess: Processor | None = None
    clip: int = eqx.field(static=True, default=0, converter=_even)
    shrink: int = eqx.field(static=True, default=0)

    def __check_init__(self):
        for name in ("clip", "shrink"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must not be negative, not {getattr(self, name)}.")
        for name, step in self._steps().items():
            if isinstance(step, Centring):
                raise InputError(
                    f"the step {name} centres every volume by itself, and poses of such copies"
                    " are not those of the particles."
                )
        if self.mask_volume is not None:
            values = np.asarray(self.mask_volume)
            if not np.isfinite(values).all():
                raise InputError("the mask volume holds NaN or infinity.")
            if values.min() < 0:
                raise InputError(f"the mask volume is negative somewhere ({values.min():.3g}).")
            if values.max() == 0:
                raise InputError("the mask volume is zero everywhere.")

    @property
    def trivial(self) -> bool:
        """Whether copies are the volumes themselves."""
        resizes = self.clip > 0 or self.shrink > 1
        return not self._steps() and self.mask_volume is None and not resizes

    def output(self, box: int, apix: float) -> tuple[int, float]:
        """Box and voxel size (angstrom) of the copies of volumes.

        Raises:
            InputError: a copy of less than 12 voxels, or a processor that changes the box.
        """
        for name, step in self._steps().items():
            if (step.output_box(box), step.output_apix(apix, box)) != (box, apix):
                raise InputError(
                    f"the step {name} changes the box or the voxel size; clip and shrink do that."
                )
        clipped = self.clip or box
        # the even size next to clipped / shrink, the upper one of two
        small = (clipped + self.shrink) // (2 * self.shrink) * 2 if self.shrink > 1 else clipped
        if (self.clip or self.shrink > 1) and small < SMALLEST_BOX:
            raise InputError(
                f"clip and shrink leave a box of {small} voxels, not the {SMALLEST_BOX} that are"
                " needed."
            )
        return small, apix * (clipped / small)

    def check(self, box: int, apix: float) -> None:
        """Find what is wrong with the steps before any volume is read.

        Raises:
            InputError: as :meth:`output`, a step refuses the box or the voxel size, or the mask
                is zero in the whole box.
        """
        self.output(box, apix)
        mask = self.mask_image(box, apix)
        if mask is not None and not np.any(np.asarray(mask)):
            raise InputError(f"the mask is zero in the whole box of {box} voxels.")
        if not self._on_host:
            one = jax.ShapeDtypeStruct((1, box, box, box), jnp.float32)
            eqx.filter_eval_shape(_copies, self, one, float(apix))

    def scale(self, box: int) -> float:
        """Raw voxels per voxel of a copy, for volumes of edge ``box``."""
        return self.output(box, 1.0)[1]

    def __hash__(self) -> int:
        """As a key: equal pipelines are one, whatever arrays they hold."""
        return hash(jax.tree.structure(self))

    def resize_only(self, mask_volume: Volume | None = None) -> "Pipeline":
        """Mask, clip and shrink alone, for references that need no more to fit the copies."""
        return Pipeline(mask_volume=mask_volume, clip=self.clip, shrink=self.shrink)

    def mask_image(self, box: int, apix: float) -> Volume | None:
        """The mask of volumes of edge ``box``, None if there is none."""
        if self.mask is None and self.mask_volume is None:
            return None
        image = jnp.ones((box,) * 3, jnp.float32)
        if self.mask is not None:
            image = self.mask(image, apix)
        if self.mask_volume is not None:
            image = image * _centred(self.mask_volume, box)
        return image

    def __call__(self, volumes: Volumes | np.ndarray, apix: float) -> Volumes:
        """Copies of a batch.

        Args:
            volumes: ``[b, n, n, n]``, float32.
            apix: their voxel size, angstrom.

        Returns:
            ``[b, m, m, m]``, ``m`` as :meth:`output` tells.

        Raises:
            InputError: as :meth:`output`.
        """
        box = volumes.shape[-1]
        self.output(box, apix)
        if not self._on_host:
            return _copies(self, jnp.asarray(volumes), float(apix))
        mask = self.mask_image(box, apix)
        return jnp.stack([self._copy(jnp.asarray(v), apix, mask) for v in volumes])

    @property
    def _on_host(self) -> bool:
        return any(step.host for step in self._steps().values())

    def _steps(self) -> dict[str, Processor]:
        names = ("mask", "normalise", "threshold", "lowpass", "highpass", "preprocess")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def _copy(self, volume: Volume, apix: float, mask: Volume | None) -> Volume:
        small, _ = self.output(volume.shape[-1], apix)
        steps = self._steps()
        if "normalise" in steps:
            volume = steps["normalise"](volume, apix, mask=mask)
        if mask is not None:
            volume = volume * mask
        filters = ("threshold", "lowpass", "highpass", "preprocess")
        volume = apply([steps[n] for n in filters if n in steps], volume, apix, mask=mask)
        if self.clip:
            volume = _EDGE(_centred(volume, self.clip), apix)
        return fourier.fourier_resample(volume, small) if self.shrink > 1 else volume


@eqx.filter_jit
def _copies(pipeline: Pipeline, volumes: Volumes, apix: float) -> Volumes:
    mask = pipeline.mask_image(volumes.shape[-1], apix)
    return jax.vmap(lambda volume: pipeline._copy(volume, apix, mask))(volumes)


def _centred(volume: Volume, box: int) -> Volume:
    """Cut or padded with zeros to a cube with the same centre voxel."""
    low = [box // 2 - n // 2 for n in volume.shape]
    config = [(a, box - n - a, 0) for a, n in zip(low, volume.shape)]
    return lax.pad(volume, jnp.zeros((), volume.dtype), config)
