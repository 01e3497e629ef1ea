"""EM volumes (TOM toolbox, AV3, Dynamo), through :mod:`emfile`: one per file, no voxel size."""

import math
import os
import pathlib
import struct
from typing import Any

import emfile
import numpy as np

from sptjax._errors import InputError

from ._atomic import atomic_path
from ._mapping import native

_HEADER_BYTES = 512
_BIG_ENDIAN = (0, 3, 5)  # OS-9, SGI and Mac; 1, 2, 4 and 6 (PC) are little-endian
_TYPES = {1: "i1", 2: "<i2", 4: "<i4", 5: "<f4", 9: "<f8"}


class EmReader:
    """Access to the one volume of an EM file; use as a context manager.

    Args:
        path: The file.

    Raises:
        InputError: The file is missing, truncated, big-endian, or has no real values.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        if not self.path.is_file():
            raise InputError(f"The file {path} does not exist.")
        try:
            self._fields, _ = emfile.read(self.path, header_only=True)
        except (OSError, struct.error) as error:
            raise InputError(f"The file {path} is truncated or not an EM file.") from error
        sizes = self.shape(0)
        if self._fields["machine"] in _BIG_ENDIAN and not all(0 < n < 1 << 20 for n in sizes):
            raise InputError(f"The EM file {path} is big-endian, which is not supported.")
        if self._fields["dtype"] not in _TYPES or min(sizes) < 1:
            raise InputError(f"The file {path} is not an EM file of real values.")
        self._dtype = np.dtype(_TYPES[self._fields["dtype"]])
        size, needed = self.path.stat().st_size, _HEADER_BYTES
        needed += self._dtype.itemsize * math.prod(sizes)
        if size < needed:
            raise InputError(f"The file {path} is truncated: {size} of {needed} bytes are there.")

    def __len__(self) -> int:
        return 1

    def __enter__(self) -> "EmReader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Nothing stays open between reads."""

    def shape(self, index: int) -> tuple[int, ...]:
        """Shape ``(nz, ny, nx)``; `index` must be 0."""
        if index != 0:
            raise InputError(f"{self.path} holds 1 image; there is no image {index}.")
        return tuple(int(self._fields[name]) for name in ("zdim", "ydim", "xdim"))

    def header(self, index: int) -> dict[str, Any]:
        """The size, and the numbers of the EM header under ``EM.<name>``."""
        nz, ny, nx = self.shape(index)
        fields = {f"EM.{k}": v for k, v in self._fields.items() if isinstance(v, int)}
        return {"nx": nx, "ny": ny, "nz": nz} | fields

    def apix(self, index: int) -> float | None:
        """None: programs disagree on where EM headers keep the voxel size."""
        del index

    def read(self, index: int) -> np.ndarray:
        """The volume as float32."""
        return self.read_part(index, ()).astype(np.float32, copy=False)

    def read_part(self, index: int, region: tuple[slice, ...]) -> np.ndarray:
        """A part of the volume: float32, or integers of at most 16 bits.

        Args:
            index: 0.
            region: Slices of the leading axes.
        """
        shape = self.shape(index)
        data = np.memmap(self.path, self._dtype, "r", offset=_HEADER_BYTES, shape=shape)
        return native(data[region])


def write_em(path: str | os.PathLike[str], volume: np.ndarray) -> None:
    """Write a float32 EM file, atomically.

    Args:
        path: The file to create or replace.
        volume: Real array ``[z, y, x]``. The voxel size is not stored.

    Raises:
        InputError: `volume` is not a real array of rank 3.
    """
    pixels = np.asarray(volume)
    if pixels.dtype.kind not in "biuf" or pixels.ndim != 3 or pixels.size == 0:
        raise InputError(
            f"Cannot write {path}: an array of shape {pixels.shape} and type {pixels.dtype} is"
            " no volume."
        )
    blank = {"comment": "", "username": "", "date": "", "userdata": ""}
    with atomic_path(path) as temporary:
        emfile.write(temporary, np.ascontiguousarray(pixels, np.float32), blank)
