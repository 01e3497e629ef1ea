"""EMAN2 list files (.lst): text that names images of other files. Read without being changed."""

import json
import os
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sptjax._errors import InputError

from ._atomic import atomic_path
from .eman_json import is_transform, transform_from_json, transform_to_json


@dataclass(frozen=True)
class LstEntry:
    """One line of a list: image `index` of file `path`, with header items that override."""

    path: pathlib.Path
    index: int
    header: dict[str, Any] = field(default_factory=dict)


def read_lst(path: str | os.PathLike[str]) -> list[LstEntry]:
    """Read ``#LSX`` and ``#LST`` files.

    Args:
        path: The list. Each record is ``index<TAB>file[<TAB>JSON object]``.

    Returns:
        The entries in order. A relative file name is looked up in the current folder, as
        EMAN2 does, and then beside the list.

    Raises:
        InputError: The list is missing, is no EMAN2 list, or has a record that cannot be
            read (comments in an old form that would have to be executed are refused).
    """
    where = pathlib.Path(path)
    try:
        lines = where.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise InputError(f"The file {path} does not exist.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The file {path} cannot be read as text.") from error
    if not lines or not lines[0].startswith(("#LSX", "#LST")):
        raise InputError(f"The file {path} is not an EMAN2 list (no #LSX or #LST at its start).")
    return [
        _entry(where, number, line)
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.startswith("#")
    ]


def write_lst(path: str | os.PathLike[str], entries: Sequence[LstEntry]) -> None:
    """Write an ``#LSX`` file, atomically.

    Args:
        path: The list to create or replace.
        entries: In order; 3×4 arrays in their headers are transforms.

    Raises:
        InputError: A file name holds a tab or a line break, or a header item is no JSON.
    """
    records = []
    for entry in entries:
        name = str(entry.path)
        if set(name) & set("\t\r\n"):
            raise InputError(f"The file name {name!r} cannot stand in a list.")
        parts = [str(entry.index), name]
        if entry.header:
            items = {
                key: transform_to_json(value) if isinstance(value, np.ndarray) else value
                for key, value in entry.header.items()
            }
            try:
                parts.append(json.dumps(items, sort_keys=True, separators=(",", ":")))
            except (TypeError, ValueError) as error:
                raise InputError(f"The header of {name} is no JSON: {error}.") from error
        records.append("\t".join(parts).encode())
    length = max([len(record) + 1 for record in records] + [20])
    lines = [b"#LSX", b"# records of one length: index, file, header", b"# %d" % length]
    body = b"".join(record.ljust(length - 1) + b"\n" for record in records)
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"\n".join(lines) + b"\n" + body)


def _entry(where: pathlib.Path, number: int, line: str) -> LstEntry:
    """One record; tabs separate, but old lists use blanks."""
    parts = [part.strip() for part in line.split("\t", 2)]
    if len(parts) == 1:
        parts = line.split(None, 1)
    try:
        index, name = int(parts[0]), parts[1].strip()
        extra = json.loads(parts[2]) if len(parts) > 2 and parts[2] else {}
        header = {
            key: transform_from_json(value, f"{where} line {number}: {key}")
            if is_transform(value)
            else value
            for key, value in extra.items()
        }
    except (ValueError, IndexError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where} line {number} is not 'index, file, JSON': {line!r}.") from error
    file = pathlib.Path(name)
    beside = where.parent / file
    return LstEntry(beside if not file.exists() and beside.exists() else file, index, header)
