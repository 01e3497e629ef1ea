"""The images of any readable file, one by one, each read in parts."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import h5py
import numpy as np

from sptjax._errors import InputError

from ._hdf_reader import HdfReader
from ._mapping import Mapping
from ._pieces import SLAB_BYTES, Region, stored_shape
from .lst import read_lst
from .mrc import MrcReader
from .stack import Reader, open_reader


class FileImage:
    """One image of an open file. What fits into one slab is read once and kept.

    Args:
        reader: the open file.
        index: of the image.
        extra: header items that override those of the file.
    """

    def __init__(self, reader: Reader, index: int, extra: dict[str, Any] | None = None):
        self._reader, self._index, self._extra = reader, index, extra or {}
        self._full = reader.shape(index)
        self._kept: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Without leading axes of length 1."""
        return stored_shape(self._full)

    @property
    def depth(self) -> int:
        """Height of the chunks of a chunked file, otherwise 1."""
        chunks = self._chunks()
        return chunks[-len(self.shape)] if chunks else 1

    def _chunks(self) -> tuple[int, ...] | None:
        dataset = self.dataset
        return None if dataset is None else dataset.chunks

    def read(self, region: Region) -> np.ndarray:
        """A part of the image."""
        if 4 * int(np.prod(self.shape)) > SLAB_BYTES:
            return self._part(region)
        if self._kept is None:
            self._kept = self._part((slice(0, self.shape[0]),))
        return self._kept[region]

    def _part(self, region: Region) -> np.ndarray:
        extra = len(self._full) - len(self.shape)
        part = self._reader.read_part(self._index, (slice(0, 1),) * extra + region)
        return part.reshape(part.shape[extra:])

    def header(self) -> dict[str, Any]:
        """Header items under EMAN2's names."""
        return self._reader.header(self._index) | self._extra

    @property
    def dataset(self) -> h5py.Dataset | None:
        """Where an HDF image lies."""
        reader = self._reader
        return reader.dataset(self._index) if isinstance(reader, HdfReader) else None

    @property
    def attributes(self) -> h5py.Group | None:
        """What carries the attributes of an image of EMAN2's own layout."""
        dataset = self.dataset
        own = isinstance(self._reader, HdfReader) and self._reader.eman and not self._extra
        return cast(h5py.Group, dataset.parent) if own and dataset is not None else None

    @property
    def mapping(self) -> Mapping | None:
        """Of an image whose codes can be copied as they are."""
        dataset = self.dataset
        if self.attributes is None or dataset is None or not isinstance(self._reader, HdfReader):
            return None
        found = self._reader.mapping(self._index)
        return found if found is not None and dataset.dtype == found.dtype else None


@dataclass(frozen=True)
class Input:
    """An open file: how many images, and how to get one.

    Attributes:
        path: of the file.
        count: of the images.
        image: gets one.
        group: carries attributes of the whole stack.
        listed: the files that a list names.
        others: names what the file holds besides images.
    """

    path: pathlib.Path
    count: int
    image: Callable[[int], FileImage]
    group: h5py.Group | None = None
    listed: frozenset[pathlib.Path] = frozenset()
    others: Callable[[], list[str]] = list


@contextlib.contextmanager
def open_input(
    path: str | os.PathLike[str], *, split: bool | None = None, unsigned: bool = False
) -> Iterator[Input]:
    """Open a file of any format.

    Args:
        path: the file, or an LST list (whose images are those of the files it names).
        split: whether the sections of an MRC file are images; if not, they are volumes by the
            table of :mod:`sptjax.io.mrc`. None: as EMAN2 does, images in .mrcs files.
        unsigned: bytes of an MRC file go from 0 to 255, whatever its header says.

    Raises:
        InputError: the file cannot be read, or holds no images.
    """
    where = pathlib.Path(path)
    if where.is_dir():
        raise InputError(f"{where} is a folder, no file of images.")
    with contextlib.ExitStack() as stack:
        if where.suffix.lower() == ".lst":
            yield _list(where, stack)
            return
        reader = stack.enter_context(open_reader(where))
        if isinstance(reader, MrcReader):
            split = reader.sections_are_images if split is None else split
            reader = stack.enter_context(MrcReader(where, split=split, unsigned=unsigned))
        if not len(reader):
            raise InputError(f"The file {where} holds no images.")
        group = reader.images if isinstance(reader, HdfReader) and reader.eman else None
        others = reader.others if isinstance(reader, HdfReader) else list
        yield Input(
            where, len(reader), lambda index: FileImage(reader, index), group, others=others
        )


def _list(where: pathlib.Path, stack: contextlib.ExitStack) -> Input:
    entries = read_lst(where)
    if not entries:
        raise InputError(f"The list {where} holds no images.")
    last: list[tuple[pathlib.Path, Reader]] = []

    def image(index: int) -> FileImage:
        entry = entries[index]
        if not last or last[0][0] != entry.path:
            if last:
                last.pop()[1].close()
            last.append((entry.path, open_reader(entry.path)))
            stack.callback(last[0][1].close)
        extra = {"data_source": str(entry.path), "data_n": entry.index, **entry.header}
        return FileImage(last[0][1], entry.index, extra)

    return Input(where, len(entries), image, listed=frozenset(entry.path for entry in entries))
