"""One lazy stack of cubic volumes over files of any supported format."""

import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Protocol

import numpy as np

from sptjax._errors import InputError

from ._hdf_reader import HDF5_MAGIC, HdfReader
from .em import EmReader
from .lst import read_lst
from .mrc import MrcReader
from .spider import SpiderReader
from .tiff import TiffReader

Spec = str | os.PathLike[str]

_READERS: Mapping[str, Callable[[pathlib.Path], "Reader"]] = {
    **dict.fromkeys((".hdf", ".h5", ".hdf5", ".hd5"), HdfReader),
    **dict.fromkeys((".mrc", ".mrcs", ".map", ".rec", ".ccp4", ".st", ".ali"), MrcReader),
    **dict.fromkeys((".tif", ".tiff"), TiffReader),
    **dict.fromkeys((".spi", ".spider", ".dat"), SpiderReader),
    ".em": EmReader,
}
_MAGICS: Sequence[tuple[bytes, int, Callable[[pathlib.Path], "Reader"]]] = (
    (HDF5_MAGIC, 0, HdfReader),
    (b"II*\0", 0, TiffReader),
    (b"MM\0*", 0, TiffReader),
    (b"II+\0", 0, TiffReader),
    (b"MM\0+", 0, TiffReader),
    (b"MAP ", 208, MrcReader),
)
_SNIFF = 212
_ONE = re.compile(r"(?P<path>.+)[:@](?P<index>\d+)$", re.DOTALL)
_APIX_TOLERANCE = 0.01


class Reader(Protocol):
    """What every format offers."""

    def __len__(self) -> int: ...
    def __enter__(self) -> "Reader": ...
    def __exit__(self, *exception) -> None: ...

    def close(self) -> None:
        """Close the file."""
        ...

    def shape(self, index: int) -> tuple[int, ...]:
        """Shape of one image."""
        ...

    def header(self, index: int) -> dict[str, Any]:
        """Header of one image under EMAN2's names."""
        ...

    def apix(self, index: int) -> float | None:
        """Voxel size in angstrom, None if the file does not tell."""
        ...

    def read(self, index: int) -> np.ndarray:
        """One image as float32."""
        ...

    def read_part(self, index: int, region: tuple[slice, ...]) -> np.ndarray:
        """A part of one image: float32, or integers of at most 16 bits."""
        ...


@dataclass(frozen=True, eq=False)
class Stack:
    """Cubic volumes of one size, read on demand. Made by `open_stack`.

    No file stays open between calls, so nothing needs closing, calls from several threads
    do not disturb each other, and other programs may use the files.
    """

    box: int
    apix: float | None  # angstrom per voxel; None if no file tells
    _files: tuple[pathlib.Path, ...]
    _places: np.ndarray  # int64 [n, 2]: number of the file, image in the file
    _overrides: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._places)

    def __enter__(self) -> "Stack":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is open; here so that a stack can be used as a context manager."""

    def name(self, index: int) -> str:
        """``<file> image <i>``, for messages."""
        path, image = self._place(index)
        return f"{path} image {image}"

    def header(self, index: int) -> dict[str, Any]:
        """The header of volume `index` as a plain dictionary under EMAN2's names."""
        path, image = self._place(index)
        with open_reader(path) as reader:
            return reader.header(image) | self._overrides.get(index, {})

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The volumes `indices`, in that order.

        Args:
            indices: Numbers from 0 to ``len(self) - 1``; repeats are allowed.

        Returns:
            float32 array ``[len(indices), box, box, box]``, new memory.

        Raises:
            InputError: An index is out of range, or a file was damaged or changed.
        """
        wanted = np.asarray(indices, np.int64).reshape(-1)
        out = np.empty((len(wanted), self.box, self.box, self.box), np.float32)
        places = [self._place(index) for index in wanted.tolist()]
        for path, group in groupby(range(len(places)), lambda row: places[row][0]):
            with open_reader(path) as reader:
                for row in group:
                    volume = reader.read(places[row][1])
                    if volume.shape != out.shape[1:]:
                        raise InputError(f"{self.name(int(wanted[row]))} changed while in use.")
                    out[row] = volume
        return out

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Successive ``(indices, volumes)`` of at most `size` volumes."""
        for first in range(0, len(self), size):
            indices = np.arange(first, min(first + size, len(self)))
            yield indices, self.read(indices)

    def select(self, rows: Sequence[int] | np.ndarray) -> "Stack":
        """Some of the volumes, in the order of `rows`, as a stack."""
        chosen = [int(i) for i in rows]
        moved = {
            new: self._overrides[old] for new, old in enumerate(chosen) if old in self._overrides
        }
        return replace(self, _places=self._places[chosen], _overrides=moved)

    def _place(self, index: int) -> tuple[pathlib.Path, int]:
        if not 0 <= index < len(self):
            raise InputError(f"There is no volume {index} in a stack of {len(self)}.")
        file, image = self._places[index]
        return self._files[file], int(image)


