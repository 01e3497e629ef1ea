"""Reading image stacks from HDF5: EMAN2's layout, its ancestor, and plain files.

===================== ==================================== ==========================
layout                images                               attributes of image N
===================== ==================================== ==========================
EMAN2                 ``/MDF/images/<N>/image``            on ``/MDF/images/<N>``
EMAN1 (legacy)        ``/<N>``, count in ``num_dataset``   on the dataset
plain                 the one dataset of rank 2, 3 or 4    on the dataset
===================== ==================================== ==========================

Shape and type come from the dataset, never from the attributes. Files are opened without
an HDF5 lock: a held lock would make a concurrent EMAN2 writer truncate the file.
"""

import os
import pathlib
import warnings
from typing import Any

import h5py
import numpy as np

from sptjax._errors import InputError

from ._hdf_attributes import read_attributes
from ._mapping import Mapping, native

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_IMAGES = "MDF/images"
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError)
_SERIALEM = {"TiltAngle": "tilt_angle", "PriorRecordDose": "tilt_dose_begin"}


class HdfReader:
    """Random access to the images of one HDF5 file; use as a context manager.

    Args:
        path: The file.

    Raises:
        InputError: The file is missing, truncated, not HDF5, or holds no images.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        self._file = _open(self.path)
        try:
            self._layout, self._count = _layout(self._file, self.path)
        except BaseException:
            self._file.close()
            raise

    def __len__(self) -> int:
        return self._count

    def __enter__(self) -> "HdfReader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def shape(self, index: int) -> tuple[int, ...]:
        """Shape of image `index`: ``(nz, ny, nx)``, ``(ny, nx)`` or ``(nx,)``."""
        return self._open_image(index).shape[self._first_axis :]

    def header(self, index: int) -> dict[str, Any]:
        """Header of image `index` under EMAN2's names, the prefix ``EMAN.`` removed.

        ``nx``, ``ny``, ``nz`` and ``datatype`` are those of the stored array. Attributes
        of the whole stack appear as ``Group.<name>``; IMOD's pixel spacing among them
        sets ``apix_x``, ``apix_y`` and ``apix_z``.
        """
        dataset = self.dataset(index)
        raw = read_attributes(dataset.parent if self.eman else dataset)
        header = {name.removeprefix("EMAN."): value for name, value in raw.items()}
        if self.eman:
            for name, value in read_attributes(dataset.parent.parent).items():
                if name != "imageid_max":
                    header[f"Group.{name.removeprefix('Group.')}"] = value
        spacing = header.pop("Group.IMOD.PixelSpacing", None)
        if spacing is not None:
            values = spacing if isinstance(spacing, list) and len(spacing) == 3 else [spacing] * 3
            header |= dict(zip(("apix_x", "apix_y", "apix_z"), values))
        for theirs, ours in _SERIALEM.items():
            if theirs in header:
                header.setdefault(ours, header[theirs])
        nz, ny, nx = (1, 1, 1, *self.shape(index))[-3:]
        size = dataset.dtype.itemsize
        return header | {"nx": nx, "ny": ny, "nz": nz, "datatype": {1: 2, 2: 4, 4: 7}.get(size, 8)}

    def apix(self, index: int) -> float | None:
        """Voxel size of image `index` in angstrom, None if the file does not tell."""
        value = self.header(index).get("apix_x")
        return float(value) if isinstance(value, (int, float)) and 0 < value < 1e4 else None

    def read(self, index: int) -> np.ndarray:
        """Image `index` as float32, integer-compressed values restored to densities."""
        return self._read(index, ())

    def read_region(
        self, index: int, corner_zyx: tuple[int, ...], shape_zyx: tuple[int, ...]
    ) -> np.ndarray:
        """A box of image `index`; voxels outside the image are 0.

        Args:
            index: Number of the image.
            corner_zyx: First voxel of the box, one number per axis; may be negative.
            shape_zyx: Size of the box.

        Returns:
            float32 array of shape `shape_zyx`.
        """
        full = self.shape(index)
        if not len(full) == len(corner_zyx) == len(shape_zyx):
            raise InputError(
                f"{self._name(index)} has {len(full)} axes, but the region has"
                f" {len(corner_zyx)} corner and {len(shape_zyx)} size numbers."
            )
        out = np.zeros(shape_zyx, np.float32)
        inside = [
            (max(0, corner), min(size, corner + length))
            for corner, length, size in zip(corner_zyx, shape_zyx, full)
        ]
        if all(first < last for first, last in inside):
            target = tuple(slice(a - c, b - c) for (a, b), c in zip(inside, corner_zyx))
            out[target] = self._read(index, tuple(slice(a, b) for a, b in inside))
        return out

    def read_part(self, index: int, region: tuple[slice, ...]) -> np.ndarray:
        """A part of image `index`: float32, or plain integers of at most 16 bits.

        Args:
            index: Number of the image.
            region: Slices of its leading axes, in range.
        """
        return self._read(index, region, plain=True)

    def mapping(self, index: int) -> Mapping | None:
        """How image `index` is compressed to integers; None if it is not."""
        if not self.eman:
            return None
        attributes = self.dataset(index).parent.attrs
        names = [f"EMAN.stored_render{name}" for name in ("bits", "min", "max")]
        if not all(name in attributes for name in names):
            return None
        bits, low, high = (np.asarray(attributes[name]).reshape(-1)[0] for name in names)
        return Mapping(int(bits), np.float32(low), np.float32(high)) if bits > 0 else None

    def dataset(self, index: int) -> h5py.Dataset:
        """What is stored of image `index`."""
        return h5py.Dataset(self._open_image(index))

    @property
    def eman(self) -> bool:
        """Whether the file has EMAN2's own layout."""
        return self._layout == _IMAGES

    @property
    def images(self) -> h5py.Group:
        """The group of all images in EMAN2's own layout."""
        return h5py.Group(h5py.h5g.open(self._file.id, _IMAGES.encode()))

    def others(self) -> list[str]:
        """What the file holds besides images and their attributes."""
        images, groups = {self._layout.removesuffix("[]")}, set[str]()
        if not self._layout:
            images = set(map(str, range(self._count)))
        elif self.eman:
            groups = {_IMAGES, *(f"{_IMAGES}/{index}" for index in range(self._count))}
            images = {f"{_IMAGES}/{index}/image" for index in range(self._count)}
        found = [f"the attribute {name}" for name in self._file.attrs if name != "num_dataset"]

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and name not in images:
                found.append(name)
            elif isinstance(item, h5py.Group) and name not in groups and len(item.attrs):
                found.append(f"attributes of {name}")

        self._file.visititems(visit)
        return found

    @property
    def _first_axis(self) -> int:
        """1 if the images are the rows of one dataset of rank 4, otherwise 0."""
        return int(self._layout.endswith("[]"))

    def _name(self, index: int) -> str:
        return f"{self.path} image {index}"

    def _open_image(self, index: int) -> h5py.h5d.DatasetID:
        """Low-level handle of the dataset which holds image `index`."""
        if not 0 <= index < self._count:
            raise InputError(f"{self.path} holds {self._count} images; there is no image {index}.")
        where = f"{_IMAGES}/{index}/image" if self.eman else self._layout.removesuffix("[]")
        try:
            dataset = h5py.h5d.open(self._file.id, (where or str(index)).encode())
            kind = dataset.get_type().get_class()
        except _DAMAGE as error:
            raise InputError(f"{self._name(index)} is missing or damaged.") from error
        if kind not in (h5py.h5t.INTEGER, h5py.h5t.FLOAT):
            raise InputError(f"{self._name(index)} does not hold real numbers.")
        return dataset

    def _read(self, index: int, region: tuple[slice, ...], *, plain: bool = False) -> np.ndarray:
        dataset = self.dataset(index)
        where = (index, *region) if self._first_axis else region
        try:
            values = dataset[where]
        except _DAMAGE as error:
            raise InputError(
                f"{self._name(index)} cannot be read (damaged file or unknown compression)."
            ) from error
        values = np.asarray(values)
        restored = self._restore(index, values)
        if restored is not None:
            return restored
        return native(values) if plain else values.astype(np.float32, copy=False)

    def _restore(self, index: int, codes: np.ndarray) -> np.ndarray | None:
        """Densities of integer-compressed codes; None if the image is not compressed."""
        found = self.mapping(index)
        if found is None:
            return None
        if codes.dtype.kind == "i":
            warnings.warn(
                f"{self._name(index)} stores compressed values as signed integers, which EMAN2"
                " restores half a range too low; the values are restored the same way.",
                stacklevel=4,
            )
        return restore_codes(codes, found.bits, found.low, found.high)


