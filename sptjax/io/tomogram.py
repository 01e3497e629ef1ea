"""Boxes out of tomograms that are never read whole."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from sptjax._errors import InputError

from .stack import open_reader

_PACKED = (".gz", ".bz2")


class Tomogram:
    """One tomogram of any image format, opened; use as a context manager.

    MRC files are memory-mapped, so that a box costs the rows of the file that it touches.

    Args:
        path: the file, not compressed.
        flip: axes along which the file is the mirror image of the tomogram that is meant, such as
            ``"z"``; sections are then counted from the other end.

    Raises:
        InputError: the file is missing, compressed, or no volume.
    """

    def __init__(self, path: str | os.PathLike[str], flip: str = ""):
        self.path = pathlib.Path(path)
        if self.path.suffix.lower() in _PACKED:
            raise InputError(f"{path} is compressed as a whole: unpack it, to read parts of it.")
        if set(flip) - set("xyz"):
            raise InputError(f"the axes {flip!r} to flip are not among x, y and z")
        self._flip = tuple(axis in flip for axis in "zyx")
        self._reader = open_reader(self.path)
        self.shape = self._reader.shape(0)  # (z, y, x)
        if len(self.shape) != 3:
            raise InputError(f"{path} is no tomogram: it has {len(self.shape)} axes.")

    def __enter__(self) -> "Tomogram":
        return self

    def __exit__(self, *_) -> None:
        self._reader.close()

    @property
    def apix(self) -> float | None:
        """Voxel size in angstrom, None if the file does not tell."""
        return self._reader.apix(0)

    @property
    def size(self) -> np.ndarray:
        """Voxels along x, y and z."""
        return np.array(self.shape[::-1])

    def cut(self, start: Sequence[int] | np.ndarray, edge: int) -> tuple[np.ndarray, float]:
        """A cube of the tomogram.

        Args:
            start: its first voxel (x, y, z), which may lie outside.
            edge: voxels along its edges.

        Returns:
            float32 ``[z, y, x]``, voxels outside of the tomogram filled with the mean of those
            inside, and the share of voxels inside.

        Raises:
            InputError: no voxel lies inside.
        """
        first = np.asarray(start, np.int64)[::-1]
        low, high = np.maximum(first, 0), np.minimum(first + edge, self.shape)
        if (low >= high).any():
            raise InputError(f"{self.path}: the box at {list(map(int, start))} lies outside of it")
        region = tuple(
            slice(n - b, n - a) if flip else slice(a, b)
            for a, b, n, flip in zip(low.tolist(), high.tolist(), self.shape, self._flip)
        )
        part = self._reader.read_part(0, region).astype(np.float32, copy=False)
        part = part[tuple(slice(None, None, -1) if flip else slice(None) for flip in self._flip)]
        if part.shape == (edge,) * 3:
            return np.ascontiguousarray(part), 1.0
        out = np.full((edge,) * 3, part.mean(dtype=np.float64), np.float32)
        out[tuple(slice(a, b) for a, b in zip(low - first, high - first))] = part
        return out, part.size / edge**3


def read_tilts(path: str | os.PathLike[str]) -> np.ndarray:
    """Tilt angles in degrees, in the order of the file.

    Args:
        path: ``.mdoc`` of SerialEM (its ``TiltAngle`` lines), or a list of one number per line
            (``.tlt``, ``.rawtlt``), further columns of which are ignored.

    Raises:
        InputError: the file is missing, or holds fewer than two angles, or values beyond 90.
    """
    where = pathlib.Path(path)
    try:
        lines = where.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise InputError(f"The file {path} cannot be read ({error.strerror}).") from error
    if where.suffix.lower() == ".mdoc":
        parts = [line.partition("=") for line in lines]
        words = [value.strip() for key, _, value in parts if key.strip() == "TiltAngle"]
    else:
        words = [line.split()[0] for line in lines if line.strip()]
    try:
        angles = np.array([float(word) for word in words])
    except ValueError as error:
        raise InputError(f"{path}: a tilt angle is no number ({error})") from error
    if len(angles) < 2 or not np.isfinite(angles).all() or np.abs(angles).max() > 90:
        raise InputError(f"{path} holds no tilt series: two angles and more, from -90 to 90")
    return angles