def open_reader(path: Spec) -> Reader:
    """The reader for a file, by its extension or, failing that, its first bytes.

    Args:
        path: The file; ``.gz`` and ``.bz2`` after an MRC extension are allowed.

    Raises:
        InputError: The file is missing or damaged, or the format is not known.
    """
    where = pathlib.Path(path)
    suffixes = [suffix.lower() for suffix in where.suffixes]
    if suffixes and suffixes[-1] in (".gz", ".bz2"):
        suffixes.pop()
    kind = _READERS.get(suffixes[-1] if suffixes else "")
    if kind is not None:
        return kind(where)
    if not where.is_file():
        raise InputError(f"The file {where} does not exist.")
    with open(where, "rb") as raw:
        start = raw.read(_SNIFF)
    for magic, place, kind in _MAGICS:
        if start[place : place + len(magic)] == magic:
            return kind(where)
    raise InputError(
        f"The format of {where} is not known by its extension; known are"
        f" {', '.join(sorted(_READERS))} and .lst."
    )


def open_stack(spec: Spec | Sequence[Spec], *, even: bool = True, min_box: int = 8) -> Stack:
    """Open volumes as one stack, checking every header but reading no voxel.

    Args:
        spec: A file (all its volumes), ``file:n`` or ``file@n`` (its volume `n`), a
            ``.lst`` list, or a list of these.
        even: Whether the box must be even (particles; references may be odd).
        min_box: Smallest box allowed, in voxels.

    Returns:
        The stack, its volumes in the order given.

    Raises:
        InputError: A file is missing, unreadable or truncated; a volume is not cubic;
            boxes or voxel sizes (by more than 1 %) differ; the box is odd or too small;
            there is no volume at all.
    """
    specs = [spec] if isinstance(spec, (str, os.PathLike)) else list(spec)
    files: dict[pathlib.Path, int] = {}
    rows: list[tuple[int, int]] = []
    overrides: dict[int, dict[str, Any]] = {}
    for path, image, extra in (entry for one in specs for entry in _expand(one)):
        if extra:
            overrides[len(rows)] = extra
        rows.append((files.setdefault(path, len(files)), image))
    if not rows:
        shown = ", ".join(str(one) for one in specs[:3]) + (", ..." if len(specs) > 3 else "")
        raise InputError(f"The stack {shown or 'without files'} holds no images.")
    names, places = tuple(files), np.array(rows, np.int64)
    box, apix = _check(names, places, min_box, even)
    return Stack(box, apix, names, places, overrides)


def _expand(spec: Spec) -> Iterator[tuple[pathlib.Path, int, dict[str, Any]]]:
    """Entries ``(file, image, header items)`` that a specification stands for."""
    path, index = pathlib.Path(spec), None
    match = None if path.exists() else _ONE.match(os.fspath(spec))
    if match:
        path, index = pathlib.Path(match["path"]), int(match["index"])
    if path.suffix.lower() == ".lst":
        entries = [(entry.path, entry.index, entry.header) for entry in read_lst(path)]
    else:
        with open_reader(path) as reader:
            entries = [(path, image, {}) for image in range(len(reader))]
    if index is None:
        yield from entries
    elif index < len(entries):
        yield entries[index]
    else:
        raise InputError(f"{path} holds {len(entries)} images; there is no image {index}.")


def _check(
    files: Sequence[pathlib.Path], places: np.ndarray, min_box: int, even: bool
) -> tuple[int, float | None]:
    """The common box and voxel size, from headers alone."""
    box, apix = 0, None
    order = np.argsort(places[:, 0], kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(places[order, 0])) + 1):
        path = files[places[group[0], 0]]
        images = np.unique(places[group, 1]).tolist()
        with open_reader(path) as reader:
            for image in images:
                box = _check_shape(f"{path} image {image}", reader.shape(image), box, min_box, even)
            own = reader.apix(images[0])
        if apix is None:
            apix = own
        elif own is not None and abs(own / apix - 1) > _APIX_TOLERANCE:
            raise InputError(
                f"{path} has a voxel size of {own:.4g} A, but the files before it have"
                f" {apix:.4g} A."
            )
    return box, apix


def _check_shape(name: str, shape: tuple[int, ...], box: int, min_box: int, even: bool) -> int:
    """The box of one volume, if it is a cube of the size wanted (`box` 0: of any size)."""
    if len(shape) != 3 or len(set(shape)) != 1:
        raise InputError(
            f"{name} is not a cubic volume: its size is {' x '.join(map(str, shape[::-1]))}."
        )
    if shape[0] < min_box:
        raise InputError(f"{name} has a box of {shape[0]} voxels; at least {min_box} are needed.")
    if even and shape[0] % 2:
        raise InputError(f"{name} has an odd box of {shape[0]} voxels; particles need an even box.")
    if box and shape[0] != box:
        raise InputError(
            f"{name} has a box of {shape[0]} voxels, but the volumes before it have {box}."
        )
    return shape[0]


def read_volume(spec: Spec) -> tuple[np.ndarray, float | None, dict[str, Any]]:
    """Read one map, mask or reference.

    Args:
        spec: A file with one volume, or ``file:n`` / ``file@n`` for volume `n`.

    Returns:
        The volume (float32 ``[z, y, x]``, not necessarily cubic), its voxel size in
        angstrom (None if the file does not tell), and its header.

    Raises:
        InputError: The file is missing, unreadable or truncated, holds several volumes
            and no number was given, or the image is not of rank 3.
    """
    entries = list(_expand(spec))
    if len(entries) != 1:
        raise InputError(f"{spec} holds {len(entries)} images; name one of them as {spec}:0.")
    path, image, extra = entries[0]
    with open_reader(path) as reader:
        volume, header, apix = reader.read(image), reader.header(image), reader.apix(image)
    if volume.ndim != 3:
        raise InputError(f"{path} image {image} is not a volume: it has {volume.ndim} axes.")
    return volume, apix, header | extra
