"""Particle tables of RELION 3.0, 3.1, 4 and 5 (STAR).

======= ======================== ===================================== =======================
version tomogram                 coordinates                           origins
======= ======================== ===================================== =======================
3.0     ``rlnMicrographName``    voxels of the tomogram                ``rlnOriginX``, voxels
3.1     ``rlnMicrographName``    voxels of the tomogram                ``rlnOriginXAngst``
4       ``rlnTomoName``          voxels of the unbinned tilt series    ``rlnOriginXAngst``
5       ``rlnTomoName``          ``rlnCenteredCoordinateXAngst``       ``rlnOriginXAngst``
======= ======================== ===================================== =======================

Coordinates count from 0 (voxel 0 of the tomogram), those of RELION 5 from half its size. RELION 5
reads tables of version 4 too. The score is ``rlnAutopickFigureOfMerit``. All other columns, the
optics table and other blocks are kept from RELION to RELION.

A table without poses (RELION 4 before refinement) may still hold ``rlnTomoSubtomogramRot`` …: the
orientation of the box that RELION reconstructs, ``x_tomogram = A_box x_box``, which the pose of
the particle in the box is counted from.
"""

import pathlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from sptjax._errors import InputError

from ._angles import from_relion, to_relion
from ._record import Extents, ParticleTable, names
from ._star import Blocks, column, read_star, write_star

AXES = "XYZ"
_ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
_BOX_ANGLES = ("rlnTomoSubtomogramRot", "rlnTomoSubtomogramTilt", "rlnTomoSubtomogramPsi")
_COORDINATES = tuple(f"rlnCoordinate{a}" for a in AXES)
_CENTRED = tuple(f"rlnCenteredCoordinate{a}Angst" for a in AXES)
_ORIGINS = tuple(f"rlnOrigin{a}" for a in AXES)
_ORIGINS_A = tuple(f"rlnOrigin{a}Angst" for a in AXES)
_SCORE = "rlnAutopickFigureOfMerit"
_OWN = {  # columns that the record holds
    *_ANGLES, *_BOX_ANGLES, *_COORDINATES, *_CENTRED, *_ORIGINS, *_ORIGINS_A, _SCORE,
    "rlnImageName", "rlnClassNumber", "rlnRandomSubset",
    "rlnDetectorPixelSize", "rlnMagnification", "rlnPixelSize",
}  # fmt: skip
_TILT_PIXEL = ("rlnTomoTiltSeriesPixelSize", "rlnMicrographOriginalPixelSize")
FAMILY = "relion"


def recognises(blocks: Blocks) -> bool:
    """Whether STAR blocks hold RELION's particles, or name the file that does."""
    return _particles(blocks) is not None or _optimisation(blocks) is not None


