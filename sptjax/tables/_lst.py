"""EMAN2's lists (.lst) with poses in the headers of their entries.

Each line names an image and holds ``xform.align3d``, ``score`` (smaller is better) and, from us,
class, half set, tomogram and coordinates; other items are kept.
"""

import pathlib
from typing import Any

import numpy as np

from sptjax import io
from sptjax._errors import InputError

from ._record import ParticleTable, names

_POSE = "xform.align3d"
_COORD, _SOURCE = "ptcl_source_coord", "ptcl_source_image"
_OWN = {_POSE, "score", "class", "half", _COORD, _SOURCE}
FAMILY = "lst"


def recognises(text: str) -> bool:
    """Whether text begins as a list does."""
    return text.startswith(("#LSX", "#LST"))


def read(path: pathlib.Path, apix: float | None, coordinate_apix: float | None) -> ParticleTable:
    """The particles of a list; arguments as those of the other formats."""
    entries = io.read_lst(path)
    headers = [entry.header for entry in entries]
    count = len(entries)
    if not any(_POSE in header for header in headers):
        raise InputError(f"{path} names images but holds no poses ({_POSE} in its third column)")
    missing = [i for i, header in enumerate(headers) if _POSE not in header]
    if missing:
        raise InputError(f"{path}: entry {missing[0]} holds no pose ({_POSE})")
    matrices = np.array([header[_POSE] for header in headers], np.float64).reshape(-1, 3, 4)

    def column(name: str) -> list | None:
        values = [header.get(name) for header in headers]
        return None if any(value is None for value in values) else values

    score, classes, half = column("score"), column("class"), column("half")
    place, source = column(_COORD), column(_SOURCE)
    extra = sorted({name for header in headers for name in header} - _OWN)
    size = np.full(count, float(apix)) if apix else None
    return ParticleTable(
        matrices[..., :3],
        matrices[..., 3],
        apix=size,
        coordinate=None if place is None else np.array(place, float).reshape(-1, 3),
        coordinate_apix=np.full(count, float(coordinate_apix)) if coordinate_apix else None,
        tomogram=None if source is None else names(source),
        image=names([entry.path for entry in entries]),
        image_index=np.array([entry.index for entry in entries], int),
        classes=None if classes is None else np.array(classes, int) + 1,
        half=None if half is None else np.array(half, int) + 1,
        score=None if score is None else -np.array(score, float),
        family=FAMILY,
        extra={name: [header.get(name) for header in headers] for name in extra},
    )


def write(path: pathlib.Path, table: ParticleTable) -> list[str]:
    """Write a list; returns what is to be said.

    Raises:
        InputError: the stack of the particles is not known.
    """
    if table.image is None:
        raise InputError(f"{path}: a list names the images of the particles (--particles)")
    files, table = table.image, table.placed()
    matrices = table.matrices()
    entries = []
    for row, file in enumerate(files):
        header: dict[str, Any] = {_POSE: matrices[row]}
        if table.family == FAMILY:
            items = {name: values[row] for name, values in table.extra.items()}
            header |= {name: value for name, value in items.items() if value is not None}
        if table.score is not None:
            header["score"] = -float(table.score[row])
        if table.classes is not None:
            header["class"] = int(table.classes[row]) - 1
        if table.half is not None:
            header["half"] = int(table.half[row]) - 1
        if table.coordinate is not None:
            header[_COORD] = table.coordinate[row].tolist()
        if table.tomogram is not None:
            header[_SOURCE] = str(table.tomogram[row])
        index = row if table.image_index is None else max(int(table.image_index[row]), 0)
        entries.append(io.LstEntry(pathlib.Path(file), index, header))
    io.write_lst(path, entries)
    return []
