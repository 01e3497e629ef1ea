"""TIFF images and stacks, through :mod:`tifffile`: one image per directory, bottom row first.

TIFF counts rows from the top, EMAN2 and MRC from the bottom, so rows are reversed, as EMAN2
does. Colour images become the mean of their channels. Compressed files may need the package
imagecodecs as well (LZW, for example); an error says so.

tifffile leaves out the images, and fills in zeros for the pixels, that a truncated file lacks, so
that both are looked for here: the last directory must say that it is the last, and all pixels must
lie inside the file.
"""

import os
import pathlib
import struct
from typing import Any

import numpy as np
import tifffile

from sptjax._errors import InputError

from ._mapping import native


class TiffReader:
    """Random access to the images of one TIFF file; use as a context manager.

    Args:
        path: The file.

    Raises:
        InputError: The file is missing, truncated, not TIFF, or has no real values.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        if not self.path.is_file():
            raise InputError(f"The file {path} does not exist.")
        try:
            self._file = tifffile.TiffFile(self.path)
        except Exception as error:  # tifffile lets its decoders raise what they like
            raise InputError(f"The file {path} is truncated or not a TIFF file.") from error
        try:
            self._count = len(self._file.pages)
            self._check_end()
        except Exception as error:
            self._file.close()
            raise InputError(f"The file {path} is truncated or damaged.") from error
        self._last: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self._count

    def __enter__(self) -> "TiffReader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._last = None

    def shape(self, index: int) -> tuple[int, ...]:
        """Shape ``(ny, nx)`` of image `index`."""
        page = self._page(index)
        return page.imagelength, page.imagewidth

    def header(self, index: int) -> dict[str, Any]:
        """The size, and the tags of the image that are numbers or short texts, as ``TIFF.``."""
        ny, nx = self.shape(index)
        tags = {
            f"TIFF.{tag.name}": tag.value
            for tag in self._page(index).tags.values()
            if isinstance(tag.value, (int, float, str)) and len(str(tag.value)) < 1000
            if not isinstance(tag.value, int) or abs(tag.value) < 2**31
        }
        texts = {k: v.replace("\0", " ") if isinstance(v, str) else v for k, v in tags.items()}
        return {"nx": nx, "ny": ny, "nz": 1} | {k: _plain(v) for k, v in texts.items()}

    def apix(self, index: int) -> float | None:
        """None: TIFF has no agreed place for the voxel size."""
        del index

    def read(self, index: int) -> np.ndarray:
        """Image `index` as float32."""
        return self.read_part(index, ()).astype(np.float32, copy=False)

    def read_part(self, index: int, region: tuple[slice, ...]) -> np.ndarray:
        """A part of image `index`: float32, or integers of at most 16 bits.

        Args:
            index: Number of the image.
            region: Slices of its leading axes.
        """
        if self._last is None or self._last[0] != index:
            self._last = index, self._decode(index)
        return native(self._last[1][region])

    def _page(self, index: int) -> tifffile.TiffPage:
        if not 0 <= index < self._count:
            raise InputError(f"{self.path} holds {self._count} images; there is no image {index}.")
        try:
            page = self._file.pages[index]
            return page.aspage() if isinstance(page, tifffile.TiffFrame) else page
        except Exception as error:
            raise InputError(f"{self.path} image {index} is truncated or damaged.") from error

    def _check_end(self) -> None:
        """Raise ValueError unless the last directory read is the last one of the file."""
        tiff, stream = self._file.tiff, self._file.filehandle
        place = self._file.pages[self._count - 1].offset
        stream.seek(place)
        tags = struct.unpack(tiff.tagnoformat, stream.read(tiff.tagnosize))[0]
        stream.seek(place + tiff.tagnosize + tags * tiff.tagsize)
        if struct.unpack(tiff.offsetformat, stream.read(tiff.offsetsize))[0]:
            raise ValueError("directories are missing")

    def _check_pixels(self, page: tifffile.TiffPage) -> None:
        """Raise ValueError unless all pixels of an image lie inside the file."""
        size = self._file.filehandle.size
        ends = [a + n for a, n in zip(page.dataoffsets, page.databytecounts)]
        if max(ends, default=size + 1) > size or min(page.dataoffsets) == 0:
            raise ValueError("the file is truncated")
        needed = page.size * page.bitspersample // 8
        if page.compression == tifffile.COMPRESSION.NONE and sum(page.databytecounts) < needed:
            raise ValueError("pixels are missing")

    def _decode(self, index: int) -> np.ndarray:
        page, name = self._page(index), f"{self.path} image {index}"
        try:
            self._check_pixels(page)
            values = page.asarray()
        except Exception as error:
            raise InputError(f"{name} cannot be read: {error}") from error
        if values.ndim == 3 and values.shape[:2] == self.shape(index):
            values = values[..., :3].mean(axis=-1, dtype=np.float32)
        if values.shape != self.shape(index) or values.dtype.kind not in "biuf":
            raise InputError(f"{name} is not a plane of real values.")
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            values = -values.astype(np.float32)
        return values[::-1]


def _plain(value: Any) -> Any:
    """Without the enumerations of tifffile."""
    return int(value) if isinstance(value, int) else value
