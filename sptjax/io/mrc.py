"""MRC maps and stacks (MRC2014 and its relatives), through :mod:`mrcfile`.

========== ===================================== ==========================================
extension  header                                images
========== ===================================== ==========================================
any        space group 401 … 630                 ``nz / mz`` volumes
.mrcs      square sections, ``nz = n * nx``      ``n`` cubic boxes
.mrcs      otherwise                             ``nz`` images of rank 2
other      otherwise                             one volume (one image if ``nz = 1``)
========== ===================================== ==========================================

Modes 0 (signed, unless IMOD's flags say unsigned), 1, 2, 6, 12 and 101 (4 bits). Axes stored in
another order than x, y, z (``mapc``, ``mapr``, ``maps``) are transposed to ``[z, y, x]``. Files may
be compressed by gzip or bzip2: these are read whole, and checked for completeness then.
"""

import bz2
import gzip
import io
import math
import os
import pathlib
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import mrcfile
import numpy as np
from mrcfile.mrcinterpreter import MrcInterpreter
from mrcfile.utils import data_dtype_from_header, spacegroup_is_volume_stack

from sptjax._errors import InputError

from ._atomic import atomic_path
from ._mapping import native

_HEADER_BYTES = 1024
_NSYMBT = 92  # byte where the header says how long its extension is
_HALF_BYTES = 101  # the mode of two 4-bit values in a byte, the first one in the low bits
_IMOD_STAMP = 1146047817
_COMPRESSED = (".gz", ".bz2")
_OPENERS: Mapping[str, Callable[..., Any]] = {"": open, "gzip": gzip.open, "bzip2": bz2.open}
_DAMAGE = (OSError, EOFError, ValueError, zlib.error)
_MAX_AXIS = 1 << 20  # no real map has longer axes; beyond, the header is not one of an MRC file


