"""Dynamo tables (.tbl): numbers in columns that have no names in the file.

The pose is that of :func:`sptjax.rotation.pose_from_dynamo`. Coordinates are continuous, the corner
of the first voxel is 0 (Dynamo wiki, "Volume center"): the middle of our voxel ``i`` lies at
``i + 0.5``. Shifts and coordinates are both in voxels of the particles' size. Imaginary parts,
which Dynamo writes where rounding makes an angle complex, are dropped from the columns read here.
"""

import pathlib

import numpy as np

from sptjax._errors import InputError
from sptjax.io._atomic import atomic_path

from ._angles import from_dynamo, to_dynamo
from ._numbered import from_numbers, to_numbers
from ._record import ParticleTable

COLUMNS = (
    "tag aligned averaged dx dy dz tdrot tilt narot cc cc2 cpu ftype ymintilt ymaxtilt xmintilt"
    " xmaxtilt fs1 fs2 tomo reg class annotation x y z dshift daxis dnarot dcc otag npar c33 ref"
    " sref apix def c38 c39 c40 eig1 eig2"
).split()
_SHIFT, _ANGLES, _PLACE = ("dx", "dy", "dz"), ("tdrot", "tilt", "narot"), ("x", "y", "z")
_OWN = {*_SHIFT, *_ANGLES, *_PLACE, "cc", "tomo", "class", "apix"}
_NEEDED = 26
_WRITTEN = 36
_NEW = {"aligned": "1", "averaged": "1", "npar": "1", "ref": "1"}
FAMILY = "dynamo"


def recognises(text: str) -> bool:
    """Whether the first line is one of numbers, as many as a table needs."""
    words = next((line.split() for line in text.splitlines() if line.strip()), [])
    if len(words) < _NEEDED:
        return False
    try:
        [_real(word) for word in words[:_NEEDED]]
    except ValueError:
        return False
    return True


def read(
    path: pathlib.Path, text: str, apix: float | None, coordinate_apix: float | None
) -> ParticleTable:
    """The particles of a table; arguments as those of the other formats."""
    rows = [line.split() for line in text.splitlines() if line.strip()]
    count, width = len(rows), min(map(len, rows), default=0)
    if width < _NEEDED or width != max(map(len, rows)):
        raise InputError(f"{path}: a Dynamo table has at least {_NEEDED} columns, all rows alike")
    names_ = [*COLUMNS, *(f"c{i}" for i in range(len(COLUMNS) + 1, width + 1))][:width]
    table = dict(zip(names_, zip(*rows)))

    def numbers(*keys: str) -> np.ndarray:
        try:
            return np.array([[_real(x) for x in table[key]] for key in keys]).T
        except ValueError as error:
            raise InputError(f"{path}: a value of {keys[0]} is no number ({error})") from error

    rotation, shift = from_dynamo(numbers(*_ANGLES), numbers(*_SHIFT))
    own = numbers("apix")[:, 0] if "apix" in table else np.zeros(count)
    size = np.full(count, float(apix)) if apix else own if (own > 0).all() else None
    return ParticleTable(
        rotation,
        shift,
        apix=size,
        coordinate=numbers(*_PLACE) - 0.5,
        coordinate_apix=np.full(count, float(coordinate_apix)) if coordinate_apix else size,
        tomogram=from_numbers(path, numbers("tomo")[:, 0]),
        classes=numbers("class")[:, 0].astype(int),
        score=numbers("cc")[:, 0],
        family=FAMILY,
        extra={key: list(column) for key, column in table.items() if key not in _OWN},
    )


def write(path: pathlib.Path, table: ParticleTable) -> list[str]:
    """Write a table; returns what is to be said."""
    table = table.in_particle_voxels()
    count = len(table)
    angles, shift = to_dynamo(table.rotation, table.shift)
    number, said = to_numbers(path, table.tomogram, count)
    columns = {key: ["0"] * count for key in COLUMNS[:_WRITTEN]}
    columns |= {key: [value] * count for key, value in _NEW.items()}
    columns["tag"] = [str(i + 1) for i in range(count)]
    if table.family == FAMILY:
        columns |= {key: [str(x) for x in values] for key, values in table.extra.items()}
    columns["tomo"] = [str(i) for i in number]
    for keys, values in ((_ANGLES, angles), (_SHIFT, shift)):
        columns |= {key: [f"{x:.6f}" for x in values[:, i]] for i, key in enumerate(keys)}
    if table.coordinate is not None:
        place = table.coordinate + 0.5
        columns |= {key: [f"{x:.6f}" for x in place[:, i]] for i, key in enumerate(_PLACE)}
    if table.classes is not None:
        columns["class"] = [str(int(x)) for x in table.classes]
    if table.score is not None:
        columns["cc"] = [f"{x:.9g}" for x in table.score]
    if table.apix is not None:
        columns["apix"] = [f"{x:.9g}" for x in table.apix]
    order = sorted(columns, key=lambda key: _place(key))
    lines = (" ".join(row) for row in zip(*(columns[key] for key in order)))
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines))
    return said


def _place(key: str) -> int:
    return COLUMNS.index(key) if key in COLUMNS else int(key[1:]) - 1


def _real(word: str) -> float:
    """A number, or the real part of a complex one as MATLAB writes it."""
    return complex(word.replace("i", "j").replace(" ", "")).real
