"""Thresholds, voxel by voxel (EMAN2 ``threshold.*``); inequalities are exactly EMAN2's.

Values are in the units of the volume.
"""

import jax.numpy as jnp

from .._errors import InputError
from .._types import Volume
from . import _grid
from ._base import Processor, key


def _check_order(low: float, high: float) -> None:
    if low > high:
        raise InputError(f"minval {low:g} is above maxval {high:g}.")


class BelowToZero(Processor):
    """``v < minval`` becomes 0 (``threshold.belowtozero``)."""

    minval: float = key(default=0.0)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return jnp.where(volume < self.minval, 0.0, volume)


class AboveToZero(Processor):
    """``v > maxval`` becomes 0 (``threshold.abovetozero``)."""

    maxval: float = key(default=0.0)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return jnp.where(volume > self.maxval, 0.0, volume)


class BelowToZeroCut(Processor):
    """``max(v - minval, 0)`` (``threshold.belowtozero_cut``)."""

    minval: float = key(default=0.0)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return jnp.maximum(volume - self.minval, 0.0)


class BelowToMinval(Processor):
    """``v < minval`` becomes ``newval`` (``threshold.belowtominval``); by default ``minval``."""

    minval: float = key(default=0.0)
    newval: float | None = key(default=None)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        new = self.minval if self.newval is None else self.newval
        return jnp.where(volume < self.minval, new, volume)


class Binary(Processor):
    """1 where ``v >= value``, else 0 (``threshold.binary``)."""

    value: float = key(default=0.0)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return (volume >= self.value).astype(volume.dtype)


class BinaryRange(Processor):
    """1 where ``low <= v <= high``, else 0 (``threshold.binaryrange``)."""

    low: float = key()
    high: float = key()

    def __check_init__(self):
        if self.low > self.high:
            raise InputError(f"low {self.low:g} is above high {self.high:g}.")

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return ((volume >= self.low) & (volume <= self.high)).astype(volume.dtype)


class NotZero(Processor):
    """1 where ``v != 0``, else 0 (``threshold.notzero``)."""

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return (volume != 0).astype(volume.dtype)


class RangeToZero(Processor):
    """``minval <= v <= maxval`` becomes 0 (``threshold.rangetozero``)."""

    minval: float = key()
    maxval: float = key()

    def __check_init__(self):
        _check_order(self.minval, self.maxval)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        inside = (volume >= self.minval) & (volume <= self.maxval)
        return jnp.where(inside, 0.0, volume)


class ClampMinMax(Processor):
    """Clip to ``[minval, maxval]`` (``threshold.clampminmax``).

    With ``tomean`` or ``tozero`` the values outside become the mean of the volume or 0.
    """

    minval: float = key(default=0.0)
    maxval: float = key(default=1.0)
    tomean: bool = key(default=False)
    tozero: bool = key(default=False)

    def __check_init__(self):
        _check_order(self.minval, self.maxval)
        if self.tomean and self.tozero:
            raise InputError("tomean and tozero exclude each other.")

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        clipped = jnp.clip(volume, self.minval, self.maxval)
        if not (self.tomean or self.tozero):
            return clipped
        new = volume.mean() if self.tomean else jnp.zeros((), volume.dtype)
        return jnp.where(clipped == volume, volume, new)


class ClampNSigma(Processor):
    """Clip to mean -+ ``nsigma`` sample sigma (``threshold.clampminmax.nsigma``).

    With ``tomean`` the values outside become the mean.
    """

    nsigma: float = key(default=2.0)
    tomean: bool = key(default=False)

    def __check_init__(self):
        if self.nsigma <= 0:
            raise InputError(f"nsigma must be positive, not {self.nsigma:g}.")

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        mean, reach = volume.mean(), self.nsigma * _grid.sigma(volume)
        clipped = jnp.clip(volume, mean - reach, mean + reach)
        return jnp.where(clipped == volume, volume, mean) if self.tomean else clipped


class Compress(Processor):
    """Pull all values towards ``value`` by ``range`` (``threshold.compress``).

    Those within ``range`` of ``value`` become ``value``.
    """

    value: float = key()
    range: float = key()

    def __check_init__(self):
        if self.range < 0:
            raise InputError(f"range must not be negative, not {self.range:g}.")

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        beyond = volume - jnp.clip(volume, self.value - self.range, self.value + self.range)
        return self.value + beyond


REGISTRY = {
    "threshold.belowtozero": BelowToZero,
    "threshold.abovetozero": AboveToZero,
    "threshold.belowtozero_cut": BelowToZeroCut,
    "threshold.belowtominval": BelowToMinval,
    "threshold.binary": Binary,
    "threshold.binaryrange": BinaryRange,
    "threshold.notzero": NotZero,
    "threshold.rangetozero": RangeToZero,
    "threshold.clampminmax": ClampMinMax,
    "threshold.clampminmax.nsigma": ClampNSigma,
    "threshold.compress": Compress,
}
