"""AV3 motive lists (.em): 20 rows, one column of numbers per particle.

Row (from 1) 1 score, 4 particle, 5 tomogram, 8–10 coordinates (from 1, as in MATLAB), 11–13 shift
after the rotation of the reference, 17 phi, 18 psi, 19 theta, 20 class (AV3, TOM toolbox). Lengths
are in voxels of the tomogram. The other rows are kept from list to list. Values are 32-bit
floats, or 64-bit ones where 32 bits would move a coordinate by more than 5e-5 voxel.
"""

import pathlib
import struct

import emfile
import numpy as np

from sptjax._errors import InputError
from sptjax.io._atomic import atomic_path

from ._angles import from_av3, to_av3
from ._numbered import from_numbers, to_numbers
from ._record import ParticleTable

ROWS = 20
_PLACE, _SHIFT, _ANGLES = slice(7, 10), slice(10, 13), slice(16, 19)
_OWN = {0, 4, 7, 8, 9, 10, 11, 12, 16, 17, 18, 19}
_ROUNDING = 5e-5
FAMILY = "av3"


def load(path: pathlib.Path) -> np.ndarray | None:
    """The list as float64 ``[20, n]``, None if the file is another EM file or none."""
    try:
        header, values = emfile.read(path)
    except (OSError, struct.error, ValueError, KeyError):
        return None
    if header["xdim"] != ROWS or header["zdim"] != 1:
        return None
    return np.asarray(values, np.float64).reshape(-1, ROWS).T


def read(
    path: pathlib.Path, rows: np.ndarray, apix: float | None, coordinate_apix: float | None
) -> ParticleTable:
    """The particles of a list; arguments as those of the other formats."""
    count = rows.shape[1]
    rotation, shift = from_av3(rows[_ANGLES].T, rows[_SHIFT].T)
    size = np.full(count, float(apix)) if apix else None
    return ParticleTable(
        rotation,
        shift,
        apix=size,
        coordinate=rows[_PLACE].T - 1,
        coordinate_apix=np.full(count, float(coordinate_apix)) if coordinate_apix else size,
        tomogram=from_numbers(path, rows[4]),
        classes=rows[19].astype(int),
        score=rows[0],
        family=FAMILY,
        extra={f"row{i + 1}": rows[i].tolist() for i in range(ROWS) if i not in _OWN},
    )


def write(path: pathlib.Path, table: ParticleTable) -> list[str]:
    """Write a list; returns what is to be said.

    Raises:
        InputError: the table is empty, which an EM file cannot be.
    """
    if not len(table):
        raise InputError(f"Cannot write {path}: an EM file cannot hold a list of no particles.")
    table = table.in_particle_voxels()
    count = len(table)
    rows = np.zeros((ROWS, count))
    rows[3] = np.arange(1, count + 1)
    if table.family == FAMILY:
        for name, values in table.extra.items():
            rows[int(name[3:]) - 1] = np.asarray(values, float)
    rows[4], said = to_numbers(path, table.tomogram, count)
    angles, shift = to_av3(table.rotation, table.shift)
    rows[_ANGLES], rows[_SHIFT] = angles.T, shift.T
    if table.coordinate is not None:
        rows[_PLACE] = table.coordinate.T + 1
    if table.score is not None:
        rows[0] = table.score
    if table.classes is not None:
        rows[19] = table.classes
    single = rows.astype(np.float32)
    exact = np.abs(single[_PLACE] - rows[_PLACE]).max() <= _ROUNDING
    blank = {"comment": "", "username": "", "date": "", "userdata": ""}
    with atomic_path(path) as temporary:
        values = np.ascontiguousarray((single if exact else rows).T[None])
        emfile.write(temporary, values, blank)
    return said if exact else [*said, "written in double precision, which the coordinates need"]
