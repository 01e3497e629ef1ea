"""Which formats there are, which one a file has, and what each cannot hold."""

import functools
import os
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from sptjax import io
from sptjax._errors import InputError

from . import _av3, _csv, _dynamo, _eman, _lst, _pytom, _relion, _stopgap
from ._record import ParticleTable
from ._star import read_star

_HELD = {  # fields of the record, in words
    "tomogram": "tomogram names",
    "coordinate": "coordinates",
    "image": "image names",
    "classes": "classes",
    "half": "half sets",
    "score": "scores",
    "apix": "voxel sizes",
}
_MOTIVE = frozenset(("tomogram", "coordinate", "classes", "score"))
_EVERYTHING = frozenset(_HELD)
_SHOWN = 4  # names in a message
_UNKNOWN = (
    "{} is no table of particles that is known: RELION or STOPGAP STAR, Dynamo table, AV3 motive"
    " list (.em with 20 rows), EMAN2 JSON or LST with poses, PyTom XML, or CSV with columns x, y, z"
    " or az, alt, phi."
)


@dataclass(frozen=True)
class Format:
    """A format that can be written."""

    title: str
    suffix: str
    write: Callable[[pathlib.Path, ParticleTable], list[str]]
    holds: frozenset[str]
    families: tuple[str, ...]  # whose further columns it keeps
    boxes: bool = False  # whether it holds orientations of boxes
    unit: bool = True  # whether it says what coordinates count, or counts voxels of the particles


def _relion_format(version: str) -> Format:
    return Format(
        f"RELION {version}",
        ".star",
        functools.partial(_relion.write, version=version),
        _EVERYTHING,
        (_relion.FAMILY,),
        boxes=version in ("4", "5"),
        unit=version != "3.0",
    )


_EMAN = (_eman.FAMILY, _eman.PARMS)
FORMATS: dict[str, Format] = {
    "relion3": _relion_format("3.0"),
    "relion3.1": _relion_format("3.1"),
    "relion4": _relion_format("4"),
    "relion5": _relion_format("5"),
    "dynamo": Format("Dynamo", ".tbl", _dynamo.write, _MOTIVE | {"apix"}, (_dynamo.FAMILY,)),
    "stopgap": Format("STOPGAP", ".star", _stopgap.write, _MOTIVE | {"half"}, (_stopgap.FAMILY,)),
    "av3": Format("AV3", ".em", _av3.write, _MOTIVE, (_av3.FAMILY,)),
    "eman": Format("EMAN2 sptali JSON", ".json", _eman.write, _EVERYTHING, _EMAN),
    "eman-parms": Format(
        "EMAN2 particle_parms JSON", ".json", _eman.write_parms, _EVERYTHING, _EMAN
    ),
    "lst": Format(
        "EMAN2 list", ".lst", _lst.write, _EVERYTHING - {"apix"}, (_lst.FAMILY,), unit=False
    ),
    "pytom": Format("PyTom", ".xml", _pytom.write, _MOTIVE | {"image"}, (_pytom.FAMILY,)),
    "csv": Format("CSV", ".csv", _csv.write, _EVERYTHING, (_csv.FAMILY,)),
}
_BY_SUFFIX = {
    ".star": "relion4", ".tbl": "dynamo", ".em": "av3", ".json": "eman", ".lst": "lst",
    ".xml": "pytom", ".csv": "csv",
}  # fmt: skip