def restore_codes(codes: np.ndarray, bits: int, low: np.float32, high: np.float32) -> np.ndarray:
    """Densities of integer codes as EMAN2 restores them, bit for bit.

    ``code * s + low`` with ``s = (1/R) * (high - low)`` and ``R = 2^bits - 1``, the two steps
    of `s` rounded to float32 and the rest fused: rounded once. The product is exact in
    double precision, which stands for the fused operation.

    Args:
        codes: Integers of any type.
        bits: Bits per code.
        low: Density of code 0.
        high: Density of code `R`.

    Returns:
        float32 array of the shape of `codes`.
    """
    if codes.dtype.kind == "u" and codes.dtype.itemsize <= 2 and codes.size > 1 << 16:
        table = restore_codes(np.arange(np.iinfo(codes.dtype).max + 1), bits, low, high)
        return table[codes]
    scale = np.float32(1) / np.float32(2**bits - 1) * (high - low)
    return (codes.astype(np.float64) * np.float64(scale) + np.float64(low)).astype(np.float32)


def _open(path: pathlib.Path) -> h5py.File:
    """Open without lock, with a sentence for each way to fail."""
    if not path.is_file():
        raise InputError(f"The file {path} does not exist.")
    magic = b""
    try:
        with open(path, "rb") as raw:
            magic = raw.read(len(HDF5_MAGIC))
        return h5py.File(path, "r", locking=False)
    except PermissionError as error:
        raise InputError(f"The file {path} cannot be read: permission denied.") from error
    except OSError as error:
        state = "truncated or damaged" if magic == HDF5_MAGIC else "not an HDF5 file"
        raise InputError(f"The file {path} is {state}.") from error


