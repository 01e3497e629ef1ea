"""EMAN2's JSON: the old ``sptali`` and the new ``particle_parms`` (:mod:`sptjax.io.eman_json`).

Neither holds coordinates, classes or half sets. Beside a ``sptali`` file these are in
``<stem>_ext.json``, under the names of the record; classes count from 0 there, and so do halves.
Entries of ``particle_parms`` take them as further items, which EMAN2 ignores. Scores are negated:
smaller is better in EMAN2.
"""

import ast
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from sptjax import io
from sptjax._errors import InputError
from sptjax.io.eman_json import PARMS_KEY

from ._record import ParticleTable, names

_FROM_ONE = {"classes": "class", "half": "half"}
_TEXT = ("tomogram", "image")
_NUMBERS = ("coordinate", "coordinate_apix", "apix", "image_index")
_PARMS_OWN = {"xform.align3d", "score"}
FAMILY = "eman"
PARMS = "eman-parms"


def recognises(data: Mapping[str, Any]) -> bool:
    """Whether a JSON object has entries of particles."""
    return any(PARMS_KEY.match(key) or key.startswith("subtomo_") for key in data)


def read(path: pathlib.Path, apix: float | None, coordinate_apix: float | None) -> ParticleTable:
    """The particles of either form; arguments as those of the other formats."""
    data = io.read_json(path)
    matrices, scores = io.read_alignments(path)
    count = len(matrices)
    entries = {int(m["index"]): (m, v) for k, v in data.items() if (m := PARMS_KEY.match(k))}
    beside: dict[str, Any] = dict(io.read_extras(path, count))
    family = FAMILY
    if entries:
        family = PARMS
        values = [value for _, value in entries.values() if isinstance(value, dict)]
        items = {name for value in values for name in value} - _PARMS_OWN
        beside |= {name: [entries[i][1].get(name) for i in range(count)] for name in sorted(items)}
        beside["image"] = [_literal(entries[i][0]["file"]) for i in range(count)]
        beside["image_index"] = list(range(count))
    fields: dict[str, Any] = {}
    for name in _TEXT:
        if name in beside:
            fields[name] = names(beside.pop(name))
    for name in _NUMBERS:
        if name in beside:
            fields[name] = np.array(beside.pop(name), int if name == "image_index" else float)
    for name, key in _FROM_ONE.items():
        if key in beside:
            fields[name] = np.array(beside.pop(key), int) + 1
    if "centred" in beside:
        fields["centred"] = bool(np.all(beside.pop("centred")))
    for name, given in (("apix", apix), ("coordinate_apix", coordinate_apix)):
        if given:
            fields[name] = np.full(count, float(given))
    return ParticleTable(
        matrices[..., :3].astype(np.float64),
        matrices[..., 3].astype(np.float64),
        score=None if np.isnan(scores).all() else 0.0 - scores,
        family=family,
        extra={name: list(column) for name, column in beside.items()},
        **fields,
    )


def write(path: pathlib.Path, table: ParticleTable) -> list[str]:
    """Write the old form; returns what is to be said."""
    columns = _beside(table, FAMILY)
    score = np.zeros(len(table)) if table.score is None else -table.score
    extra = {name: np.asarray(column) for name, column in columns.items()}
    io.write_alignments(path, table.matrices(), score, extra)
    return []


def write_parms(path: pathlib.Path, table: ParticleTable) -> list[str]:
    """Write the new form; returns what is to be said.

    Raises:
        InputError: the stack of the particles is not known, which its keys name.
    """
    if table.image is None:
        raise InputError(f"{path}: keys of this form name the stack of particles (--particles)")
    columns = _beside(table, PARMS)
    columns = {n: c for n, c in columns.items() if n not in ("image", "image_index")}
    matrices = table.matrices()
    index = range(len(table)) if table.image_index is None else np.maximum(table.image_index, 0)
    data = {}
    for row, (file, number) in enumerate(zip(table.image, index)):
        entry = {name: column[row] for name, column in columns.items()}
        entry["xform.align3d"] = io.transform_to_json(matrices[row])
        entry["score"] = 0.0 if table.score is None else -float(table.score[row])
        data[f"({file!r}, {int(number)})"] = entry
    if len(data) < len(table):
        raise InputError(f"{path}: two particles have the same file and number")
    io.write_json(path, data)
    return []


def _beside(table: ParticleTable, family: str) -> dict[str, Any]:
    """What the table holds besides poses and scores."""
    columns: dict[str, Any] = {}
    if table.family in (family, FAMILY, PARMS):
        columns |= {name: list(values) for name, values in table.extra.items()}
    for name in (*_TEXT, *_NUMBERS):
        values = getattr(table, name)
        if values is not None:
            columns[name] = values.tolist()
    if table.coordinate is not None and table.centred:
        columns["centred"] = [1] * len(table)
    for name, key in _FROM_ONE.items():
        values = getattr(table, name)
        if values is not None:
            columns[key] = (values - 1).tolist()
    return columns


def _literal(text: str) -> str:
    """A file name of a key, which is written as Python writes it."""
    try:
        return str(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return text.strip("'\"")
