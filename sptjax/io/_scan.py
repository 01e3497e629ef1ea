"""One pass over the values of an image, piece by piece: range, sums, integers, extremes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

_INTEGER_LIMIT = 2.0**31  # EMAN2 takes no larger value for an integer


class Scan(NamedTuple):
    """What is known of some values; :func:`join` adds two of them up."""

    size: int = 0
    finite: int = 0
    nonzero: int = 0  # finite ones that are not 0
    minimum: float = np.inf
    maximum: float = -np.inf
    total: float = 0.0
    squares: float = 0.0
    integers: bool = True  # every finite value is one

    @property
    def mean(self) -> float:
        """Mean of the finite values, 0 if there are none."""
        return self.total / max(self.finite, 1)

    @property
    def sigma(self) -> float:
        """Sample standard deviation (n - 1) of the finite values."""
        return self._sigma(self.finite)

    def _sigma(self, count: int) -> float:
        if count < 2:
            return 0.0
        return (max(self.squares - self.total**2 / count, 0.0) / (count - 1)) ** 0.5

    def statistics(self) -> dict[str, Any]:
        """EMAN2's header items, as :func:`~sptjax.io._hdf_writer.statistics` makes them.

        Values that are not finite do not count.
        """
        some = self.finite > 0
        numbers = {
            "minimum": self.minimum if some else 0.0,
            "maximum": self.maximum if some else 0.0,
            "mean": self.mean,
            "sigma": self.sigma,
            "square_sum": self.squares,
            "mean_nonzero": self.total / max(self.nonzero, 1),
            "sigma_nonzero": self._sigma(self.nonzero),
        }
        with np.errstate(over="ignore"):
            items: dict[str, Any] = {name: np.float32(x) for name, x in numbers.items()}
        return items | {"all_int": int(some and self.integers)}


def scan(values: np.ndarray, low: float = -np.inf, high: float = np.inf) -> Scan:
    """Look at some values.

    Args:
        values: float32, or integers of at most 16 bits; not empty.
        low: values below count as this.
        high: values above count as this.
    """
    size = values.size
    least, most = values.min(), values.max()
    exact = values.dtype.kind != "f"
    if not (exact or (np.isfinite(least) and np.isfinite(most))):
        values = values[np.isfinite(values)]
        if not values.size:
            return Scan(size)
        least, most = values.min(), values.max()
    if least < low or most > high:
        values = np.clip(values.astype(np.float32, copy=False), np.float32(low), np.float32(high))
        least, most, exact = values.min(), values.max(), False
    whole = exact or bool(
        max(-float(least), float(most)) < _INTEGER_LIMIT
        and values.reshape(-1)[0] == np.rint(values.reshape(-1)[0])
        and np.array_equal(values, np.rint(values))
    )
    double = values.astype(np.float64).reshape(-1)
    return Scan(
        size,
        values.size,
        int(np.count_nonzero(values)),
        float(least),
        float(most),
        float(double.sum()),
        float(np.einsum("i,i->", double, double)),
        whole,
    )


def join(first: Scan, second: Scan) -> Scan:
    """Both together."""
    return Scan(
        first.size + second.size,
        first.finite + second.finite,
        first.nonzero + second.nonzero,
        min(first.minimum, second.minimum),
        max(first.maximum, second.maximum),
        first.total + second.total,
        first.squares + second.squares,
        first.integers and second.integers,
    )


class Extremes:
    """The ``rank``-th smallest and largest of the finite values shown to it, exactly.

    Args:
        rank: from 1. About three times as many values are kept at each end.
    """

    def __init__(self, rank: int):
        self._rank = rank
        self._kept: list[list[np.ndarray]] = [[], []]  # negated at the upper end
        self._limit = [np.inf, np.inf]

    def add(self, values: np.ndarray) -> None:
        """Look at some more values."""
        flat = values.reshape(-1).astype(np.float32, copy=False)
        for end, signed in enumerate((flat, -flat)):
            if np.isinf(self._limit[end]):
                near = signed[np.isfinite(signed)]
            else:
                near = signed[(signed <= self._limit[end]) & (signed > -np.inf)]
            if not near.size:
                continue
            self._kept[end].append(near)
            if sum(map(len, self._kept[end])) >= 3 * self._rank:
                self._shrink(end)

    def limits(self) -> tuple[float, float] | None:
        """Both values; None if they do not differ or there are not so many values."""
        for end in range(2):
            self._shrink(end)
        low, high = self._limit[0], -self._limit[1]
        return (low, high) if low < high else None

    def _shrink(self, end: int) -> None:
        kept = np.concatenate([np.empty(0, np.float32), *self._kept[end]])
        if len(kept) >= self._rank:
            kept = np.partition(kept, self._rank - 1)[: self._rank]
            self._limit[end] = float(kept[-1])
        self._kept[end] = [kept]


def eman2_outliers(histogram: Sequence[int], low: float, high: float) -> tuple[float, float]:
    """The limits of EMAN2's ``--nooutliers``.

    Args:
        histogram: counts in 1024 bins, those of :func:`eman2_bins`.
        low: smallest value.
        high: largest value.
    """
    counts = np.asarray(histogram)
    most = max(int(counts.sum()) // 20000, 8)
    step = (high - low) / 1023
    below = np.flatnonzero(np.cumsum(counts)[:512] > most)
    above = np.flatnonzero(np.cumsum(counts[::-1])[: 1023 - 512] > most)
    first = int(below[0]) if len(below) else 511
    last = 1023 - int(above[0]) if len(above) else 513
    return low + first * step, low + last * step


def eman2_bins(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Counts of finite values in 1024 bins whose first and last are half as wide."""
    flat = values.reshape(-1).astype(np.float32, copy=False)
    place = (flat[np.isfinite(flat)] - np.float32(low)) * np.float32(1023 / (high - low))
    bins = np.clip(np.floor(place + np.float32(0.5)), 0, 1023).astype(np.int64)
    return np.bincount(bins, minlength=1024)
