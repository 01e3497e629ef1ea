"""Densities to integer codes: the choice of the two limits, and the codes.

Code 0 stands for ``low`` and code ``R = 2^bits - 1`` for ``high``, linear between, as EMAN2
stores them. The limits make integers come back as integers and exact zeros as exact zeros:

====================================== ==============================================
values (inside the limits asked for)   low, high
====================================== ==============================================
integers n, n + 1 (n >= 0)             n, n + 1
integers that fit                      min, min + R
integers with too wide a range         steps of a power of two, 0 among them
constant                               that value, a larger one
of both signs                          a step that restores 0 exactly (see below)
others                                 min, max
====================================== ==============================================

Zero is restored as ``code * step + low``, by some programs with a fused operation, by others
in two, where step is computed from the limits in single precision. It is exactly 0 in all of
them if ``code * step`` needs no rounding, hence for steps with few significant bits. Programs
that compute ``code / R * (high - low) + low`` agree where such a step within 0.4 % exists.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sptjax._errors import InputError

from ._scan import Scan

_F = np.float32
_MOST_INFLATION = 1.004
_HUGE = 1e28  # EMAN2 ignores larger limits
_HALF = np.nextafter(_F(0.5), _F(0))  # floor(x + this) rounds halves up, and nothing else


@dataclass(frozen=True)
class Mapping:
    """Densities of the first and the last code."""

    bits: int
    low: np.float32
    high: np.float32

    @property
    def top(self) -> int:
        """The last code."""
        return 2**self.bits - 1

    @property
    def dtype(self) -> np.dtype:
        """Type in which codes are stored."""
        return np.dtype(np.uint8 if self.bits <= 8 else np.uint16)


def choose_mapping(found: Scan, bits: int) -> Mapping:
    """The limits for values with a given range, by the table of the module.

    Args:
        found: of the values, clipped to the limits asked for.
        bits: 2 to 16.

    Raises:
        InputError: The range of the values is beyond single precision.
    """
    if not found.finite:
        return Mapping(bits, _F(0), _F(2**bits - 1))
    low, high = found.minimum, found.maximum
    most = float(np.finfo(_F).max) * (0.5 if low < 0 <= high else 1)  # room for exact zeros
    if high - low > most:
        raise InputError(f"values from {low:g} to {high:g} span more than a 32-bit float can")
    if found.integers:
        return _integers(int(low), int(high), bits)
    if low == high:
        return Mapping(bits, _F(low), max(_F(low + 2**bits - 1), np.nextafter(_F(low), _F("inf"))))
    if low < 0 <= high:
        return _zero_exact(low, high, bits)
    return Mapping(bits, _F(low), _F(high))


def _integers(low: int, high: int, bits: int) -> Mapping:
    count, span = 2**bits, high - low
    if span == 1 and low >= 0:
        return Mapping(bits, _F(low), _F(high))
    if span < count:
        return Mapping(bits, _F(low), _F(low + count - 1))
    step = 2 ** (span.bit_length() - bits)
    start = -((-low + step // 2) // step) * step if low < 0 <= high else low
    return Mapping(bits, _F(start), _F(start + step * (count - 1)))


def _zero_exact(low: float, high: float, bits: int) -> Mapping:
    """Limits around ``low < 0 <= high`` with a code for exactly 0, the steps as short as can be."""
    top = 2**bits - 1
    least = max((high - low) / (top - 1), float(np.finfo(_F).tiny))
    near = math.ceil(-low / least)
    best: tuple[float, Mapping] | None = None
    for zero in range(max(near - 2, 1), min(near + 4, top + 1)):
        if zero == top and high > 0:
            continue
        needed = max(least, -low / zero, high / max(top - zero, 1))
        for step, limits, everywhere in _steps(needed, zero, top):
            cost = step if everywhere else step * _MOST_INFLATION
            if limits.low <= low and limits.high >= high and (best is None or cost < best[0]):
                best = cost, limits
    if best is None:
        raise InputError(f"no limits restore 0 exactly between {low:g} and {high:g}")
    return best[1]


def _steps(needed: float, zero: int, top: int) -> Iterator[tuple[float, Mapping, bool]]:
    """Steps from `needed` on that restore code `zero` to 0, their limits, and if everywhere."""
    bits = top.bit_length()
    inverse = _F(1) / _F(top)
    odd = zero // (zero & -zero)
    unit = 2.0 ** (math.frexp(needed)[1] - (24 - odd.bit_length()))
    first = math.ceil(needed / unit)
    for step in (count * unit for count in range(first, first + 12)):
        middle = _F(top * step)
        for ulps in (0, -1, 1, -2, 2):
            span = middle + _F(ulps) * np.spacing(middle)
            limits = Mapping(bits, _F(-zero * step), _F(float(span) - zero * step))
            if limits.high - limits.low == span and inverse * span == _F(step):
                yield step, limits, bool(_F(zero) / _F(top) * span == _F(zero * step))


def eman2_mapping(
    found: Scan, first: float, limits: tuple[float, float] | None, bits: int
) -> Mapping:
    """The limits that EMAN2 2.99 chooses, its defects included.

    Args:
        found: of the values, clipped to `limits`.
        first: the first value of the image, not clipped: EMAN2 starts its search there.
        limits: those asked for.
        bits: 2 to 16.

    Raises:
        InputError: EMAN2 would turn the image into zeros.
    """
    count, top = 2**bits, _F(2**bits - 1)
    low, high = _F(min(first, found.minimum)), _F(max(first, found.maximum))
    if high - low == 1:
        return Mapping(bits, low, high)
    if found.integers and first == np.rint(first):
        if high - low < count:
            return Mapping(bits, low, low + top)
        step = _F(2.0) ** _F(int(high - low).bit_length() - bits)
        ratio = low / step
        start = _F(math.copysign(math.floor(abs(ratio) + 0.5), ratio)) * step
        low = start if low < 0 < high else low
        return Mapping(bits, low, low + step * top)
    if low < 0 < high:
        step = (high - low) / top
        if math.floor(low / step) * float(step) == float(low):
            return Mapping(bits, low, high)
        step = (high - low) / (top - 1)
        start = _F(math.floor(low / step) * float(step))
        return Mapping(bits, start, start + step * top)
    if limits is None:
        raise InputError(
            "EMAN2 itself would turn this image (real values of one sign, no limits) into zeros;"
            " leave out --eman-compat or give --range"
        )
    return Mapping(bits, _F(limits[0]), _F(limits[1]))


def usable(limits: tuple[float, float]) -> bool:
    """Whether EMAN2 takes such limits."""
    return limits[0] < limits[1] and all(abs(x) <= _HUGE for x in limits)


def native(values: np.ndarray) -> np.ndarray:
    """In memory and contiguous: float32, or integers of at most 16 bits of this machine's order."""
    small = values.dtype.kind in "iu" and values.itemsize <= 2
    dtype = values.dtype.newbyteorder("=") if small else np.dtype(np.float32)
    mapped = isinstance(values, np.memmap)
    return np.array(values, dtype, order="C", copy=True if mapped else None)


def encode(values: np.ndarray, mapping: Mapping) -> tuple[np.ndarray, int]:
    """Codes of values, and how many lay outside the limits.

    Values outside get the nearest limit's code, NaN the code of 0 (of the limit nearest to 0).

    Args:
        values: float32, or integers of at most 16 bits.
        mapping: the limits.
    """
    low, high = mapping.low, mapping.high
    if values.dtype.kind != "f":
        least, most = values.min(), values.max()
        if least >= low and most <= high and high - low == mapping.top and low == np.rint(low):
            unsigned = values.view(f"u{values.itemsize}")
            offset = unsigned.dtype.type(int(low) % 256**values.itemsize)
            return (unsigned - offset).astype(mapping.dtype, copy=False), 0
        values = values.astype(np.float32)
    least, most = values.min(), values.max()
    outside = 0
    if not (least >= low and most <= high):  # NaN too
        missing = np.isnan(values)
        outside = int(np.count_nonzero((values < low) | (values > high)))
        values = np.where(missing, _F(0), np.clip(values, low, high))
        values = np.clip(values, low, high)
    codes = values - low
    codes /= high - low
    codes *= _F(mapping.top)
    codes += _HALF
    return codes.astype(mapping.dtype), outside
