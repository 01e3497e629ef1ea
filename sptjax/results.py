"""What a refinement says of itself in ``report.html``: words, table of classes, ways to go on."""

import pathlib
import re
import shlex

from . import outputs, pictures, run_report, workdir
from .outputs import OutputSettings
from .report import Step, Table
from .state import RefineState
from .symmetry import Symmetry

_HEAD = (
    *("Class", "Particles", "Averaged", "Symmetry"),
    *("FSC 0.143 (Å)", "0.143, corrected", "FSC 0.5 (Å)", "0.5, corrected"),
)


def write(
    state: RefineState,
    symmetries: tuple[Symmetry, ...],
    settings: OutputSettings,
    *,
    stopped: str = "",
    recomputed: bool = False,
) -> None:
    """Write ``report.html`` of a finished refinement.

    Args:
        state: the last round.
        symmetries: of the search, one per class.
        settings: where to, and what was written.
        stopped: why it had converged; empty if all rounds were done.
        recomputed: given classes and poses were averaged, and that was all.
    """
    manifest = workdir.read_manifest(settings.folder)
    it = outputs.tag(state, settings)
    shown = pictures.captions(it, len(state.maps), gold_standard=settings.gold_standard)
    named = {settings.average_name: "averages of the last round, unfiltered"}
    if settings.result_matrix:
        named[settings.result_matrix] = "class matrix: class and pose of every particle"
    run_report.write(
        settings.folder,
        done=_done(state, settings, manifest, stopped, recomputed=recomputed),
        table=class_table(state, symmetries, settings.apix, gold=settings.gold_standard),
        steps=_steps(state, settings, manifest, stopped, recomputed=recomputed),
        shown=shown if settings.plots else (),
        named=named,
    )


def class_table(
    state: RefineState, symmetries: tuple[Symmetry, ...], apix: float, *, gold: bool
) -> Table:
    """Particles, symmetry and resolution of every class; a dash where a curve claims nothing.

    Args:
        state: after the last round.
        symmetries: one per class.
        apix: angstrom per voxel.
        gold: whether the halves had references of their own.
    """
    found = outputs.resolutions(state, apix)
    rows = []
    for c, symmetry in enumerate(symmetries):
        member = state.classes == c
        resolution = [
            found[str(c)][curve][threshold]
            for threshold in map(str, outputs.THRESHOLDS)
            for curve in ("unmasked", "corrected")
        ]
        shown = ["-" if value is None else f"{value:.1f}" for value in resolution]
        counts = [str(int(x.sum())) for x in (member, member & state.used)]
        rows.append((f"class {c}", *counts, symmetry.name, *shown))
    left_out = int((state.classes < 0).sum())
    note = (
        "The corrected curve (masked, phase-randomised) is the one to quote."
        if gold
        else "The halves share their references or poses: these resolutions are optimistic."
    )
    if left_out:
        note += f" Left out, in no class: {left_out}."
    return Table(_HEAD, tuple(rows), note)


def _done(
    state: RefineState,
    settings: OutputSettings,
    manifest: workdir.Manifest,
    stopped: str,
    *,
    recomputed: bool,
) -> list[str]:
    options, box, classes = manifest.options, state.maps.shape[-1], len(state.maps)
    count = len(state.classes)
    of_what = (
        f"{count} particles of {box} voxels ({settings.apix:.4g} Å each) from {options['input']}"
    )
    if recomputed:
        return [f"{of_what} were averaged with the classes and poses of {options['classmx']}."]
    rounds = state.round + 1
    spent = "1 round" if rounds == 1 else f"{rounds} rounds"
    if settings.program == "refinemulti":
        first = f"{of_what} were aligned and sorted into {classes} classes in {spent}."
    else:
        first = f"{of_what} were aligned and averaged in {spent}."
    if stopped and rounds < settings.iterations:
        ended = f"The run stopped before the {settings.iterations} rounds asked for: {stopped}."
    elif stopped:
        ended = f"All rounds that were asked for were done, and nothing moved any more: {stopped}."
    else:
        ended = "All rounds that were asked for were done; it might go on to improve."
    halves = (
        "The even and the odd particles were aligned to references of their own."
        if settings.gold_standard
        else "The even and the odd particles were aligned to common references."
    )
    used = int(state.used.sum())
    averaged = (
        f"Averages were made of {used} raw particles ({options['averager']}), each frequency"
        " over those that sampled it."
        if options["averager"].startswith("mean.tomo")
        else f"Averages were made of {used} raw particles ({options['averager']})."
    )
    return [first, ended, _references(manifest), alignment_words(manifest), halves, averaged]


