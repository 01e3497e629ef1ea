"""``report.html`` of the programs that make maps from particles, and of runs made of runs."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import _generate
import numpy as np

from sptjax import console, msa, run_report, workdir
from sptjax.io import read_json
from sptjax.report import Step, Table

_NO_HALVES = "There is no resolution: no halves of the particles were aligned apart."


class Made(NamedTuple):
    """A map that a program made."""

    path: pathlib.Path
    particles: int


def begin(folder: pathlib.Path) -> None:
    """From now on, what is said is kept in the run folder."""
    console.keep(folder / run_report.MESSAGES)


def of_maps(
    folder: pathlib.Path,
    kitchen: _generate.Kitchen,
    done: Sequence[str],
    maps: Sequence[Made],
    shown: Sequence[run_report.Shown],
    *,
    sym: str,
    plots: bool,
) -> None:
    """The report of ``binarytree``, ``hac`` or ``symsearch3d``.

    Args:
        folder: of the run.
        kitchen: what the maps were made with.
        done: sentences about it, after the one that names the particles.
        maps: that were made, the most important first.
        shown: pictures beside the slices of the maps.
        sym: symmetry of the maps.
        plots: whether there are pictures.
    """
    manifest, apix = workdir.read_manifest(folder), kitchen.particles.apix
    names = [one.path.relative_to(folder).as_posix() for one in maps]
    rows = tuple((name, str(one.particles), sym) for name, one in zip(names, maps))
    stack = kitchen.particles.stack
    first = (
        f"{len(stack)} particles of {stack.box} voxels ({apix:.4g} Å each) from"
        f" {manifest.options['input']} were used."
    )
    slices = [
        run_report.Shown(
            pathlib.PurePosixPath(name).with_suffix(".png").as_posix(),
            f"Central slices of {name}",
            f"Average of {one.particles} particles, unfiltered.",
        )
        for name, one in zip(names, maps)
    ]
    run_report.write(
        folder,
        done=[first, *done],
        table=Table(("Map", "Particles", "Symmetry"), rows, _NO_HALVES) if maps else None,
        steps=_from_maps(manifest, maps, apix, sym),
        shown=[*slices, *shown] if plots else (),
    )


def _from_maps(
    manifest: workdir.Manifest, maps: Sequence[Made], apix: float, sym: str
) -> list[Step]:
    """How to go on from maps that were made of particles."""
    if not maps:
        return []
    own = run_report.particle_options(manifest) | {"ref": maps[0].path}
    own.pop("subset", None)  # a map of some particles serves all of them
    own |= {} if sym == "c1" else {"sym": sym}
    refined = own | {"refrandphase": 60, "iter": 5}
    return [
        run_report.chimerax([one.path for one in maps], apix),
        Step(
            "Refine the map with all particles, in independent halves:",
            run_report.call(manifest, "classaverage", refined),
        ),
        Step(
            "Look for classes, from copies of the map:",
            run_report.call(manifest, "refinemulti", own | {"nref": 3, "iter": 10}),
        ),
    ]


def of_sorting(
    folder: pathlib.Path, values: Mapping, found: msa.Sorted, count: int, apix: float
) -> None:
    """The report of ``msa``.

    Args:
        folder: of the run.
        values: every flag by name.
        found: the classes.
        count: particles of the stack.
        apix: angstrom per voxel.
    """
    manifest, sizes = workdir.read_manifest(folder), _sizes(found)
    rows = tuple((f"class {c}", str(size), values["sym"]) for c, size in enumerate(sizes))
    shares = ", ".join(f"{100 * x:.1f} %" for x in found.components.share)
    done = [
        f"{len(found.posed.indices)} of the {count} particles from {values['input']} were sorted"
        f" into {len(sizes)} classes, at the poses of {values['inixforms'] or values['classmx']}.",
        f"{len(found.components.share)} principal components explain {shares} of the variance;"
        " classes are groups of particles along them (k-means). Missing wedges count as missing.",
    ]
    own, matrix = run_report.particle_options(manifest), folder / "classmx_msa.hdf"
    own |= {} if values["sym"] == "c1" else {"sym": values["sym"]}
    steps = [run_report.chimerax([folder / "class_avgs_msa.hdf"], apix)]
    for c in range(len(sizes)):
        more = {"classmx": matrix, "oneclass": c, "iter": 5}
        command = run_report.call(manifest, "classaverage", own | more)
        steps.append(Step(f"Refine class {c} by itself, in independent halves:", command))
    command = run_report.call(manifest, "refinemulti", own | {"classmx": matrix, "iter": 5})
    steps.append(Step("Let the classes compete, with alignment:", command))
    shown = [
        run_report.Shown(
            "class_avgs_msa.png",
            "Central slices",
            "Class averages, unfiltered; grey from mean - 3 to mean + 3 standard deviations.",
        ),
        run_report.Shown(
            "msa_scatter.png",
            "Principal coordinates",
            "A particle is a point. Classes that are real part the cloud; slices of one round cloud"
            " are no classes.",
        ),
    ]
    run_report.write(
        folder,
        done=done,
        table=Table(("Class", "Particles", "Symmetry"), rows, _NO_HALVES),
        steps=steps,
        shown=shown if values["plots"] else (),
    )


def _sizes(found: msa.Sorted) -> list[int]:
    return np.bincount(found.classes, minlength=len(found.averages)).tolist()


def of_parts(folder: pathlib.Path, parts: Mapping[str, pathlib.Path], done: Sequence[str]) -> None:
    """The report of a run whose work was done by runs inside its folder.

    Args:
        folder: of the run.
        parts: name and folder of the runs inside it.
        done: sentences about it.
    """
    rows, manifest = [], workdir.read_manifest(folder)
    more = run_report.resume(manifest, folder, manifest.options["iter"])
    for name, part in parts.items():
        last = workdir.read_lines(part, "log.jsonl")[-1]
        found = read_json(part / "resolution.json")[str(last["round"])]
        for c, count in enumerate(last["particles_per_class"]):
            at = [found[str(c)]["corrected"][t] for t in ("0.143", "0.5")]
            shown = ["-" if x is None else f"{x:.1f}" for x in at]
            which = name if len(found) == 1 else f"{name}, class {c}"
            rows.append((which, str(count), *shown, f"{part.name}/{run_report.NAME}"))
    head = ("Part", "Particles", "FSC 0.143 (Å, corrected)", "FSC 0.5", "Report")
    table = Table(head, tuple(rows))
    run_report.write(folder, done=done, table=table, steps=[more] if more else [])
