"""Convert a table of particles from one program's format to another's.

sptjax convert run_data.star poses.json
sptjax convert --apix=10.48 aligned.tbl particles.star
sptjax convert --format=relion5 --tomo_size=960,928,300 --apix=10.48 in.tbl out.star
sptjax convert --particles=particles.hdf spt_01/sptali_ir_4.json particles.star

The input may be RELION 3.0, 3.1, 4, 5 or STOPGAP (.star), Dynamo (.tbl), AV3 (.em), EMAN2 (.json
of either kind, .lst), PyTom (.xml) or CSV; its format is found out from its content. That of the
output follows from its extension; --format decides where one extension has several. What the output
cannot hold is printed.
"""

import dataclasses
import sys
from collections.abc import Sequence

import _help
import numpy as np
from absl import app, flags, logging

from sptjax import io, tables
from sptjax._errors import InputError
from sptjax.console import say

f = flags
with _help.group("input"):
    _APIX = f.DEFINE_float(
        "apix", None, "angstrom per voxel of the particles, if IN does not say it"
    )
    _COORDINATE_APIX = f.DEFINE_float(
        "coordinate_apix", None, "angstrom per voxel that coordinates count, if IN does not say it"
    )
    _TOMOGRAMS = f.DEFINE_string(
        "tomograms", None, "RELION's tomograms.star, for coordinates that count from the middle"
    )
    _TOMO_SIZE = f.DEFINE_list(
        "tomo_size", None, "X,Y,Z: size of all tomograms, in voxels of the coordinates; likewise"
    )
    _PARTICLES = f.DEFINE_string(
        "particles", None, "stack of the particles: its images are named in OUT, in the same order"
    )
with _help.group("output"):
    _FORMAT = f.DEFINE_string("format", None, f"of the output: {', '.join(tables.FORMATS)}")
    _NEW_APIX = f.DEFINE_float(
        "new_apix", None, "angstrom per voxel of the particles that OUT is for: shifts are scaled"
    )
    _BOX = f.DEFINE_integer("box", None, "voxels along an edge of the particles, for RELION")
    _BOX_POSES = f.DEFINE_bool(
        "box_poses",
        False,
        "keep poses of RELION's turned subtomograms (rlnTomoSubtomogramRot) as they are, for these"
        " subtomograms",
    )


def run(
    source: str,
    output: str,
    *,
    name: str | None,
    apix: float | None,
    coordinate_apix: float | None,
    new_apix: float | None,
    tomograms: str | None,
    tomo_size: Sequence[str] | None,
    particles: str | None,
    box: int | None,
    box_poses: bool,
) -> tables.ParticleTable:
    """Read, complete and write a table; the flags are those of the script."""
    kind = tables.choose(output, name)
    table = tables.read(source, apix=apix, coordinate_apix=coordinate_apix)
    if particles:
        table = _with_images(table, particles)
    if new_apix is not None:
        if not new_apix > 0:
            raise InputError(f"--new_apix={new_apix:g}: a voxel size must be positive")
        if table.apix is None:
            raise InputError(f"{source} has no voxel size of the particles: give it with --apix")
        table = table.at(new_apix)
    if box_poses:
        table = dataclasses.replace(table, box_rotation=None)
    extents = dict(table.extents)
    if tomograms:
        extents |= tables.read_extents(tomograms)
    if tomo_size:
        extents[""] = _size(tomo_size) * _unit(table)
    table = dataclasses.replace(table, extents=extents, box=box or table.box)
    for line in (*table.notes, *tables.write(output, table, kind)):
        say(line)
    say(f"{output}: {len(table)} particles, {tables.FORMATS[kind].title}")
    return table


def _with_images(table: tables.ParticleTable, particles: str) -> tables.ParticleTable:
    """The table with the images, the box and the voxel size of a stack."""
    stack = io.open_stack(particles, even=False, min_box=1)
    if len(stack) != len(table):
        raise InputError(f"--particles: {particles} has {len(stack)} images for {len(table)} poses")
    places = [stack.name(i).rpartition(" image ") for i in range(len(stack))]
    table = dataclasses.replace(
        table,
        image=tables.names([file for file, _, _ in places]),
        image_index=np.array([int(number) for _, _, number in places], int),
        box=stack.box,
    )
    return table.at(stack.apix) if stack.apix and table.apix is None else table


def _size(words: Sequence[str]) -> np.ndarray:
    try:
        size = np.array([float(word) for word in words])
    except ValueError:
        size = np.zeros(0)
    if size.shape != (3,) or not (size > 0).all():
        raise InputError(
            f"--tomo_size={','.join(words)}: three sizes in voxels, such as 960,928,300"
        )
    return size


def _unit(table: tables.ParticleTable) -> float:
    """Angstrom per unit of the coordinates, one for the table."""
    units = set() if table.coordinate_apix is None else set(table.coordinate_apix.tolist())
    if len(units) != 1:
        raise InputError(
            "--tomo_size: one voxel size of the coordinates is needed (--coordinate_apix)"
        )
    return units.pop()


def main(argv: Sequence[str]) -> None:
    """Flags to arguments; bad input is one sentence and exit status 1."""
    try:
        if len(argv) != 3:
            raise InputError("two files are needed: convert.py [options] IN OUT")
        run(
            argv[1],
            argv[2],
            name=_FORMAT.value,
            apix=_APIX.value,
            coordinate_apix=_COORDINATE_APIX.value,
            new_apix=_NEW_APIX.value,
            tomograms=_TOMOGRAMS.value,
            tomo_size=_TOMO_SIZE.value,
            particles=_PARTICLES.value,
            box=_BOX.value,
            box_poses=_BOX_POSES.value,
        )
    except InputError as error:
        sys.exit(f"convert.py: {error}")


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main, argv=_help.answered(sys.argv))