def read(
    path: pathlib.Path, blocks: Blocks, apix: float | None, coordinate_apix: float | None
) -> ParticleTable:
    """The particles of a STAR file, or of the file that an optimisation set names.

    Args:
        path: the file, for messages and for names relative to it.
        blocks: its content.
        apix: voxel size of the particles, in place of what the file says.
        coordinate_apix: angstrom per unit of the coordinates, where it is not the voxel size of
            the tilt series that the file states; coordinates are then scaled to that.
    """
    other = _optimisation(blocks)
    if other is not None:
        file, tomograms = (path.parent / name for name in other)
        table = read(file, read_star(file), apix, coordinate_apix)
        extents = read_extents(tomograms) if tomograms.is_file() else {}
        return replace(table, extents=extents)
    name = _particles(blocks)
    if name is None:
        raise InputError(f"{path} holds no particles of RELION")
    loop = {key: column(blocks[name], key) or [] for key in blocks[name]}
    count = len(next(iter(loop.values()), []))
    optics = {key: column(blocks["optics"], key) or [] for key in blocks.get("optics", {})}
    size = _given(apix, count, _image_apix(path, loop, optics))
    unit = _by_group(path, loop, optics, _TILT_PIXEL)
    origins = _origins(path, loop, size, count)
    rotation, shift = from_relion(_numbers(path, loop, _ANGLES, count), origins)
    box = None
    if any(key in loop for key in _BOX_ANGLES):
        angles = _numbers(path, loop, _BOX_ANGLES, count)
        box = from_relion(angles, np.zeros((count, 3)))[0] if angles.any() else None
    centred = all(key in loop for key in _CENTRED)
    coordinate = None
    if centred or all(key in loop for key in _COORDINATES):
        coordinate = _numbers(path, loop, _CENTRED if centred else _COORDINATES, count)
    if coordinate_apix and (unit is None or centred):
        unit = np.full(count, float(coordinate_apix))
    elif (
        coordinate_apix and coordinate is not None and unit is not None
    ):  # the tilt series keeps its own voxel size
        coordinate = coordinate * (coordinate_apix / unit)[:, None]
    place = next((key for key in ("rlnTomoName", "rlnMicrographName") if key in loop), None)
    image, index = _images(loop)
    return ParticleTable(
        rotation,
        shift,
        apix=size,
        coordinate=coordinate,
        coordinate_apix=unit,
        centred=centred,
        box_rotation=box,
        tomogram=None if place is None else names(loop[place]),
        image=image,
        image_index=index,
        box=_box(optics),
        classes=_integers(path, loop, "rlnClassNumber"),
        half=_integers(path, loop, "rlnRandomSubset"),
        score=None if _SCORE not in loop else _numbers(path, loop, (_SCORE,), count)[:, 0],
        family=FAMILY,
        extra={key: values for key, values in loop.items() if key not in _OWN | {place}},
        blocks={key: block for key, block in blocks.items() if key != name},
    )


def read_extents(path: str | pathlib.Path) -> Extents:
    """Sizes of tomograms in angstrom from RELION's ``tomograms.star``.

    Args:
        path: of the file.

    Raises:
        InputError: the file does not hold names, sizes and pixel sizes.
    """
    blocks = read_star(pathlib.Path(path))
    needed = ("rlnTomoName", *(f"rlnTomoSize{a}" for a in AXES), "rlnTomoTiltSeriesPixelSize")
    for block in blocks.values():
        columns = [column(block, key) for key in needed]
        if all(columns):
            try:
                rows = {
                    row[0]: np.array(row[1:4], float) * float(row[4])
                    for row in zip(*[values or [] for values in columns])
                }
            except ValueError as error:
                raise InputError(f"{path}: a size is no number ({error})") from error
            return rows
    raise InputError(f"{path} holds no sizes of tomograms ({', '.join(needed)})")


def write(path: pathlib.Path, table: ParticleTable, version: str) -> list[str]:
    """Write a table of version ``3.0``, ``3.1``, ``4`` or ``5``; returns what is to be said."""
    said: list[str] = []
    own = table.family == FAMILY
    extra = {key: [str(x) for x in values] for key, values in table.extra.items()} if own else {}
    loop: dict[str, list[str]] = {}
    place = "rlnMicrographName" if version in ("3.0", "3.1") else "rlnTomoName"
    if table.tomogram is not None:
        loop[place] = list(table.tomogram)
    elif version in ("4", "5"):
        loop[place] = ["tomogram"] * len(table)
        said.append("no tomogram is named: rlnTomoName is 'tomogram'")
    said += _write_coordinates(loop, table, version)
    if table.box_rotation is not None:
        _add(loop, _BOX_ANGLES, to_relion(table.box_rotation, np.zeros((len(table), 3)))[0])
    angles, origins = to_relion(table.rotation, table.shift)
    _add(loop, _ANGLES, angles)
    size = table.apix
    if size is None:
        if version != "3.0" and np.abs(origins).max(initial=0) > 0:
            raise InputError("RELION keeps shifts in angstrom: give the voxel size with --apix")
        size = np.ones(len(table))
        said.append("the voxel size of the particles is not known: 1 A is written")
    if version == "3.0":
        _add(loop, _ORIGINS, origins)
    else:
        _add(loop, _ORIGINS_A, origins * size[:, None])
    if table.image is not None:
        loop["rlnImageName"] = _image_names(table)
    if table.classes is not None:
        loop["rlnClassNumber"] = [str(int(x)) for x in table.classes]
    if table.half is not None:
        loop["rlnRandomSubset"] = [str(int(x)) for x in table.half]
    if table.score is not None:
        loop[_SCORE] = [f"{x:.9g}" for x in table.score]
    if version == "3.0":
        loop["rlnMagnification"] = ["10000.000000"] * len(table)
        loop["rlnDetectorPixelSize"] = [f"{x:.9g}" for x in size]
        blocks = {key: block for key, block in table.blocks.items() if own and key != "optics"}
        write_star(path, {"": loop | _besides(extra, loop), **blocks})
        return said
    optics, group = _optics(table, size, version, own)
    loop["rlnOpticsGroup"] = group
    kept = _besides(extra, loop)
    others = dict(table.blocks) if own else {}
    if version == "5":
        others = {"general": {"rlnTomoSubTomosAre2DStacks": "0"}} | others
    others = {key: block for key, block in others.items() if key != "optics"}
    general = {"general": others.pop("general")} if "general" in others else {}
    write_star(path, {**general, "optics": optics, "particles": loop | kept, **others})
    return said


