"""Particles out of tomograms: where their boxes lie, and what is done to them.

A coordinate is that of the centre voxel ``n // 2`` of a box (see :mod:`sptjax.tables`). Boxes are
cut at whole voxels and never interpolated; what is left over of a coordinate goes into the pose:
a particle whose coordinate lies ``d`` voxels from the centre of its box has the shift
``t - R d`` where the table said ``t``, so that the pose still takes the same point of the tomogram
to the same point of the reference. A binned voxel is the mean of ``b³`` and lies in their middle.
"""

import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ._errors import InputError
from .io.tomogram import Tomogram
from .tables import ParticleTable
from .tables import names as text

Progress = Callable[[Iterable, str], Iterable]
Files = Mapping[str, pathlib.Path]  # by the names of a table
NORMALISE = ("none", "box", "edge")

_BATCH_BYTES = 256 << 20
_APIX_TOLERANCE = 0.01
_SUFFIXES = (
    ".tomostar .mrc .mrcs .rec .map .hdf .st .ali .em .mdoc .tlt .rawtlt".split()
)  # of names
_SHOWN = 5


@dataclass(frozen=True)
class Cut:
    """How boxes are cut.

    Raises:
        InputError: an odd or small box, or a factor below 1.
    """

    box: int  # edge of the result, voxels
    binning: int = 1
    normalise: str = "box"  # to mean 0 and deviation 1; "edge": the faces have mean 0
    invert: bool = False
    flip: str = ""  # axes along which the files are mirror images of what the table describes
    recentre: bool = False  # boxes about the reference's centre, shifts become 0 (nearly)

    def __post_init__(self):
        if self.box < 8 or self.box % 2:
            raise InputError(f"--box={self.box}: an even number of voxels, at least 8, is needed")
        if self.binning < 1:
            raise InputError(f"--bin={self.binning}: 1, 2, 3, ... is needed")
        if self.normalise not in NORMALISE:
            raise InputError(f"--normalise={self.normalise}: known are {', '.join(NORMALISE)}")

    @property
    def edge(self) -> int:
        """Voxels of the tomogram along an edge."""
        return self.box * self.binning


@dataclass(frozen=True, eq=False)
class Plan:
    """Where every box lies.

    `table` holds poses and coordinates of the boxes to be cut: coordinates of their centres in
    voxels of the tomogram, poses in voxels of the boxes.
    """

    table: ParticleTable
    start: np.ndarray  # int [n, 3], first voxel (x, y, z)
    files: tuple[pathlib.Path, ...]  # of every particle
    inside: np.ndarray  # [n] share of the box that lies in the tomogram
    cut: Cut
    apix: float  # of the boxes, angstrom


