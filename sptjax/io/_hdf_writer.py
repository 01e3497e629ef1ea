"""Writing float32 image stacks that EMAN2, ChimeraX and IMOD can all read.

Oldest HDF5 format (superblock 0), contiguous little-endian float32, one group per image
with every attribute in the form of :mod:`sptjax.io._hdf_attributes`.
"""

import os
import pathlib
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import h5py
import numpy as np

from sptjax._errors import InputError

from ._atomic import atomic_path
from ._hdf_attributes import write_attribute

# Never copied from a header: they describe the stored array, which is written anew.
DERIVED = frozenset(
    "nx ny nz datatype is_complex is_complex_x is_complex_ri changecount all_int minimum maximum"
    " mean sigma square_sum mean_nonzero sigma_nonzero apix_x apix_y apix_z origin_x origin_y"
    " origin_z HostEndian ImageEndian render_min render_max render_bits render_compress_level"
    " stored_rendermin stored_rendermax stored_renderbits stored_truncated".split()
)


def statistics(image: np.ndarray) -> dict[str, Any]:
    """EMAN2's header statistics of an image, sums taken in double precision.

    Args:
        image: Array of any shape, not empty.

    Returns:
        ``minimum``, ``maximum``, ``mean``, ``sigma`` (sample, n-1), ``square_sum``,
        ``mean_nonzero`` and ``sigma_nonzero`` (over the voxels that are not 0) as float32
        scalars, and ``all_int`` as 0 or 1.
    """
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        total = image.sum(dtype=np.float64)
        squares = np.square(image, dtype=np.float64).sum()
        nonzero = int(np.count_nonzero(image))

        def sigma(count: int) -> float:
            if count < 2:
                return 0.0
            return np.sqrt(np.maximum(squares - total * total / count, 0.0) / (count - 1))

        values = {
            "minimum": image.min(),
            "maximum": image.max(),
            "mean": total / image.size,
            "sigma": sigma(image.size),
            "square_sum": squares,
            "mean_nonzero": total / max(nonzero, 1),
            "sigma_nonzero": sigma(nonzero),
        }
        result: dict[str, Any] = {name: np.float32(value) for name, value in values.items()}
        return result | {"all_int": int(np.array_equal(image, np.floor(image)))}


def new_hdf(path: str | os.PathLike[str]) -> h5py.File:
    """Create a file in the oldest format, which every program reads."""
    return h5py.File(path, "w", libver=("earliest", "v110"), locking=False)


def array_items(
    shape: tuple[int, int, int], datatype: int, numbers: Mapping[str, Any]
) -> dict[str, Any]:
    """Header items that describe a stored array.

    Args:
        shape: ``(nz, ny, nx)``.
        datatype: EMAN2's number of its type: 2 bytes, 4 unsigned short, 7 float.
        numbers: its statistics.
    """
    nz, ny, nx = shape
    items: dict[str, Any] = {"nx": nx, "ny": ny, "nz": nz, "datatype": datatype}
    items |= dict.fromkeys(("is_complex", "is_complex_x", "is_complex_ri"), 0)
    return items | dict(numbers) | {"HostEndian": "little", "ImageEndian": "big"}


class HdfWriter:
    """Stream images into a new HDF stack; the file appears when the block ends.

    Args:
        path: The file to create or replace.
        apix: Voxel size in angstrom.

    Example:
        >>> with HdfWriter("stack.hdf", apix=4.0) as writer:  # doctest: +SKIP
        ...     writer.append(volume, {"spt_score": 0.7})
    """

    def __init__(self, path: str | os.PathLike[str], apix: float):
        if not (np.isfinite(apix) and apix > 0):
            raise InputError(f"Cannot write {path}: the voxel size {apix} is not positive.")
        self.path = pathlib.Path(path)
        self.apix = float(apix)
        self._count = 0
        self._cleanup = ExitStack()
        self._images: h5py.Group | None = None

    def __len__(self) -> int:
        return self._count

    def __enter__(self) -> "HdfWriter":
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self.path))
            self._images = stack.enter_context(new_hdf(temporary)).create_group("MDF/images")
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        if self._images is not None and exception[0] is None:
            write_attribute(self._images, "imageid_max", self._count - 1)
        self._images = None
        self._cleanup.__exit__(*exception)

    def append(self, image: np.ndarray, header: Mapping[str, Any] | None = None) -> int:
        """Add one image at the end of the stack.

        Args:
            image: Real array ``[z, y, x]``, ``[y, x]`` or ``[x]``, stored as float32. One
                section of a volume is stored as an image, as EMAN2 does.
            header: Extra items (int, float, bool, str, lists of numbers, 3×4 transforms)
                under EMAN2's names. Items that describe the stored array (size, type,
                statistics, compression) are computed; the voxel size is the writer's.

        Returns:
            The number of the image in the stack.

        Raises:
            InputError: The image is empty, complex or of rank above 3, or a header item
                has no form that EMAN2 can read.
        """
        if self._images is None:
            raise InputError(f"The stack {self.path} is not open for writing.")
        index = self._count
        pixels = np.asarray(image)
        if pixels.dtype.kind not in "biuf" or not 1 <= pixels.ndim <= 3 or pixels.size == 0:
            raise InputError(
                f"{self.path} image {index}: an array of shape {pixels.shape} and type"
                f" {pixels.dtype} cannot be stored as an image."
            )
        pixels = np.ascontiguousarray(pixels, "<f4")
        nz, ny, nx = (1, 1, 1, *pixels.shape)[-3:]
        shape = (nz, ny, nx) if nz > 1 else (ny, nx) if ny > 1 else (nx,)
        items = self._items(pixels, (nz, ny, nx), dict(header or {}))
        group = self._images.create_group(str(index))
        try:
            for name, value in items.items():
                write_attribute(group, f"EMAN.{name}", value)
        except InputError as error:
            raise InputError(f"Cannot write {self.path} image {index}: {error}") from error
        group.create_dataset("image", data=pixels.reshape(shape))
        self._count += 1
        return index

    def _items(
        self, pixels: np.ndarray, shape: tuple[int, int, int], header: dict[str, Any]
    ) -> dict[str, Any]:
        """Every header item of an image: ours, then the caller's."""
        items = array_items(shape, 7, statistics(pixels)) | {"changecount": 0}
        items |= dict.fromkeys(("apix_x", "apix_y", "apix_z"), np.float32(self.apix))
        for name in ("origin_x", "origin_y", "origin_z"):
            items[name] = np.float32(header.get(name, 0.0))
        items |= {"source_path": str(self.path), "source_n": self._count}
        return items | {name: item for name, item in header.items() if name not in DERIVED}
