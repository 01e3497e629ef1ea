"""SPIDER images, volumes and stacks, of either byte order."""

import math
import os
import pathlib
from typing import Any

import numpy as np

from sptjax._errors import InputError

# Positions, from 1, of the numbers of a header (all of them float32).
_NZ, _NY, _KIND, _NX, _HEADER, _STACK, _LAST, _APIX = 1, 2, 5, 12, 22, 24, 26, 38
_KINDS = (1, 3)  # real images and volumes; negative ones are Fourier transforms
_MAX_AXIS = 1 << 20


class SpiderReader:
    """Random access to the images of one SPIDER file; use as a context manager.

    Args:
        path: The file.

    Raises:
        InputError: The file is missing, truncated, not SPIDER, or has no real values.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        if not self.path.is_file():
            raise InputError(f"The file {path} does not exist.")
        self._fields = self._start()
        self._count = int(self._fields[_LAST - 1]) if self._fields[_STACK - 1] > 0 else 1
        size = self.path.stat().st_size
        needed = self._header_bytes * (self._stacked + self._count) + self._count * self._bytes
        if self._count < 1 or size < needed:
            raise InputError(f"The file {path} is truncated: {size} of {needed} bytes are there.")

    def __len__(self) -> int:
        return self._count

    def __enter__(self) -> "SpiderReader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Nothing stays open between reads."""

    def shape(self, index: int) -> tuple[int, ...]:
        """Shape ``(nz, ny, nx)`` or ``(ny, nx)`` of image `index`."""
        if not 0 <= index < self._count:
            raise InputError(f"{self.path} holds {self._count} images; there is no image {index}.")
        nz, ny, nx = self._shape
        return (nz, ny, nx) if nz > 1 else (ny, nx)

    def header(self, index: int) -> dict[str, Any]:
        """Size and voxel size."""
        nz, ny, nx = (1, *self.shape(index))[-3:]
        items: dict[str, Any] = {"nx": nx, "ny": ny, "nz": nz}
        apix = self.apix(index)
        names = () if apix is None else ("apix_x", "apix_y", "apix_z")
        return items | dict.fromkeys(names, apix)

    def apix(self, index: int) -> float | None:
        """Voxel size in angstrom, None if the header has none."""
        del index
        value = float(self._fields[_APIX - 1])
        return value if 0.01 <= value <= 1000 else None

    def read(self, index: int) -> np.ndarray:
        """Image `index` as float32."""
        return self.read_part(index, ())

    def read_part(self, index: int, region: tuple[slice, ...]) -> np.ndarray:
        """A part of image `index` as float32.

        Args:
            index: Number of the image.
            region: Slices of its leading axes.
        """
        shape = self.shape(index)
        each = self._header_bytes + self._bytes
        offset = self._header_bytes * (self._stacked + 1) + index * each
        data = np.memmap(self.path, self._fields.dtype, "r", offset=offset, shape=shape)
        return np.array(data[region], np.float32)

    @property
    def _shape(self) -> tuple[int, int, int]:
        nz, ny, nx = (int(abs(self._fields[place - 1])) for place in (_NZ, _NY, _NX))
        return nz, ny, nx

    @property
    def _stacked(self) -> int:
        """Headers before the first image's own."""
        return int(self._fields[_STACK - 1] > 0)

    @property
    def _header_bytes(self) -> int:
        return int(self._fields[_HEADER - 1])

    @property
    def _bytes(self) -> int:
        return 4 * math.prod(self._shape)

    def _start(self) -> np.ndarray:
        """The numbers of the first header, in the byte order in which they make sense."""
        with open(self.path, "rb") as stream:
            raw = stream.read(4 * 256)
        for order in "<>":
            fields = np.frombuffer(raw[: len(raw) // 4 * 4], f"{order}f4")
            if len(fields) == 256 and _sensible(fields):
                return fields
        raise InputError(f"The file {self.path} is truncated or no SPIDER file of real values.")


def _sensible(fields: np.ndarray) -> bool:
    used = fields[[place - 1 for place in (_NZ, _NY, _NX, _HEADER, _KIND)]]
    if not np.isfinite(used).all() or (used != np.rint(used)).any():
        return False
    sizes, header, kind = np.abs(used[:3]), used[3], used[4]
    line = 4 * used[2]
    return bool(
        (sizes >= 1).all()
        and (sizes < _MAX_AXIS).all()
        and kind in _KINDS
        and header >= 1024
        and header % line == 0
    )