class MrcReader:
    """Random access to the images of one MRC file; use as a context manager.

    Args:
        path: The file.
        split: Every section is an image, whatever the table says.
        unsigned: Bytes go from 0 to 255, whatever the header says.

    Raises:
        InputError: The file is missing, truncated, not MRC, or has no real values.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, split: bool = False, unsigned: bool = False
    ):
        self.path = pathlib.Path(path)
        self._fields, self._dtype, self._compression = _read_header(self.path)
        if unsigned and self._dtype == np.int8:
            self._dtype = np.dtype(np.uint8)
        self._data: np.ndarray | None = None
        self._sections, self._rank = (1, 2) if split else _arrangement(self.path, self._fields)
        if not self._compression:
            needed = self._offset + self._dtype.itemsize * math.prod(self._packed)
            size = self.path.stat().st_size
            if size < needed:
                raise InputError(
                    f"The file {self.path} is truncated: {size} of {needed} bytes are there."
                )

    def __len__(self) -> int:
        return int(self._fields["nz"]) // self._sections

    def __enter__(self) -> "MrcReader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Forget the values."""
        self._data = None

    @property
    def sections_are_images(self) -> bool:
        """Whether EMAN2 takes every section for an image: in .mrcs files, volume stacks apart."""
        return _suffix(self.path) == ".mrcs" and not spacegroup_is_volume_stack(
            self._fields["ispg"]
        )

    @property
    def _offset(self) -> int:
        return _HEADER_BYTES + int(self._fields["nsymbt"])

    @property
    def _stored(self) -> tuple[int, int, int]:
        """Sections, rows and columns as they lie in the file."""
        nz, ny, nx = (int(self._fields[name]) for name in ("nz", "ny", "nx"))
        return nz, ny, nx

    @property
    def _packed(self) -> tuple[int, int, int]:
        """The same, counted in items of the file: two values are in a byte of mode 101."""
        nz, ny, nx = self._stored
        return (nz, ny, -(-nx // 2)) if self._halves else (nz, ny, nx)

    @property
    def _halves(self) -> bool:
        return int(self._fields["mode"]) == _HALF_BYTES

    @property
    def _order(self) -> tuple[int, ...]:
        """Transposition that brings a stored volume to ``[z, y, x]``."""
        axes = [int(self._fields[name]) for name in ("maps", "mapr", "mapc")]
        if self._rank == 2 or sorted(axes) != [1, 2, 3]:
            return tuple(range(self._rank))
        return tuple(axes.index(axis) for axis in (3, 2, 1))

    def shape(self, index: int) -> tuple[int, ...]:
        """Shape of image `index`: ``(nz, ny, nx)`` or ``(ny, nx)``."""
        self._check(index)
        stored = (self._sections, *self._stored[1:])[-self._rank :]
        return tuple(stored[axis] for axis in self._order)

    def header(self, index: int) -> dict[str, Any]:
        """Size, voxel size (``apix_x`` …), ``origin_x`` … and the ``MRC.`` fields."""
        nz, ny, nx = (1, *self.shape(index))[-3:]
        result: dict[str, Any] = {"nx": nx, "ny": ny, "nz": nz}
        fields = self._fields
        for axis in "xyz":
            cell, sampling = float(fields["cella"][axis]), int(fields[f"m{axis}"])
            if sampling > 0 and math.isfinite(cell) and cell > 0:
                result[f"apix_{axis}"] = cell / sampling
            result[f"origin_{axis}"] = float(fields["origin"][axis])
            result[f"MRC.n{axis}start"] = int(fields[f"n{axis}start"])
            result[f"MRC.m{axis}"] = sampling
        for name in ("mode", "mapc", "mapr", "maps", "ispg", "nsymbt"):
            result[f"MRC.{name}"] = int(fields[name])
        for number in range(min(max(int(fields["nlabl"]), 0), 10)):
            text = bytes(fields["label"][number]).decode("ascii", "replace").replace("\0", " ")
            result[f"MRC.label{number}"] = text.rstrip()
        for name, ours in (("dmin", "minimum"), ("dmax", "maximum"), ("dmean", "mean")):
            result[f"MRC.{ours}"] = float(fields[name])
        return result

    def apix(self, index: int) -> float | None:
        """Voxel size in angstrom along x, None if the header does not tell."""
        value = self.header(index).get("apix_x")
        return value if value is not None and 0.01 <= value <= 1000 else None

    def read(self, index: int) -> np.ndarray:
        """Image `index` as float32; only its part of the file is read."""
        return self.read_part(index, ()).astype(np.float32, copy=False)

    def read_part(self, index: int, region: tuple[slice, ...]) -> np.ndarray:
        """A part of image `index`: float32, or integers of at most 16 bits.

        Args:
            index: Number of the image.
            region: Slices of its leading axes.
        """
        self._check(index)
        first = index * self._sections
        if self._data is None:
            self._data = self._whole() if self._compression else self._mapped()
        image = self._data[first : first + self._sections]
        if self._halves:
            return _half_bytes(image, self._rank, self._order, region, self._stored[2])
        image = image[0] if self._rank == 2 else image.transpose(self._order)
        return native(image[region])

    def _check(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise InputError(f"{self.path} holds {len(self)} images; there is no image {index}.")

    def _mapped(self) -> np.ndarray:
        return np.memmap(self.path, self._dtype, "r", offset=self._offset, shape=self._packed)

    def _whole(self) -> np.ndarray:
        """All values of a compressed file."""
        count = math.prod(self._packed)
        try:
            with _OPENERS[self._compression](self.path, "rb") as stream:
                raw = stream.read(self._offset + count * self._dtype.itemsize)
            return np.frombuffer(raw, self._dtype, count, self._offset).reshape(self._packed)
        except _DAMAGE as error:
            raise InputError(f"The file {self.path} is truncated or damaged.") from error


def _read_header(path: pathlib.Path) -> tuple[Any, np.dtype, str]:
    """The header record, the type of the values, and the compression (empty for none)."""
    if not path.is_file():
        raise InputError(f"The file {path} does not exist.")
    try:
        compression = _compression(path)
        with _OPENERS[compression](path, "rb") as stream:
            raw = stream.read(_HEADER_BYTES)
        # Without the extended header: in a file that is not MRC its length may be anything.
        bare = io.BytesIO(raw[:_NSYMBT] + bytes(4) + raw[_NSYMBT + 4 :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            with MrcInterpreter(iostream=bare, permissive=True, header_only=True) as file:
                header: Any = file.header
                fields = header.copy()
        fields["nsymbt"] = np.frombuffer(raw, fields["nx"].dtype, 1, _NSYMBT)[0]
    except _DAMAGE as error:
        raise InputError(f"The file {path} is truncated or not an MRC file.") from error
    sizes = [int(fields[name]) for name in ("nx", "ny", "nz")]
    if not all(0 < size < _MAX_AXIS for size in sizes) or int(fields["nsymbt"]) < 0:
        raise InputError(f"The file {path} is not an MRC file (its header makes no sense).")
    if int(fields["mode"]) == _HALF_BYTES:
        return fields, np.dtype(np.uint8), compression
    try:
        dtype = np.dtype(data_dtype_from_header(fields))
    except ValueError:
        dtype = np.dtype(complex)
    if dtype.kind == "c":
        raise InputError(f"{path} has MRC mode {int(fields['mode'])}, which holds no real values.")
    if dtype == np.int8 and _unsigned_bytes(fields):
        dtype = np.dtype(np.uint8)
    return fields, dtype, compression


def _half_bytes(
    image: np.ndarray, rank: int, order: tuple[int, ...], region: tuple[slice, ...], nx: int
) -> np.ndarray:
    """A part of an image of 4-bit values; only whole rows are unpacked if axes are in order."""
    plain = order == tuple(range(rank)) and len(region) < rank
    packed = image[0] if rank == 2 else image
    packed = np.asarray(packed[region] if plain else packed)
    values = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)[..., :nx]
    return native(values if plain else values.transpose(order)[region])


def _compression(path: pathlib.Path) -> str:
    """How a file is compressed, by its first bytes; ``MAP`` in its place means not at all."""
    with open(path, "rb") as stream:
        start = stream.read(_HEADER_BYTES)
    magics = {b"\x1f\x8b": "gzip", b"BZ": "bzip2"}
    return "" if start[208:211] == b"MAP" else magics.get(start[:2], "")


def _unsigned_bytes(fields: Any) -> bool:
    """Whether IMOD wrote the file with bytes 0 … 255 (its stamp, and flag 1 not set)."""
    order = fields["nx"].dtype.byteorder
    extra = bytes(fields["extra2"].tobytes())
    stamp, flags = np.frombuffer(extra, np.dtype("i4").newbyteorder(order), count=2, offset=40)
    return int(stamp) == _IMOD_STAMP and not int(flags) & 1


def _arrangement(path: pathlib.Path, fields: Any) -> tuple[int, int]:
    """Sections of one image, and its rank, by the table of the module."""
    nz, ny, nx = (int(fields[name]) for name in ("nz", "ny", "nx"))
    mz = int(fields["mz"])
    if spacegroup_is_volume_stack(fields["ispg"]) and mz > 0 and nz % mz == 0:
        return mz, 3
    if _suffix(path) == ".mrcs":
        return (nx, 3) if nx == ny and nz % nx == 0 else (1, 2)
    return (nz, 3) if nz > 1 else (1, 2)


def _suffix(path: pathlib.Path) -> str:
    """The extension in lower case, that of a compression left out."""
    known = (suffix.lower() for suffix in reversed(path.suffixes))
    return next((suffix for suffix in known if suffix not in _COMPRESSED), "")


def read_mrc(path: str | os.PathLike[str], index: int = 0) -> tuple[np.ndarray, dict[str, Any]]:
    """Read one image of an MRC file.

    Args:
        path: The file, possibly compressed.
        index: Number of the image.

    Returns:
        The image as float32, ``[z, y, x]`` or ``[y, x]``, and its header.

    Raises:
        InputError: The file or the image is missing or damaged.
    """
    with MrcReader(path) as reader:
        return reader.read(index), reader.header(index)


def write_mrc(
    path: str | os.PathLike[str],
    volume: np.ndarray,
    apix: float,
    header: Mapping[str, Any] | None = None,
) -> None:
    """Write a float32 MRC file (mode 2), atomically and with reproducible bytes.

    Args:
        path: The file to create or replace; not compressed.
        volume: ``[z, y, x]``, ``[y, x]``, or ``[n, z, y, x]`` (a volume stack, space
            group 401).
        apix: Voxel size in angstrom.
        header: ``origin_x`` … and ``MRC.nxstart`` … as read by `read_mrc` are kept; the
            rest is ignored. Without them the corner of the map is the origin.

    Raises:
        InputError: The name asks for compression, or the values are no image.
    """
    target = pathlib.Path(path)
    pixels = np.asarray(volume)
    if target.suffix.lower() in _COMPRESSED:
        raise InputError(f"Cannot write {path}: compressed MRC files are only read.")
    if pixels.dtype.kind not in "biuf" or not 2 <= pixels.ndim <= 4 or pixels.size == 0:
        raise InputError(
            f"Cannot write {path}: an array of shape {pixels.shape} and type {pixels.dtype} is"
            " no map."
        )
    with atomic_path(target) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # values that are not finite
        with mrcfile.new(temporary) as file:
            file.set_data(np.ascontiguousarray(pixels, np.float32))
            if pixels.ndim == 3:
                file.set_volume()
            _describe(file, apix, header or {})


def write_mrc_parts(
    path: str | os.PathLike[str],
    shape: tuple[int, ...],
    parts: Iterable[tuple[tuple[int | slice, ...], np.ndarray]],
    apix: float,
    header: Mapping[str, Any] | None = None,
    *,
    images: bool = False,
) -> None:
    """Write a float32 MRC file (mode 2) part by part, atomically.

    Args:
        path: The file to create or replace.
        shape: ``[z, y, x]``, ``[y, x]`` or ``[n, z, y, x]``.
        parts: Where a part lies and its values ``[z, y, x]``; together they cover the shape.
        apix: Voxel size in angstrom.
        header: As in :func:`write_mrc`.
        images: ``z`` counts images, not sections of a volume.
    """
    least, most, total, squares = np.inf, -np.inf, 0.0, 0.0
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with mrcfile.new_mmap(temporary, shape, mrc_mode=2) as file:
            data: Any = file.data
            for place, values in parts:
                data[place] = values
                least, most = min(least, values.min()), max(most, values.max())
                total += values.sum(dtype=np.float64)
                squares += np.square(values, dtype=np.float64).sum()
            if len(shape) == 3:
                (file.set_image_stack if images else file.set_volume)()
            _describe(file, apix, header or {})
            fields: Any = file.header
            mean = total / math.prod(shape)
            fields["dmin"], fields["dmax"], fields["dmean"] = least, most, mean
            fields["rms"] = math.sqrt(max(squares / math.prod(shape) - mean**2, 0.0))


def _describe(file: Any, apix: float, items: Mapping[str, Any]) -> None:
    """Voxel size, origin and label."""
    file.voxel_size = apix
    fields: Any = file.header
    for axis in "xyz":
        fields[f"n{axis}start"] = int(items.get(f"MRC.n{axis}start", 0))
        fields["origin"][axis] = float(items.get(f"origin_{axis}", 0.0))
    fields["nlabl"] = 1
    fields["label"][0] = b"written by sptjax"
