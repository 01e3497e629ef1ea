r"""Cut particles out of tomograms, at the coordinates of a table of any program.

sptjax extract --table=particles.star --tomograms='tomograms/*.mrc' --box=64 --invert
sptjax extract --table=picks.csv --tomograms=TS_01.mrc --box=48 --bin=2 \
    --tilts=TS_01.mdoc --output=ribosomes.hdf

Written are the boxes (--output), and beside them <stem>_poses.json, the poses of the table for
these boxes (--inixforms of the other programs), and <stem>.star for RELION. With --tilts the option
--wedge for the other programs is printed, or <stem>_weights.hdf written if tomograms differ. Boxes
are cut at whole voxels; the rest of a coordinate goes into the pose. Tables: see convert.py.
"""

import dataclasses
import glob
import pathlib
import sys
from collections.abc import Sequence

import _help
import numpy as np
from absl import app, flags, logging

from sptjax import console, extract, io, tables
from sptjax._errors import InputError
from sptjax.io.tomogram import read_tilts
from sptjax.wedge import Wedge, region

f = flags
with _help.group("input"):
    _TABLE = f.DEFINE_string("table", None, "particles with coordinates, of any program")
    _TOMOGRAMS = f.DEFINE_list(
        "tomograms",
        None,
        "tomograms (.mrc, .rec, .hdf), patterns, or a text file of lines 'name file'; not given:"
        " those the table names",
    )
    _APIX = f.DEFINE_float(
        "apix", None, "angstrom per voxel of the tomograms, instead of their headers'"
    )
    _COORDINATE_APIX = f.DEFINE_float(
        "coordinate_apix",
        None,
        "angstrom per voxel that coordinates count, if the table does not say it",
    )
    _TABLE_APIX = f.DEFINE_float(
        "table_apix", None, "angstrom per voxel that shifts count, if not as the table says"
    )
    _TOMOGRAM_STAR = f.DEFINE_string(
        "tomogram_star",
        None,
        "RELION's tomograms.star: sizes from whose middle RELION 5 counts; not given: those of the"
        " files",
    )
    _TILTS = f.DEFINE_list(
        "tilts",
        None,
        ".tlt, .rawtlt or .mdoc files, one for all or found by name like --tomograms",
    )
    _TILT_SIGN = f.DEFINE_enum(
        "tilt_sign", "1", ["1", "-1"], "-1 reverses the angles of --tilts (compare --wedge=auto)"
    )
with _help.group("boxes"):
    _BOX = f.DEFINE_integer("box", None, "edge of the boxes in voxels after binning, even")
    _BIN = f.DEFINE_integer("bin", 1, "average so many voxels along every axis")
    _NORMALISE = f.DEFINE_enum(
        "normalise",
        "box",
        ["none", "box", "edge"],
        "box: mean 0 and standard deviation 1; edge: the faces have mean 0",
    )
    _INVERT = f.DEFINE_bool(
        "invert", False, "dark particles become bright, as averages expect them"
    )
    _FLIP = f.DEFINE_enum(
        "flip",
        "",
        ["", "x", "y", "z"],
        "tomograms are mirrored along this axis: boxes are turned back to the hand of the table",
    )
    _EDGES = f.DEFINE_enum(
        "edges",
        "fill",
        ["fill", "drop"],
        "boxes over the edge of a tomogram: fill with the mean of the rest, or leave out",
    )
    _RECENTRE = f.DEFINE_bool(
        "recentre", False, "cut about the refined positions: shifts become small"
    )
with _help.group("output"):
    _OUTPUT = f.DEFINE_string("output", "particles.hdf", "stack to write (.hdf)")


def run(
    *,
    table: str | None,
    tomograms: Sequence[str] | None,
    output: pathlib.Path,
    cut: extract.Cut,
    apix: float | None,
    coordinate_apix: float | None,
    table_apix: float | None,
    tomogram_star: str | None,
    drop_edges: bool,
    tilts: Sequence[str] | None,
    tilt_sign: int,
) -> extract.Plan:
    """Check everything, then cut and write; the arguments are the flags."""
    if not table:
        raise InputError("--table: a table of particles is needed")
    if output.suffix not in (".hdf", ".h5"):
        raise InputError(f"--output: {output} must end in .hdf")
    found = tables.read(table, apix=table_apix, coordinate_apix=coordinate_apix)
    if tomogram_star:
        found = dataclasses.replace(found, extents=tables.read_extents(tomogram_star))
    names = [""] * len(found) if found.tomogram is None else found.tomogram.tolist()
    boxes = extract.plan(found, _files(names, tomograms), cut, apix)
    boxes, names = _at_edges(boxes, names, drop_edges)
    ranges = None if tilts is None else _ranges(names, tilts, tilt_sign, cut.flip)
    for line in found.notes:
        console.say(line)
    with io.HdfWriter(output, boxes.apix) as writer:
        for i, volume in enumerate(extract.extract(boxes, console.progress)):
            writer.append(volume, extract.header(boxes, i))
    stem = output.with_suffix("")
    written = dataclasses.replace(
        boxes.table,
        image=tables.names([output] * len(names)),
        image_index=np.arange(len(names)),
    )
    poses = pathlib.Path(f"{stem}_poses.json")
    tables.write(poses, written)
    tables.write(f"{stem}.star", written, "relion4")
    console.say(
        f"{output}: {len(names)} particles of {cut.box} voxels of {boxes.apix:.4g} A from"
        f" {len(set(boxes.files))} tomograms"
    )
    options = [f"--input={output}", f"--inixforms={poses}"]
    if ranges is not None:
        options.append(_wedge(ranges, cut.box, boxes.apix, pathlib.Path(f"{stem}_weights.hdf")))
    console.say(f"go on with {' '.join(options)}")
    return boxes


