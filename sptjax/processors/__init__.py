"""Processing steps of one volume under their EMAN2 names.

``bind(parse("filter.lowpass.gauss:cutoff_freq=0.05"), PROCESSORS, "--lowpass")`` of
:mod:`sptjax.options` makes a :class:`Processor`; :func:`apply` runs several. Numbers of a processor
are fixed when it is compiled, volumes and curves among its fields are arguments.
"""

from collections.abc import Callable, Mapping, Sequence

from .._types import Volume
from . import (
    _auto_mask,
    _centre,
    _filters,
    _fourier_mask,
    _geometry,
    _local,
    _mask,
    _normalize,
    _radial,
    _shrink,
    _threshold,
    _values,
)
from ._base import Centring as Centring
from ._base import Processor as Processor
from ._radial import match_to as match_to
from ._radial import radial_power as radial_power

PROCESSORS: Mapping[str, Callable[..., Processor]] = {
    **_filters.REGISTRY,
    **_radial.REGISTRY,
    **_normalize.REGISTRY,
    **_mask.REGISTRY,
    **_auto_mask.REGISTRY,
    **_fourier_mask.REGISTRY,
    **_threshold.REGISTRY,
    **_values.REGISTRY,
    **_local.REGISTRY,
    **_shrink.REGISTRY,
    **_geometry.REGISTRY,
    **_centre.REGISTRY,
}


def apply(
    steps: Sequence[Processor], volume: Volume, apix: float, *, mask: Volume | None = None
) -> Volume:
    """Process a volume by every step in turn, each with the voxel size that the last one left.

    Args:
        steps: processors, the first one first; none returns the volume.
        volume: ``[z, y, x]``, cubic.
        apix: voxel size, angstrom.
        mask: for the steps that normalise inside a mask; has the box of the volume.
    """
    for step in steps:
        box = volume.shape[-1]
        volume = step(volume, apix, mask=mask)
        apix = step.output_apix(apix, box)
    return volume
