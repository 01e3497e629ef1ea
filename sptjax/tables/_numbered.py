"""Programs that number tomograms: numbers to and from names.

Names are kept beside the table, in ``<stem>.doc`` with lines ``number name`` (Dynamo's table map).
"""

import pathlib

import numpy as np

from sptjax._errors import InputError
from sptjax.io._atomic import atomic_path

from ._record import names


def doc_path(path: pathlib.Path) -> pathlib.Path:
    """Where the names belonging to a table are."""
    return path.with_suffix(".doc")


def read_doc(path: pathlib.Path) -> dict[int, str]:
    """Names by number.

    Raises:
        InputError: a line is not a number and a name.
    """
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        parts = line.split(None, 1)
        if not parts or parts[0].startswith("#"):
            continue
        if len(parts) < 2 or not parts[0].isdigit():
            raise InputError(f"{path}: {line!r} is not the number and the name of a tomogram")
        found[int(parts[0])] = parts[1].strip()
    return found


def from_numbers(path: pathlib.Path, numbers: np.ndarray) -> np.ndarray:
    """Names of numbered tomograms: those beside the table, or the numbers as text."""
    beside = doc_path(path)
    known = read_doc(beside) if beside.is_file() else {}
    return names([known.get(int(number), str(int(number))) for number in numbers])


def to_numbers(
    path: pathlib.Path, tomogram: np.ndarray | None, count: int
) -> tuple[np.ndarray, list[str]]:
    """Numbers of named tomograms, and what is to be said; new numbers are written beside."""
    if tomogram is None:
        return np.ones(count, int), []
    if all(name.isdigit() for name in tomogram):
        return np.array([int(name) for name in tomogram], int), []
    number = {name: i for i, name in enumerate(dict.fromkeys(tomogram), 1)}
    beside = doc_path(path)
    with atomic_path(beside) as temporary:
        temporary.write_text("".join(f"{i} {name}\n" for name, i in number.items()))
    said = f"tomograms are numbered 1 to {len(number)}, their names are in {beside.name}"
    return np.array([number[name] for name in tomogram], int), [said]
