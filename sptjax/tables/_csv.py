"""Our own plain table (.csv): a line of names, one line per particle.

``x, y, z`` are coordinates in voxels from 0 (``centred_x`` … in angstrom from the middle),
``az, alt, phi`` EMAN's angles in degrees and ``tx, ty, tz`` the shift in voxels of
``xform.align3d``; ``class`` and ``half`` count from 1. Every column may be left out; without angles
particles are taken as they lie. Other columns are kept.
"""

import csv
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from sptjax._errors import InputError
from sptjax.io._atomic import atomic_path

from ._angles import from_eman, to_eman
from ._record import ParticleTable, names

_ANGLES, _SHIFT = ("az", "alt", "phi"), ("tx", "ty", "tz")
_PLACE, _CENTRED = ("x", "y", "z"), ("centred_x", "centred_y", "centred_z")
_FLOATS = {"apix": "apix", "coordinate_apix": "coordinate_apix", "score": "score"}
_INTEGERS = {"class": "classes", "half": "half", "image_index": "image_index"}
_TEXT = ("tomogram", "image")
_OWN = {*_ANGLES, *_SHIFT, *_PLACE, *_CENTRED, *_FLOATS, *_INTEGERS, *_TEXT}
FAMILY = "csv"


def recognises(text: str) -> bool:
    """Whether the first line names coordinates or angles."""
    line = next(csv.reader(text.splitlines()[:1]), [])
    found = {word.strip() for word in line}
    return any(set(group) <= found for group in (_PLACE, _CENTRED, _ANGLES))


def read(
    path: pathlib.Path, text: str, apix: float | None, coordinate_apix: float | None
) -> ParticleTable:
    """The particles of a table; arguments as those of the other formats."""
    rows = [row for row in csv.reader(text.splitlines()) if row]
    header = [word.strip() for word in rows[0]]
    for line, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise InputError(f"{path} line {line}: {len(row)} values under {len(header)} names")
    count = len(rows) - 1
    table = {name: [row[i].strip() for row in rows[1:]] for i, name in enumerate(header)}

    def numbers(*keys: str) -> np.ndarray:
        try:
            return np.array([table.get(key, ["0"] * count) for key in keys], np.float64).T
        except ValueError as error:
            raise InputError(f"{path}: a value of {keys[0]} is no number ({error})") from error

    centred = set(_CENTRED) <= set(header)
    fields: dict[str, Any] = {
        field: numbers(name)[:, 0] for name, field in _FLOATS.items() if name in table
    }
    fields |= {
        field: numbers(name)[:, 0].astype(int) for name, field in _INTEGERS.items() if name in table
    }
    fields |= {name: names(table[name]) for name in _TEXT if name in table}
    for name, given in (("apix", apix), ("coordinate_apix", coordinate_apix)):
        if given:
            fields[name] = np.full(count, float(given))
    if centred or set(_PLACE) <= set(header):
        fields["coordinate"] = numbers(*(_CENTRED if centred else _PLACE))
    extra = {name: values for name, values in table.items() if name not in _OWN}
    return ParticleTable(
        from_eman(numbers(*_ANGLES)),
        numbers(*_SHIFT),
        centred=centred,
        family=FAMILY,
        extra=extra,
        **fields,
    )


def write(path: pathlib.Path, table: ParticleTable) -> list[str]:
    """Write a table; returns what is to be said."""
    columns: dict[str, Sequence[str]] = {}
    for name in _TEXT:
        if getattr(table, name) is not None:
            columns[name] = list(getattr(table, name))
    if table.image_index is not None:
        columns["image_index"] = [str(int(x)) for x in table.image_index]
    groups = [(_ANGLES, to_eman(table.rotation)), (_SHIFT, table.shift)]
    if table.coordinate is not None:
        groups.insert(0, (_CENTRED if table.centred else _PLACE, table.coordinate))
    for keys, values in groups:
        columns |= {key: [f"{x:.10g}" for x in values[:, i]] for i, key in enumerate(keys)}
    for name, field in _FLOATS.items():
        values = getattr(table, field)
        if values is not None:
            columns[name] = [f"{x:.10g}" for x in values]
    for name, field in _INTEGERS.items():
        values = getattr(table, field)
        if values is not None:
            columns[name] = [str(int(x)) for x in values]
    if table.family == FAMILY:
        columns |= {name: [str(x) for x in values] for name, values in table.extra.items()}
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values()))
    return []