def _references(manifest: workdir.Manifest) -> str:
    options = manifest.options
    if options["ref"]:
        return f"The first references were {options['ref']}."
    if options["classmx"]:
        return f"The run started from the classes of {options['classmx']}."
    if options.get("skipali"):
        return "The first classes came from the differences between the particles."
    chosen = [name for name in ("bt", "hac", "ssa") if options[f"{name}ref"]]
    return f"References were made from the particles ({[*chosen, options['refgenmethod']][0]})."


def alignment_words(manifest: workdir.Manifest) -> str:
    """How particles were aligned, in a sentence; what an option leaves to the data is said.

    Args:
        manifest: of the run.
    """
    options = manifest.options
    if options.get("skipali") or options["align"] in ("None", ""):
        return "Particles kept the poses that were given."
    fine = f", then {options['falign']}" if options["falign"] not in ("None", "", None) else ""
    stated = any(re.match("--?align(=|$)", word) for word in shlex.split(manifest.command))
    search = options["align"] if stated else "a search whose steps and band follow from the data"
    return f"Alignment: {search}{fine}; score: {options['aligncmp']}."


def _steps(
    state: RefineState,
    settings: OutputSettings,
    manifest: workdir.Manifest,
    stopped: str,
    *,
    recomputed: bool,
) -> list[Step]:
    folder, it = settings.folder, outputs.tag(state, settings)
    name = "recomp_avg.hdf" if recomputed else settings.average_name
    steps = [run_report.chimerax([folder / name], settings.apix)]
    if recomputed:
        return steps
    inside = run_report.inside_another(folder)
    if not stopped and not inside:
        more = run_report.resume(manifest, folder, settings.iterations)
        steps += [more] if more else []
    if inside and settings.program == "classaverage":
        return steps  # files number the particles of one class
    matrix = folder / f"classmx_{it}.hdf"
    if settings.program == "refinemulti":
        return [*steps, *_classes_apart(state, matrix, manifest)]
    again = {"classmx": matrix, "align": "None", "falign": "refine_3d", "iter": 3}
    poses = folder / f"sptali_ir_{settings.pose_tag or it}.json"
    return [
        *steps,
        Step(
            "Refine the poses locally, from where they are:",
            _call(manifest, "classaverage", again | _symmetry(manifest)),
        ),
        Step(
            "Look for classes among the aligned particles:",
            _call(manifest, "msa", {"inixforms": poses, "ncls": 2} | _symmetry(manifest)),
        ),
    ]


def _classes_apart(
    state: RefineState, matrix: pathlib.Path, manifest: workdir.Manifest
) -> list[Step]:
    """The gold-standard refinement of every class by itself."""
    names = [name for name in str(manifest.options["syms"]).split(",") if name.strip()]
    steps = []
    for c in range(len(state.maps)):
        own = {"sym": names[c].strip()} if c < len(names) else _symmetry(manifest)
        more = {"classmx": matrix, "oneclass": c, "iter": 5} | own
        steps.append(
            Step(
                f"Refine class {c} by itself, in independent halves:",
                _call(manifest, "classaverage", more),
            )
        )
    return steps


def _symmetry(manifest: workdir.Manifest) -> dict[str, str]:
    name = manifest.options["sym"]
    return {} if name == "c1" else {"sym": name}


def _call(manifest: workdir.Manifest, program: str, options: dict) -> str:
    return run_report.call(manifest, program, run_report.particle_options(manifest) | options)