def read(
    path: str | os.PathLike[str],
    *,
    apix: float | None = None,
    coordinate_apix: float | None = None,
) -> ParticleTable:
    """The particles of a table of any format, found out from its content.

    Args:
        path: the file.
        apix: voxel size of the particles in angstrom, where the file does not say it, or wrongly.
        coordinate_apix: angstrom per unit of its coordinates, likewise.

    Raises:
        InputError: the file is missing, of no known format, or damaged.
    """
    where = pathlib.Path(path)
    if not where.is_file():
        raise InputError(f"The file {path} does not exist.")
    for name, value in (("apix", apix), ("coordinate_apix", coordinate_apix)):
        if value is not None and not value > 0:
            raise InputError(f"--{name}={value:g}: a voxel size must be positive")
    rows = _av3.load(where) if where.suffix.lower() == ".em" else None
    if rows is not None:
        return _av3.read(where, rows, apix, coordinate_apix)
    text = _text(where)
    start = text.lstrip("\ufeff \t\r\n")
    if _lst.recognises(start):
        return _lst.read(where, apix, coordinate_apix)
    if start.startswith("{"):
        if not _eman.recognises(io.read_json(where)):
            raise InputError(f"{path} is JSON, but has no entries subtomo_<i> or ('file', i).")
        return _eman.read(where, apix, coordinate_apix)
    if start.startswith("<"):
        root = _pytom.parse(where)
        if root is None:
            raise InputError(f"{path} is XML, but holds no ParticleList of PyTom.")
        return _pytom.read(where, root, apix, coordinate_apix)
    if any(line.startswith("data_") for line in text.splitlines()):
        return _read_star(where, apix, coordinate_apix)
    if _dynamo.recognises(text):
        return _dynamo.read(where, text, apix, coordinate_apix)
    if _csv.recognises(start):
        return _csv.read(where, start, apix, coordinate_apix)
    raise InputError(_UNKNOWN.format(path))


def _read_star(
    where: pathlib.Path, apix: float | None, coordinate_apix: float | None
) -> ParticleTable:
    blocks = read_star(where)
    for kind in (_stopgap, _relion):
        if kind.recognises(blocks):
            return kind.read(where, blocks, apix, coordinate_apix)
    found = [key for block in blocks.values() for key in block]
    raise InputError(
        f"{where} is a STAR file, but neither of RELION's particles nor STOPGAP's motive list:"
        f" its columns are {_some(found)}."
    )


def _text(where: pathlib.Path) -> str:
    try:
        return where.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(_UNKNOWN.format(where)) from error


def choose(path: str | os.PathLike[str], name: str | None = None) -> str:
    """The format to write: the one named, or that of the extension.

    Args:
        path: of the file.
        name: of the format, if stated.

    Raises:
        InputError: an unknown name, or an extension that tells nothing.
    """
    suffix = pathlib.Path(path).suffix.lower()
    if name is not None:
        if name not in FORMATS:
            raise InputError(f"--format={name}: known are {', '.join(FORMATS)}")
        if suffix != FORMATS[name].suffix:
            raise InputError(
                f"{path}: a table of {FORMATS[name].title} ends in {FORMATS[name].suffix}"
            )
        return name
    if suffix not in _BY_SUFFIX:
        raise InputError(f"{path}: the extension must be one of {', '.join(_BY_SUFFIX)}")
    return _BY_SUFFIX[suffix]


def write(path: str | os.PathLike[str], table: ParticleTable, name: str | None = None) -> list[str]:
    """Write a table, atomically.

    Args:
        path: the file to create or replace.
        table: the particles.
        name: of the format, a key of `FORMATS`; that of the extension if None.

    Returns:
        Lines about what the format cannot hold and what was made up for it.

    Raises:
        InputError: the format needs something that the table does not have.
    """
    kind = FORMATS[choose(path, name)]
    said = []
    if table.box_rotation is not None and not kind.boxes:
        table = table.upright()
        said.append(
            "the table has boxes turned against the tomogram: poses are written for boxes that are"
            " not, as cut from the tomogram"
        )
    lost = [
        words
        for field, words in _HELD.items()
        if field not in kind.holds and getattr(table, field) is not None
    ]
    if lost:
        said.append(f"{kind.title} holds no {', '.join(lost)}: they are lost")
    if table.coordinate is not None and table.coordinate_apix is not None and not kind.unit:
        units = ", ".join(f"{x:.6g}" for x in np.unique(table.coordinate_apix)[:_SHOWN])
        said.append(f"coordinates count voxels of {units} A, which {kind.title} does not say")
    if table.family not in kind.families and table.extra:
        said.append(f"columns that {kind.title} does not know are lost: {_some(list(table.extra))}")
    return said + kind.write(pathlib.Path(path), replace(table, notes=()))


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