def _layout(file: h5py.File, path: pathlib.Path) -> tuple[str, int]:
    """Which of the layouts, and how many images.

    Returns:
        ``_IMAGES`` (EMAN2), ``""`` (EMAN1: the name is the number), or the name of the
        one dataset, with ``[]`` appended if its first axis counts images.
    """
    try:
        images = file.get(_IMAGES)
        if isinstance(images, h5py.Group):
            return _IMAGES, _count(images)
        if "num_dataset" in file.attrs:
            return "", int(np.asarray(file.attrs["num_dataset"]).reshape(-1)[0])
        found: list[tuple[str, int, int]] = []

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and item.ndim in (2, 3, 4):
                found.append((name, item.ndim, item.shape[0]))

        file.visititems(visit)
    except _DAMAGE as error:
        raise InputError(f"The file {path} is truncated or damaged.") from error
    if len(found) != 1:
        raise InputError(
            f"{path} is not an EMAN2 stack (no {_IMAGES}) and holds {len(found)} arrays of rank"
            " 2 to 4, so it is not clear which to read."
        )
    name, rank, length = found[0]
    return (f"{name}[]", length) if rank == 4 else (name, 1)


def _count(images: h5py.Group) -> int:
    """Number of images, from ``imageid_max`` or, where that is missing, the group names."""
    if "imageid_max" in images.attrs:
        return int(np.asarray(images.attrs["imageid_max"]).reshape(-1)[0]) + 1
    return 1 + max((int(name) for name in map(str, images) if name.isdecimal()), default=-1)