def _files(names: Sequence[str], given: Sequence[str] | None) -> extract.Files:
    """The tomogram of every name of the table."""
    if given is None:
        missing = [name for name in names if not pathlib.Path(name).is_file()]
        if missing:
            raise InputError(
                f"--tomograms: the table does not name files itself (its tomogram is"
                f" {missing[0]!r}), so they must be given"
            )
        return {name: pathlib.Path(name) for name in names}
    return _matched(names, given, "--tomograms")


def _matched(
    names: Sequence[str], given: Sequence[str], flag: str, *, shared: bool = False
) -> extract.Files:
    """Files by name, from patterns or from a text file with lines ``name file``.

    Args:
        names: of the table.
        given: the flag's words.
        flag: its name.
        shared: whether one file may belong to all names.
    """
    files = [pathlib.Path(x) for word in given for x in sorted(glob.glob(word)) or [word]]
    if len(files) == 1 and files[0].suffix in (".txt", ".doc") and files[0].is_file():
        lines = [line.split(None, 1) for line in files[0].read_text().splitlines()]
        known = {parts[0]: pathlib.Path(parts[1].strip()) for parts in lines if len(parts) == 2}
        missing = [name for name in names if name not in known]
        if missing:
            raise InputError(f"{flag}: {files[0]} has no line for the tomogram {missing[0]!r}")
        return {name: known[name] for name in names}
    if shared and len(files) == 1:
        return dict.fromkeys(names, files[0])
    return extract.match(names, files, flag)


def _at_edges(boxes: extract.Plan, names: list[str], drop: bool) -> tuple[extract.Plan, list[str]]:
    """Say or leave out which boxes reach over the edge of their tomogram."""
    cut = np.flatnonzero(boxes.inside < 1)
    if not len(cut):
        return boxes, names
    if not drop:
        console.say(
            f"{len(cut)} boxes reach over the edge of their tomogram, the worst has"
            f" {boxes.inside.min():.0%} inside: the rest is filled with the mean of that part"
        )
        return boxes, names
    rows = np.flatnonzero(boxes.inside == 1)
    if not len(rows):
        raise InputError("--edges=drop: every box reaches over the edge of its tomogram")
    shown = ", ".join(map(str, cut[:10])) + (", ..." if len(cut) > 10 else "")
    console.say(f"{len(cut)} boxes reach over the edge of their tomogram and are left out: {shown}")
    return extract.select(boxes, rows), [names[i] for i in rows]


def _ranges(names: Sequence[str], given: Sequence[str], sign: int, flip: str) -> list[Wedge]:
    """Tilt range of every particle; mirrored along the beam or across the axis it is reversed."""
    sign = -sign if flip in ("x", "z") else sign
    known: dict[str, Wedge] = {}
    for name, file in _matched(names, given, "--tilts", shared=True).items():
        angles = sign * read_tilts(file)
        known[name] = Wedge(float(angles.min()), float(angles.max()))
    return [known[name] for name in names]


def _wedge(ranges: Sequence[Wedge], box: int, apix: float, path: pathlib.Path) -> str:
    """The option that tells the other programs, and the file that it names."""
    if len(set(ranges)) == 1:
        return f"--wedge={ranges[0].min_deg:g},{ranges[0].max_deg:g}"
    grids = {one: region(box, one) for one in set(ranges)}
    io.write_hdf(path, (grids[one] for one in ranges), apix)
    console.say(f"{path}: tilt ranges differ, one grid per particle")
    return f"--wedge={path}"


def main(argv: Sequence[str]) -> None:
    """Flags to arguments; bad input is one sentence and exit status 1."""
    try:
        if len(argv) > 1:
            raise InputError(f"unexpected argument {argv[1]}; options are --name=value")
        if _BOX.value is None:
            raise InputError("--box: the edge of the boxes in voxels is needed")
        run(
            table=_TABLE.value,
            tomograms=_TOMOGRAMS.value,
            output=pathlib.Path(_OUTPUT.value),
            cut=extract.Cut(
                _BOX.value,
                _BIN.value,
                _NORMALISE.value,
                _INVERT.value,
                _FLIP.value,
                _RECENTRE.value,
            ),
            apix=_APIX.value,
            coordinate_apix=_COORDINATE_APIX.value,
            table_apix=_TABLE_APIX.value,
            tomogram_star=_TOMOGRAM_STAR.value,
            drop_edges=_EDGES.value == "drop",
            tilts=_TILTS.value,
            tilt_sign=int(_TILT_SIGN.value),
        )
    except InputError as error:
        sys.exit(f"extract.py: {error}")


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main, argv=_help.answered(sys.argv))
