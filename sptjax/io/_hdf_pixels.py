"""The pixels of one image into an HDF5 dataset and back: chunks deflated on threads outside HDF5.

Chunks are handed to HDF5 as they will lie in the file, so its one lock is held only to write
them. A checksum of every chunk before deflation lets :func:`check_pixels` compare what is read
back through HDF5 itself.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import h5py
import numpy as np

from sptjax._errors import InputError

from ._deflate import FASTEST, deflate
from ._hdf_reader import restore_codes
from ._mapping import Mapping, encode
from ._pieces import Image, Work, chunk_shape, pieces, slabs

Offset = tuple[int, ...]


class Pixels(NamedTuple):
    """What was written of an image."""

    checks: dict[Offset, int]
    outside: int  # values beyond the limits
    worst: float  # largest error of a finite value; 0 if not measured
    squares: float  # sum of squared errors


class Storage(NamedTuple):
    """How pixels are stored.

    Attributes:
        dtype: of the dataset.
        level: of deflate; None stores one contiguous block.
        mapping: limits of the codes, for values that are encoded.
        measure: whether errors are measured.
    """

    dtype: np.dtype
    level: int | None
    mapping: Mapping | None
    measure: bool = False

    def encode(self, values: np.ndarray) -> tuple[np.ndarray, int]:
        """Values as they are stored, and how many lay outside the limits."""
        if self.mapping is None:
            return np.ascontiguousarray(values, self.dtype), 0
        return encode(values, self.mapping)

    def error(self, values: np.ndarray, codes: np.ndarray) -> tuple[float, float]:
        """Largest error and sum of squared errors of the values that are finite."""
        if self.mapping is None or not self.measure:
            return 0.0, 0.0
        mapping = self.mapping
        restored = restore_codes(codes, mapping.bits, mapping.low, mapping.high)
        wrong = (restored.astype(np.float64) - values)[np.isfinite(values)]
        return float(np.abs(wrong).max(initial=0.0)), float(np.square(wrong).sum())


def write_pixels(
    group: h5py.Group,
    image: Image,
    storage: Storage,
    work: Work,
    advance: Callable[[float], object] = lambda share: None,
) -> Pixels:
    """Write an image as the dataset ``image`` of a group.

    Args:
        group: of the image.
        image: read slab by slab.
        storage: type, compression and limits.
        work: a map, of :func:`~sptjax.io._pieces.workers`.
        advance: told the share of the image that was done last.
    """
    shape, (dtype, level, _, _) = image.shape, storage
    chunk = chunk_shape(shape, dtype.itemsize)
    options: dict[str, Any] = {}
    if level is not None:
        options = {"chunks": chunk, "compression": "gzip", "compression_opts": level}
        options["shuffle"] = dtype.itemsize > 1
    dataset = group.create_dataset("image", shape, dtype, **options)
    plane = chunk[-2:]  # a chunk without its leading 1

    def prepare(item: tuple[Offset, np.ndarray]) -> tuple[Offset, Any, int, int, float, float]:
        offset, values = item
        codes, outside = storage.encode(values)
        packed: Any = codes
        if level is not None:
            packed = deflate(codes if codes.shape == plane else _padded(codes, plane), level)
        return offset, packed, FASTEST.crc32(codes.data), outside, *storage.error(values, codes)

    checks, outside, worst, squares = {}, 0, 0.0, 0.0
    rows = plane[0]
    for region in slabs(shape, rows, image.depth):
        values = image.read(region)
        for offset, packed, check, beyond, largest, total in work(
            prepare, pieces(region, values, rows)
        ):
            if level is None:
                _put(dataset, offset, packed)
            else:
                dataset.id.write_direct_chunk(offset, packed)
            checks[offset] = check
            outside, worst, squares = outside + beyond, max(worst, largest), squares + total
        advance(values.size / math.prod(shape))
        del values  # before the next slab is read
    return Pixels(checks, outside, worst, squares)


def check_pixels(dataset: h5py.Dataset, checks: dict[Offset, int]) -> None:
    """Read a dataset through HDF5 and compare it with what was meant to be written.

    Raises:
        InputError: it differs.
    """
    found = {offset: FASTEST.crc32(values.data) for offset, values in _stored(dataset)}
    if found != checks:
        raise InputError(f"what was written to {dataset.name} reads back differently")


def _stored(dataset: h5py.Dataset) -> Iterator[tuple[Offset, np.ndarray]]:
    rows = chunk_shape(dataset.shape, dataset.dtype.itemsize)[-2:][0]
    for region in slabs(dataset.shape, rows, 1):
        yield from pieces(region, dataset[region], rows)


def _padded(codes: np.ndarray, plane: tuple[int, ...]) -> np.ndarray:
    """A chunk at the edge, filled up with zeros."""
    full = np.zeros(plane, codes.dtype)
    full[: len(codes)] = codes
    return full


def _put(dataset: h5py.Dataset, offset: Offset, values: np.ndarray) -> None:
    """Values at their place in a contiguous dataset."""
    *leading, start = offset[: 1 if dataset.ndim == 1 else -1]
    dataset[(*leading, slice(start, start + len(values)))] = values
