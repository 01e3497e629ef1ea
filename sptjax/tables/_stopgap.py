"""STOPGAP's motive list (STAR, block ``stopgap_motivelist``).

Angles and shifts are AV3's (:mod:`sptjax.tables._angles`); coordinates are MATLAB's, from 1, and
all lengths are in voxels of the tomogram. Half sets are A and B.
"""

import pathlib
from dataclasses import replace

import numpy as np

from sptjax._errors import InputError

from ._angles import from_av3, to_av3
from ._numbered import from_numbers, to_numbers
from ._record import ParticleTable
from ._star import Blocks, Columns, column, write_star

BLOCK = "stopgap_motivelist"
COLUMNS = (
    "motl_idx tomo_num object subtomo_num halfset orig_x orig_y orig_z score x_shift y_shift"
    " z_shift phi psi the class"
).split()
_PLACE = ("orig_x", "orig_y", "orig_z")
_SHIFT = ("x_shift", "y_shift", "z_shift")
_ANGLES = ("phi", "psi", "the")
_OWN = {"tomo_num", "halfset", *_PLACE, "score", *_SHIFT, *_ANGLES, "class"}
_HALVES = {"A": 1, "B": 2}
FAMILY = "stopgap"


def recognises(blocks: Blocks) -> bool:
    """Whether STAR blocks hold a motive list."""
    return _block(blocks) is not None


def read(
    path: pathlib.Path, blocks: Blocks, apix: float | None, coordinate_apix: float | None
) -> ParticleTable:
    """The particles of a list; of several entries of one particle, the best one.

    Args:
        path: the file, for messages.
        blocks: its content.
        apix: voxel size of the particles, which the file does not hold.
        coordinate_apix: angstrom per unit of the coordinates, if it is another.
    """
    name = _block(blocks)
    if name is None:
        raise InputError(f"{path} holds no motive list of STOPGAP")
    loop = {key: column(blocks[name], key) or [] for key in blocks[name]}
    count = len(loop["phi"])

    def numbers(*keys: str) -> np.ndarray:
        try:
            return np.array([loop.get(key, ["0"] * count) for key in keys], np.float64).T
        except ValueError as error:
            raise InputError(f"{path}: a value of {keys[0]} is no number ({error})") from error

    rotation, shift = from_av3(numbers(*_ANGLES), numbers(*_SHIFT))
    size = np.full(count, float(apix)) if apix else None
    halves = [_HALVES.get(x.upper(), 0) for x in loop.get("halfset", [])]
    table = ParticleTable(
        rotation,
        shift,
        apix=size,
        coordinate=numbers(*_PLACE) - 1,
        coordinate_apix=np.full(count, float(coordinate_apix)) if coordinate_apix else size,
        tomogram=from_numbers(path, numbers("tomo_num")[:, 0]),
        classes=numbers("class")[:, 0].astype(int),
        half=np.array(halves) if halves else None,
        score=numbers("score")[:, 0],
        family=FAMILY,
        extra={key: values for key, values in loop.items() if key not in _OWN},
    )
    return _one_each(table, loop.get("motl_idx", []))


def write(path: pathlib.Path, table: ParticleTable) -> list[str]:
    """Write a list; returns what is to be said."""
    table = table.in_particle_voxels()
    count = len(table)
    angles, shift = to_av3(table.rotation, table.shift)
    number, said = to_numbers(path, table.tomogram, count)
    order = [str(i + 1) for i in range(count)]
    columns: Columns = {key: ["0"] * count for key in COLUMNS}
    columns |= {"motl_idx": order, "subtomo_num": order, "object": ["1"] * count}
    if table.family == FAMILY:
        columns |= {key: [str(x) for x in values] for key, values in table.extra.items()}
    columns["tomo_num"] = [str(i) for i in number]
    if table.half is None:
        columns["halfset"] = ["AB"[i % 2] for i in range(count)]
        said.append("half sets A and B are given to the particles in turn")
    else:
        columns["halfset"] = ["B" if half == 2 else "A" for half in table.half]
    place = np.zeros((count, 3)) if table.coordinate is None else table.coordinate + 1
    for keys, values in ((_PLACE, place), (_SHIFT, shift), (_ANGLES, angles)):
        columns |= {key: [f"{x:.6f}" for x in values[:, i]] for i, key in enumerate(keys)}
    if table.score is not None:
        columns["score"] = [f"{x:.9g}" for x in table.score]
    if table.classes is not None:
        columns["class"] = [str(int(x)) for x in table.classes]
    else:
        columns["class"] = ["1"] * count
    write_star(path, {BLOCK: columns})
    return said


def _block(blocks: Blocks) -> str | None:
    return next((n for n, b in blocks.items() if {"phi", "psi", "the", "orig_x"} <= set(b)), None)


def _one_each(table: ParticleTable, keys: list[str]) -> ParticleTable:
    """Lists of several references have an entry per particle and reference."""
    best: dict[str, int] = {}
    assert table.score is not None
    for row, key in enumerate(keys):
        if key not in best or table.score[row] > table.score[best[key]]:
            best[key] = row
    if not keys or len(best) == len(table):
        return table
    chosen = table.select(list(best.values()))
    said = f"of {len(table)} entries, the best-scoring one of each of {len(best)} particles is used"
    return replace(chosen, notes=(said,))