def _besides(extra: Mapping[str, list[str]], loop: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {key: values for key, values in extra.items() if key not in loop}


def _write_coordinates(loop: dict, table: ParticleTable, version: str) -> list[str]:
    if table.coordinate is None:
        return []
    if version == "5":
        _add(loop, _CENTRED, table.from_middle().coordinate)
        return []
    _add(loop, _COORDINATES, table.placed().coordinate)
    if version == "4" and table.coordinate_apix is None:
        return ["the voxel size of the coordinates is not known: that of the particles is written"]
    return []


def _optics(
    table: ParticleTable, size: np.ndarray, version: str, own: bool
) -> tuple[dict[str, list[str]], list[str]]:
    """The optics table and the group of every particle, one per pair of voxel sizes if new."""
    unit = size if table.coordinate_apix is None else table.coordinate_apix
    unit_names = ("rlnTomoTiltSeriesPixelSize",) if version in ("4", "5") else _TILT_PIXEL[1:]
    given = table.extra.get("rlnOpticsGroup") if own else None
    pairs = list(zip(size, unit))
    if given is not None and "optics" in table.blocks:
        old = table.blocks["optics"]
        optics = {key: column(old, key) or [] for key in old}
        group = [str(x) for x in given]
        keys = optics.get("rlnOpticsGroup", [])
    else:
        keys = []
        found = {pair: str(i) for i, pair in enumerate(dict.fromkeys(pairs), 1)}
        group = [found[pair] for pair in pairs]
        keys = list(found.values()) or ["1"]
        optics = {
            "rlnOpticsGroup": keys,
            "rlnOpticsGroupName": [f"opticsGroup{i}" for i in keys],
            "rlnImageDimensionality": ["3"] * len(keys),
        }
    first = {g: pair for g, pair in zip(reversed(group), reversed(pairs))}
    used = [first.get(key, (1.0, 1.0)) for key in keys]
    optics["rlnImagePixelSize"] = [f"{a:.9g}" for a, _ in used]
    if table.box is not None:
        optics["rlnImageSize"] = [str(table.box)] * len(keys)
    for name in unit_names:
        optics[name] = [f"{b:.9g}" for _, b in used]
    if version in ("4", "5"):
        optics["rlnTomoSubtomogramBinning"] = [f"{a / b:.9g}" for a, b in used]
    return optics, group


def _box(optics: Mapping[str, list[str]]) -> int | None:
    sizes = set(optics.get("rlnImageSize", []))
    text = sizes.pop() if len(sizes) == 1 else ""
    return int(text) if text.isdigit() else None


def _image_names(table: ParticleTable) -> list[str]:
    assert table.image is not None
    if table.image_index is None:
        return list(table.image)
    return [
        name if index < 0 else f"{index + 1:06d}@{name}"
        for name, index in zip(table.image, table.image_index)
    ]


def _images(loop: Mapping[str, list[str]]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Files and numbers from 0 of ``rlnImageName``; -1 where a file is one particle."""
    if "rlnImageName" not in loop:
        return None, None
    parts = [name.rpartition("@") for name in loop["rlnImageName"]]
    index = [int(head) - 1 if head.isdigit() else -1 for head, _, _ in parts]
    files = names([tail for _, _, tail in parts])
    return files, None if all(i < 0 for i in index) else np.array(index)


def _particles(blocks: Blocks) -> str | None:
    """The block that holds particles."""
    for name in ("particles", "images", "", *blocks):
        block = blocks.get(name, {})
        if any(key in block for key in (_COORDINATES[0], _CENTRED[0], _ANGLES[0], "rlnImageName")):
            return name
    return None


def _optimisation(blocks: Blocks) -> tuple[str, str] | None:
    for block in blocks.values():
        file = column(block, "rlnTomoParticlesFile")
        if file:
            return file[0], (column(block, "rlnTomoTomogramsFile") or [""])[0]
    return None


def _given(value: float | None, count: int, found: np.ndarray | None) -> np.ndarray | None:
    return found if value is None else np.full(count, float(value))


def _image_apix(path, loop, optics) -> np.ndarray | None:
    found = _by_group(path, loop, optics, ("rlnImagePixelSize",))
    if found is not None:
        return found
    count = len(next(iter(loop.values()), []))
    if "rlnPixelSize" in loop:
        return _numbers(path, loop, ("rlnPixelSize",), count)[:, 0]
    if "rlnDetectorPixelSize" in loop and "rlnMagnification" in loop:
        pair = _numbers(path, loop, ("rlnDetectorPixelSize", "rlnMagnification"), count)
        return pair[:, 0] * 1e4 / pair[:, 1]
    return None


def _by_group(path, loop, optics, keys: tuple[str, ...]) -> np.ndarray | None:
    """A number of the optics table for every particle, the first of the keys that is there."""
    key = next((key for key in keys if key in optics), None)
    if key is None:
        return None
    count = len(next(iter(loop.values()), []))
    groups = optics.get("rlnOpticsGroup", ["1"])
    try:
        by_group = {g: float(x) for g, x in zip(groups, optics[key])}
        own = loop.get("rlnOpticsGroup", [groups[0]] * count)
        values = np.array([by_group[g] for g in own], float)
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(f"{path}: the optics table has no number {key} for {error}") from error
    return values if (values > 0).all() else None


def _origins(path, loop, size: np.ndarray | None, count: int) -> np.ndarray:
    """Origins in voxels of the particles."""
    if any(key in loop for key in _ORIGINS_A):
        angstrom = _numbers(path, loop, _ORIGINS_A, count)
        if size is None and angstrom.any():
            raise InputError(f"{path} has shifts in angstrom and no voxel size: give it (--apix)")
        return angstrom if size is None else angstrom / size[:, None]
    return _numbers(path, loop, _ORIGINS, count)


def _numbers(path, loop: Mapping[str, list[str]], keys: tuple[str, ...], count: int) -> np.ndarray:
    """Columns as float64 ``[n, k]``, 0 for those that are not there."""
    zeros = ["0"] * count
    try:
        return np.array([loop.get(key, zeros) for key in keys], np.float64).T.reshape(count, -1)
    except ValueError as error:
        raise InputError(f"{path}: a value of {keys[0]} … is no number ({error})") from error


def _integers(path, loop: Mapping[str, list[str]], key: str) -> np.ndarray | None:
    if key not in loop:
        return None
    return _numbers(path, loop, (key,), len(loop[key]))[:, 0].astype(int)


def _add(loop: dict[str, Any], keys: tuple[str, ...], values: np.ndarray | None) -> None:
    assert values is not None
    loop |= {key: [f"{x:.6f}" for x in values[:, i]] for i, key in enumerate(keys)}