def plan(table: ParticleTable, files: Files, cut: Cut, apix: float | None = None) -> Plan:
    """Find the boxes of a table.

    Args:
        table: particles with coordinates.
        files: tomograms by their names in the table; ``""`` if it names none.
        cut: how boxes are cut.
        apix: voxel size of the tomograms in angstrom, in place of their headers'.

    Raises:
        InputError: coordinates or voxel sizes are missing or do not fit the tomograms.
    """
    if table.coordinate is None:
        raise InputError("the table holds no coordinates")
    if not len(table):
        raise InputError("the table holds no particles")
    table = table.upright()
    found = {name: _measure(file, cut.flip, apix) for name, file in files.items()}
    size_a = next(iter(found.values()))[1]
    for name, (_, other) in found.items():
        if abs(other / size_a - 1) > _APIX_TOLERANCE:
            raise InputError(
                f"{files[name]} has voxels of {other:.4g} A, other tomograms {size_a:.4g} A:"
                " extract them one by one, or give --apix"
            )
    own = [""] * len(table) if table.tomogram is None else table.tomogram.tolist()
    sizes = np.array([found[name][0] for name in own])
    place = _in_voxels(table, size_a, sizes)
    if table.apix is None:  # lengths of such tables are all in one unit
        unit = table.coordinate_apix
        table = replace(table, apix=np.full(len(table), size_a) if unit is None else unit)
    table = table.at(size_a * cut.binning)
    if cut.recentre:
        centre = -np.einsum("nji,nj->ni", table.rotation, table.shift)
        place = place + centre * cut.binning
        table = replace(table, shift=np.zeros_like(table.shift))
    middle = cut.binning * (cut.box // 2) + (cut.binning - 1) / 2  # of the centre voxel
    start = np.rint(place - middle).astype(np.int64)
    left = (place - start - middle) / cut.binning
    shift = table.shift - np.einsum("nij,nj->ni", table.rotation, left)
    _check_inside(place, sizes, table, size_a)
    overlap = np.minimum(start + cut.edge, sizes) - np.maximum(start, 0)
    return Plan(
        replace(
            table,
            shift=shift,
            coordinate=start + middle,
            coordinate_apix=np.full(len(table), size_a),
            centred=False,
            tomogram=text([files[name] for name in own]),
            image=None,
            image_index=None,
            box=cut.box,
            blocks={},  # of other particles
        ),
        start,
        tuple(files[name] for name in own),
        np.maximum(overlap, 0).prod(1) / cut.edge**3,
        cut,
        size_a * cut.binning,
    )


def select(boxes: Plan, rows: np.ndarray) -> Plan:
    """Some of the boxes.

    Args:
        boxes: all.
        rows: int ``[m]``, which to keep, in that order.
    """
    return replace(
        boxes,
        table=boxes.table.select(rows),
        start=boxes.start[rows],
        files=tuple(boxes.files[i] for i in rows),
        inside=boxes.inside[rows],
    )


def extract(
    boxes: Plan, progress: Progress = lambda items, _: items, batch_bytes: int = _BATCH_BYTES
) -> Iterator[np.ndarray]:
    """Cut all boxes, in the order of the table.

    As many boxes as fit into ``batch_bytes`` are read at a time, tomogram after tomogram and
    section after section.

    Args:
        boxes: where they lie.
        progress: wraps the batches.
        batch_bytes: memory for the results.

    Yields:
        float32 ``[z, y, x]``.
    """
    size = max(batch_bytes // (4 * boxes.cut.box**3), 1)
    for first in progress(range(0, len(boxes.files), size), "extracting"):
        rows = range(first, min(first + size, len(boxes.files)))
        cubes: dict[int, np.ndarray] = {}
        for path in dict.fromkeys(boxes.files[i] for i in rows):
            with Tomogram(path, boxes.cut.flip) as tomogram:
                here = [i for i in rows if boxes.files[i] == path]
                for i in sorted(here, key=lambda i: tuple(boxes.start[i, ::-1])):
                    cube, _ = tomogram.cut(boxes.start[i], boxes.cut.edge)
                    cubes[i] = finish(cube, boxes.cut)
        for i in rows:
            yield cubes.pop(i)


def finish(cube: np.ndarray, cut: Cut) -> np.ndarray:
    """A cube of the tomogram, binned, normalised and inverted.

    Args:
        cube: ``[z, y, x]`` with ``box * binning`` voxels along an edge.
        cut: what is done. A constant box becomes zeros where a deviation of 1 is wanted.
    """
    n, b = cut.box, cut.binning
    values = cube.astype(np.float64).reshape(n, b, n, b, n, b).mean((1, 3, 5))
    if cut.normalise != "none":
        inner = values[1:-1, 1:-1, 1:-1]
        faces = (values.sum() - inner.sum()) / (values.size - inner.size)
        deviation = values.std()
        values = values - (faces if cut.normalise == "edge" else values.mean())
        constant = deviation <= 1e-7 * max(np.abs(cube).max(), 1e-30)
        values = np.zeros_like(values) if constant else values / deviation
    return (-values if cut.invert else values).astype(np.float32)


def header(boxes: Plan, index: int) -> dict:
    """Header items of a box: where it is from, under EMAN2's names, and its pose.

    Args:
        boxes: all.
        index: of the box.
    """
    table = boxes.table
    assert table.coordinate is not None
    assert table.coordinate_apix is not None
    place = table.coordinate[index].tolist()
    whole = all(x == int(x) for x in place)
    return {
        "ptcl_source_image": str(boxes.files[index]),
        "ptcl_source_coord": [int(x) for x in place] if whole else place,
        "ptcl_source_apix": float(table.coordinate_apix[index]),
        "xform.align3d": table.matrices()[index],
    }


def match(names: Sequence[str], files: Sequence[pathlib.Path], flag: str) -> Files:
    """The file of every tomogram that a table names.

    A file belongs to a name if both are the same but for folder and extension, or else if it is the
    only one of which one begins with the other and goes on with no letter or digit (``TS_01`` and
    ``TS_01_bin4.mrc``). One file alone belongs to one name alone.

    Args:
        names: as in the table; repeats are allowed.
        files: to choose from.
        flag: that names the files, for messages.

    Raises:
        InputError: a name has no file, or several.
    """
    wanted = list(dict.fromkeys(names))
    if len(wanted) == 1 and len(files) == 1:
        return {wanted[0]: files[0]}
    found: dict[str, pathlib.Path] = {}
    for name in wanted:
        stem = _stem(pathlib.Path(name))
        same = [file for file in files if _stem(file) == stem]
        begin = [file for file in files if _begins(_stem(file), stem)]
        chosen = same or begin
        if len(chosen) != 1:
            what = (
                "no file" if not chosen else f"{len(chosen)} files ({chosen[0]}, {chosen[1]} ...)"
            )
            shown = ", ".join(map(str, files[:_SHOWN])) + (", ..." if len(files) > _SHOWN else "")
            raise InputError(
                f"{flag}: {what} for the tomogram {name!r} of the table among {shown or 'none'};"
                " a text file with lines 'name file' says which is which"
            )
        found[name] = chosen[0]
    return found


def _begins(one: str, other: str) -> bool:
    short, long = sorted((one, other), key=len)
    return long.startswith(short) and not long[len(short) : len(short) + 1].isalnum()


def _stem(path: pathlib.Path) -> str:
    while path.suffix.lower() in _SUFFIXES:
        path = path.with_suffix("")
    return path.name


def _measure(file: pathlib.Path, flip: str, apix: float | None) -> tuple[np.ndarray, float]:
    """Size in voxels (x, y, z) and voxel size of a tomogram."""
    with Tomogram(file, flip) as tomogram:
        size = apix or tomogram.apix
        if not size or not size > 0:
            raise InputError(f"{file} has no voxel size in its header: give it with --apix")
        return tomogram.size, float(size)


def _in_voxels(table: ParticleTable, apix: float, sizes: np.ndarray) -> np.ndarray:
    """Coordinates in voxels of the tomogram."""
    table = table.placed() if table.extents else table
    place = table.coordinate
    assert place is not None
    if table.centred:
        return place / apix + sizes / 2
    return (
        place if table.coordinate_apix is None else place * (table.coordinate_apix / apix)[:, None]
    )


def _check_inside(place: np.ndarray, sizes: np.ndarray, table: ParticleTable, apix: float) -> None:
    """Centres outside of a tomogram mean that the unit is wrong."""
    outside = np.flatnonzero(((place < -0.5) | (place > sizes - 0.5)).any(1))
    if not len(outside):
        return
    i = int(outside[0])
    at, size = (", ".join(f"{x:.6g}" for x in v) for v in (place[i], sizes[i]))
    counted = "" if table.coordinate_apix is None else f" of {table.coordinate_apix[i]:.4g} A"
    raise InputError(
        f"{len(outside)} of {len(place)} particles lie outside of their tomogram, the first one"
        f" (particle {i}) at {at} in {size} voxels of {apix:.4g} A: if the table does not count in"
        f" voxels{counted}, give --coordinate_apix"
    )
