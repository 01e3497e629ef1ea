"""EMAN2 HDF stacks: read whole or in part, write float32.

`HdfReader` and `HdfWriter` stream; `read_hdf` and `write_hdf` are the short forms.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sptjax._errors import InputError

from ._hdf_reader import HdfReader as HdfReader
from ._hdf_writer import HdfWriter as HdfWriter


def read_hdf(path: str | os.PathLike[str], index: int = 0) -> tuple[np.ndarray, dict[str, Any]]:
    """Read one image of an HDF stack.

    Args:
        path: The file.
        index: Number of the image.

    Returns:
        The image as float32, ``[z, y, x]`` or ``[y, x]``, and its header.

    Raises:
        InputError: The file or the image is missing or damaged.
    """
    with HdfReader(path) as reader:
        return reader.read(index), reader.header(index)


def write_hdf(
    path: str | os.PathLike[str],
    volumes: np.ndarray | Iterable[np.ndarray],
    apix: float,
    headers: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
) -> None:
    """Write a float32 HDF stack, atomically.

    Args:
        path: The file to create or replace.
        volumes: One volume ``[z, y, x]``, a stack ``[n, z, y, x]``, or an iterable of
            volumes or images (a stack of 2-D images is a list of arrays ``[y, x]``).
        apix: Voxel size in angstrom.
        headers: Extra header items, one mapping per image, or one mapping for all.

    Raises:
        InputError: The numbers of headers and volumes differ, or one of them cannot be
            written.
    """
    if isinstance(volumes, np.ndarray) and volumes.ndim < 4:
        volumes = [volumes]
    with HdfWriter(path, apix) as writer:
        for index, volume in enumerate(volumes):
            if headers is None or isinstance(headers, Mapping):
                header = headers
            elif index < len(headers):
                header = headers[index]
            else:
                raise InputError(f"Cannot write {path}: image {index} has no header.")
            writer.append(volume, header)
        if isinstance(headers, Sequence) and len(headers) != len(writer):
            raise InputError(
                f"Cannot write {path}: {len(headers)} headers for {len(writer)} images."
            )
