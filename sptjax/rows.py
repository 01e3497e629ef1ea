"""Tables with a row per particle, in memory or in a file, written and read by rows.

A file of rows has no name: it vanishes with the process, however that ends.
"""

import dataclasses
import os
import pathlib
import tempfile
import threading
import weakref
from typing import Protocol

import ml_dtypes
import numpy as np

from ._errors import InputError

_HALF = np.dtype(ml_dtypes.bfloat16)


class Rows(Protocol):
    """``n`` rows of ``K`` numbers of one type."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray, size: int | None = None) -> np.ndarray:
        """The first ``size`` numbers of some rows, ``[len(indices), size]``; all if None."""
        ...

    def write(self, indices: np.ndarray, values: np.ndarray) -> None:
        """Set whole rows, ``[len(indices), K]``."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class MemoryRows:
    """Rows of an array ``[n, K]``."""

    array: np.ndarray  # [n, K]

    def __len__(self) -> int:
        return len(self.array)

    def read(self, indices: np.ndarray, size: int | None = None) -> np.ndarray:
        """See :class:`Rows`."""
        return self.array[np.asarray(indices), :size]

    def write(self, indices: np.ndarray, values: np.ndarray) -> None:
        """See :class:`Rows`."""
        self.array[np.asarray(indices)] = values


class FileRows:
    """Rows in a file of their own."""

    def __init__(self, folder: pathlib.Path, count: int, width: int, dtype: np.dtype) -> None:
        """Make the file, of its full length, so that a full disk shows at once.

        Args:
            folder: where to.
            count: rows.
            width: numbers in a row.
            dtype: of the numbers.

        Raises:
            InputError: the folder cannot be written to, or has no room.
        """
        self._count, self._width, self._dtype = count, width, np.dtype(dtype)
        self._lock = threading.Lock()
        size = count * width * self._dtype.itemsize
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)
            weakref.finalize(self, self._file.close)
            _reserve(self._file.fileno(), size)
        except OSError as error:
            raise InputError(
                f"{folder}: no room for the {size / 1e9:.1f} GB of coefficients"
                f" ({error.strerror}); --scratch names another folder."
            ) from error

    def __len__(self) -> int:
        return self._count

    def read(self, indices: np.ndarray, size: int | None = None) -> np.ndarray:
        """See :class:`Rows`."""
        width = self._width if size is None else min(size, self._width)
        length = width * self._dtype.itemsize
        out = bytearray(len(indices) * length)
        with self._lock:
            for place, index in enumerate(np.asarray(indices)):
                self._file.seek(int(index) * self._width * self._dtype.itemsize)
                view = memoryview(out)[place * length : (place + 1) * length]
                while view:
                    done = self._file.readinto(view)
                    if not done:
                        raise OSError("the file of coefficients ends too early")
                    view = view[done:]
        return np.frombuffer(out, self._dtype).reshape(len(indices), width)

    def write(self, indices: np.ndarray, values: np.ndarray) -> None:
        """See :class:`Rows`."""
        values = np.ascontiguousarray(values, self._dtype)
        with self._lock:
            for row, index in zip(values, np.asarray(indices)):
                self._file.seek(int(index) * self._width * self._dtype.itemsize)
                left = row.tobytes()
                while left:
                    left = left[self._file.write(left) :]


@dataclasses.dataclass(frozen=True, eq=False)
class HalfRows:
    """Complex rows kept as pairs of bfloat16: half the bytes, three digits."""

    pairs: Rows  # [n, 2 K]

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, indices: np.ndarray, size: int | None = None) -> np.ndarray:
        """See :class:`Rows`; complex64."""
        pairs = self.pairs.read(indices, None if size is None else 2 * size)
        return np.ascontiguousarray(pairs.astype(np.float32)).view(np.complex64)

    def write(self, indices: np.ndarray, values: np.ndarray) -> None:
        """See :class:`Rows`."""
        pairs = np.ascontiguousarray(values, np.complex64).view(np.float32)
        self.pairs.write(indices, pairs.astype(_HALF))


@dataclasses.dataclass(frozen=True)
class Storage:
    """Where rows are kept.

    Attributes:
        folder: of the files; None keeps them in memory.
        half: complex numbers are kept as pairs of bfloat16.
    """

    folder: pathlib.Path | None = None
    half: bool = False

    def bytes_each(self, dtype: type | np.dtype) -> int:
        """Of one number."""
        size = np.dtype(dtype).itemsize
        return size // 2 if self.half and np.dtype(dtype).kind == "c" else size

    def rows(self, count: int, width: int, dtype: type | np.dtype) -> Rows:
        """Room for ``count`` rows of ``width`` numbers.

        Raises:
            InputError: the folder has no room.
        """
        dtype = np.dtype(dtype)
        if self.half and dtype.kind == "c":
            return HalfRows(self._plain(count, 2 * width, _HALF))
        return self._plain(count, width, dtype)

    def _plain(self, count: int, width: int, dtype: np.dtype) -> Rows:
        if self.folder is None:
            return MemoryRows(np.empty((count, width), dtype))
        return FileRows(self.folder, count, width, dtype)


IN_MEMORY = Storage()


def _reserve(descriptor: int, size: int) -> None:
    """Give a file its length, with blocks behind it where the system can."""
    if hasattr(os, "posix_fallocate") and size:
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)
