"""Flags that several scripts share, and their way from text to checked objects."""

import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _argv import take_back_v
from absl import app, flags, logging

from sptjax import console, io, options, resolution, symmetry, wedge, workdir
from sptjax._errors import InputError
from sptjax.align import ALIGNERS, FINE_ALIGNERS, AlignmentSettings
from sptjax.outputs import OutputSettings
from sptjax.particles import Sampling
from sptjax.phantom import fit_map
from sptjax.refinement import Averager, RefineSettings, RefineState
from sptjax.runner import Run, execute
from sptjax.score import Comparator

_MOST_FOR_WEDGE = 400  # particles read to find the wedge


def define_shared(path: str, output: str) -> None:
    """Define the flags of ``refinemulti`` and ``classaverage`` alike.

    Args:
        path: default stem of the run folder.
        output: default name of the final averages.
    """
    f = flags
    f.DEFINE_string("input", None, "stack of particles (.hdf, .mrc, .em, .lst), cubic, even box")
    f.DEFINE_string("ref", None, "reference map(s), comma separated; file:n takes image n")
    f.DEFINE_string("path", path, "stem of the run folder: results go to <path>_NN")
    f.DEFINE_string("output", output, "name of the final averages in the run folder (.hdf)")
    f.DEFINE_integer("iter", 1, "rounds of alignment and averaging", lower_bound=1)
    f.DEFINE_string("sym", "c1", "symmetry: c<n>, d<n>, tet, oct, icos; restricts the search too")
    f.DEFINE_bool("breaksym", False, "search one asymmetric unit but do not symmetrise averages")
    f.DEFINE_float("apix", 0.0, "angstrom per voxel of particles and references; 0 = their headers")
    f.DEFINE_string(
        "align",
        "rotate_translate_3d_tree",
        "global aligner: rotate_translate_3d_tree[:maxshift=voxels], adaptive, or"
        " rotate_translate_3d[:search=8:delta=12:dphi=12:refine=1] on a stated grid (refine=0:"
        " the best grid pose); None keeps the poses of --classmx",
    )
    f.DEFINE_string(
        "aligncmp",
        "matched",
        "score: matched = matched filter with the 3-D noise power of the stack, in sigma;"
        " ccc.tomo.thresh = correlation inside the wedge",
    )
    f.DEFINE_string(
        "falign",
        "",
        "refine_3d[:maxiter=9:maxshift=voxels]: local refinement after --align=None or"
        " --align=rotate_translate_3d:refine=0; the other searches refine themselves",
    )
    f.DEFINE_integer("search", 8, "largest coarse shift along each axis, voxels", lower_bound=0)
    f.DEFINE_integer("searchfine", 2, "how far --falign may move a shift, voxels", lower_bound=0)
    f.DEFINE_integer(
        "npeakstorefine",
        1,
        "distinct coarse poses to refine; the aligner's choice if not given",
        lower_bound=1,
    )
    f.DEFINE_float("keep", 1.0, "best-scoring fraction of every class that is averaged")
    f.DEFINE_enum(
        "averager",
        "mean.tomo",
        [a.value for a in Averager],
        "mean.tomo divides every frequency by how often it was sampled; mean does not",
    )
    f.DEFINE_float("refrandphase", 0.0, "randomise the phases of references beyond this, angstrom")
    f.DEFINE_string("classmx", None, "class matrix (.hdf): start from its classes and poses")
    f.DEFINE_string("resultmx", None, "write the final class matrix under this name (.hdf)")
    f.DEFINE_bool("savesteps", False, "keep the averages of every round")
    f.DEFINE_bool("saveali", False, "write the aligned particles after the last round")
    f.DEFINE_bool("plots", True, "draw slices, FSC, scores and class sizes (PNG)")
    f.DEFINE_string(
        "wedge",
        "auto",
        "what the particles have seen of Fourier space: auto, none, MIN,MAX[,AXIS] in degrees"
        " (axis y or x), or a file of weights (one grid, or one per particle)",
    )
    f.DEFINE_bool(
        "premultiplied",
        False,
        "particles are multiplied by the CTF; --wedge names their sums of CTF squared",
    )
    f.DEFINE_integer("seed", 0, "of all random numbers", lower_bound=0)
    f.DEFINE_bool("resume", False, "go on with the last run of --path from its last whole round")
    f.DEFINE_integer("verbose", 0, "0 quiet, 1 progress bars ... 11", lower_bound=0, upper_bound=11)


def cache_compilations() -> None:
    """Keep compiled programs between runs, unless the environment says where or whether."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = pathlib.Path.home() / ".cache" / "sptjax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def launch(main: Callable[[Sequence[str]], None], program: str) -> None:
    """Run a script: ``-v N`` is ``--verbose=N``, bad input is one sentence and status 1."""

    def guarded(argv: Sequence[str]) -> None:
        try:
            if len(argv) > 1:
                raise InputError(f"unexpected argument {argv[1]}; options are --name=value")
            main(argv)
        except InputError as error:
            sys.exit(f"{program}: {error}")

    cache_compilations()
    logging.set_verbosity(logging.WARNING)
    app.run(guarded, argv=take_back_v(sys.argv))


def given(name: str) -> bool:
    """Whether the user stated a flag on the command line."""
    return flags.FLAGS[name].present > 0


def resolved() -> dict[str, Any]:
    """Every flag of this script with its value."""
    module = flags.FLAGS.flags_by_module_dict()
    names = [f.name for key, own in module.items() if "absl" not in key for f in own]
    return {name: flags.FLAGS[name].value for name in sorted(names)}


def parse(argv: Sequence[str]) -> dict[str, Any]:
    """Values of a command line of this script, as if no other had been read before.

    Args:
        argv: the command line, the script's name first.
    """
    for key, own in flags.FLAGS.flags_by_module_dict().items():
        for flag in own if "absl" not in key else ():
            flag.unparse()
    rest = flags.FLAGS(take_back_v(argv))
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]}; options are --name=value")
    return resolved()


def open_particles(path: str | None, apix: float) -> tuple[io.Stack, float]:
    """The stack and its voxel size."""
    if not path:
        raise InputError("--input: a stack of particles is needed")
    stack = io.open_stack(path)
    if apix < 0:
        raise InputError(f"--apix={apix:g}: the voxel size must be positive")
    size = apix or (stack.apix or 0.0)
    if not size > 0:
        raise InputError(f"--input: {path} has no voxel size in its header, give --apix")
    return stack, float(size)


def load_references(
    names: str, box: int, apix: float, own_apix: float, say: Callable[[str], None]
) -> np.ndarray:
    """Reference maps in the box and voxel size of the particles, ``[k, n, n, n]``.

    Args:
        names: comma-separated files.
        box: of the particles.
        apix: of the particles.
        own_apix: ``--apix`` as given, which then holds for the references too; 0 = headers.
        say: prints what was done to a map.
    """
    maps = []
    for name in names.split(","):
        volume, header_apix, _ = io.read_volume(name.strip())
        size = own_apix or header_apix
        if not size or not size > 0:
            raise InputError(f"--ref: {name} has no voxel size in its header, give --apix")
        if not np.isfinite(volume).all() or np.ptp(volume) == 0:
            raise InputError(f"--ref: {name} is constant or not finite")
        if len(set(volume.shape)) != 1:
            raise InputError(f"--ref: {name} is not cubic, its shape is {volume.shape}")
        old = volume.shape[0]
        if old != box or abs(size / apix - 1) > 0.01:
            volume = fit_map(volume, size, box, apix)
            say(f"--ref: {name} resampled from {old} voxels of {size:.4g} A to {box} of {apix:.4g}")
        maps.append(_solvent_at_zero(volume))
    return np.stack(maps).astype(np.float32)


def _solvent_at_zero(volume: np.ndarray) -> np.ndarray:
    border = np.concatenate([np.take(volume, [0, -1], axis=a).ravel() for a in range(3)])
    return volume - np.median(border)


def randomised(maps: np.ndarray, resolution_a: float, apix: float, seed: int) -> np.ndarray:
    """Every map with random phases of its own beyond a resolution."""
    box = maps.shape[-1]
    shell = box * apix / resolution_a
    if shell >= box / 2:
        raise InputError(f"--refrandphase={resolution_a:g}: finer than Nyquist ({2 * apix:g} A)")
    key = jax.random.key(seed)
    return np.stack(
        [
            np.asarray(
                resolution.phase_randomise(jax.random.fold_in(key, i), jnp.asarray(v), shell)
            )
            for i, v in enumerate(maps)
        ]
    )


def find_sampling(
    text: str, premultiplied: bool, stack: io.Stack, say: Callable[[str], None]
) -> Sampling:
    """What ``--wedge`` and ``--premultiplied`` say about the particles."""
    box = stack.box
    path = pathlib.Path(text)
    if text != "auto" and path.suffix and not re.fullmatch(r"[-+.\d,xyz]+", text):
        weights = io.open_stack(text)
        if weights.box != box:
            raise InputError(f"--wedge: {text} has box {weights.box}, the particles {box}")
        if len(weights) == 1:
            return Sampling(np.maximum(weights.read(np.array([0]))[0], 0), None, premultiplied)
        if len(weights) != len(stack):
            raise InputError(f"--wedge: {text} has {len(weights)} grids for {len(stack)} particles")
        return Sampling(None, weights, premultiplied)
    if premultiplied:
        raise InputError("--premultiplied: --wedge must name the file of sums of CTF squared")
    if text == "auto":
        found = _estimate(stack)
        if found is None:
            say("--wedge=auto: no missing wedge found, all of Fourier space counts as sampled")
        else:
            say(f"--wedge=auto: {found.describe()}")
    else:
        found = wedge.parse(text)
    grid = np.ones((box,) * 3, np.float32) if found is None else wedge.region(box, found)
    return Sampling(grid, None, False)


def _estimate(stack: io.Stack) -> wedge.Wedge | None:
    rows = np.unique(np.linspace(0, len(stack) - 1, min(_MOST_FOR_WEDGE, len(stack))).astype(int))
    total = wedge.accumulate_power(None, stack.read(rows[:32]))
    for first in range(32, len(rows), 32):
        total = wedge.accumulate_power(total, stack.read(rows[first : first + 32]))
    return wedge.estimate(wedge.to_centred(total, stack.box)).wedge


def alignment_settings(values: Mapping[str, Any]) -> AlignmentSettings:
    """``--align``, ``--falign``, ``--aligncmp``, ``--search…`` and ``--npeakstorefine``."""
    aligner = options.bind(options.parse(values["align"]), ALIGNERS, "--align")
    fine = options.bind(options.parse(values["falign"]), FINE_ALIGNERS, "--falign")
    names = {c.value: c for c in Comparator}
    comparator = names.get(values["aligncmp"])
    if comparator is None:
        raise InputError(f"--aligncmp={values['aligncmp']}: known are {', '.join(names)}")
    if values["npeakstorefine"] > 1 and aligner is None:
        raise InputError("--npeakstorefine: there is nothing to choose from with --align=None")
    if fine is not None and getattr(aligner, "refine", aligner is not None):
        raise InputError(
            f"--falign={values['falign']}: {values['align']} refines its poses itself; use"
            " rotate_translate_3d:refine=0 or --align=None before it"
        )
    # the documented rule: --search at its default leaves a search stated in the aligner alone
    stated = getattr(aligner, "search", None) or getattr(aligner, "maxshift", None)
    explicit = given("search") and (values["search"] != 8 or stated is None)
    default = None if stated is not None or type(aligner).__name__.endswith("Tree") else 8
    return AlignmentSettings(
        aligner=aligner,
        fine=fine,
        comparator=comparator,
        search_vox=values["search"] if explicit else default,
        search_fine_vox=float(values["searchfine"]),
        peaks=values["npeakstorefine"] if given("npeakstorefine") else None,
    )


def check_names(values: Mapping[str, Any]) -> None:
    """``--output``, ``--resultmx`` and ``--keep``."""
    for name in ("output", "resultmx"):
        value = values[name]
        if value and (not value.endswith(".hdf") or pathlib.Path(value).name != value):
            raise InputError(f"--{name}={value}: a file name ending in .hdf, without a folder")
    if not 0 < values["keep"] <= 1:
        raise InputError(f"--keep={values['keep']:g}: a fraction above 0 and up to 1 is needed")
    if values["refrandphase"] < 0:
        raise InputError(f"--refrandphase={values['refrandphase']:g}: angstrom, not negative")


def read_classes(path: str, count: int) -> io.ClassMatrix:
    """``--classmx``: classes and poses for every particle, no class empty."""
    matrix = io.read_classmx(path)
    if len(matrix.classes) != count:
        raise InputError(f"--classmx: {path} has {len(matrix.classes)} rows, {count} particles")
    if matrix.euler_deg is None or matrix.shifts_vox is None:
        raise InputError(f"--classmx: {path} holds no poses")
    sizes = np.bincount(matrix.classes[matrix.classes >= 0], minlength=matrix.n_classes)
    if (sizes == 0).any():
        raise InputError(f"--classmx: class {int(sizes.argmin())} of {path} is empty")
    return matrix


def device() -> str:
    """What the run computes on, in words."""
    first = jax.devices()[0]
    return f"{jax.device_count()} x {first.device_kind} ({first.platform})"


def run_folder(program: str, values: Mapping[str, Any], argv: Sequence[str]) -> pathlib.Path:
    """The folder of this run: a new one with its manifest, or the one to resume."""
    if values["resume"]:
        folder = workdir.latest(values["path"])
        workdir.check_resume(folder, values)
        before = workdir.read_manifest(folder).options["iter"]
        if len(str(before)) != len(str(values["iter"])):
            raise InputError(
                f"--iter={values['iter']}: the files of {folder} are numbered for {before} rounds;"
                " a number with as many digits is needed"
            )
        workdir.sweep(folder)
        return folder
    folder = workdir.reserve(values["path"])
    manifest = workdir.describe(program, argv, values, values["seed"], device())
    workdir.write_manifest(folder, manifest)
    return folder


def carry_out(
    program: str,
    values: Mapping[str, Any],
    argv: Sequence[str],
    stack: io.Stack,
    apix: float,
    references: np.ndarray | None,
    seed_classes: io.ClassMatrix | None,
    symmetries: tuple[symmetry.Symmetry, ...],
    *,
    gold: bool,
    copies: bool = False,
) -> RefineState:
    """Resolve the shared options, make the run folder and run.

    Args:
        program: ``refinemulti`` or ``classaverage``.
        values: every flag by name.
        argv: the command line, for the record.
        stack: the particles.
        apix: their voxel size, angstrom.
        references: ``[c, n, n, n]``, ``[2, c, n, n, n]`` for halves apart, or None with classes.
        seed_classes: classes and poses to start from, instead of references.
        symmetries: one per class.
        gold: whether the halves have references of their own.
        copies: whether the references are copies of one map.
    """
    alignment = alignment_settings(values)
    if alignment.aligner is None and seed_classes is None:
        raise InputError("--align=None: poses are needed, from --classmx")
    sampling = find_sampling(values["wedge"], values["premultiplied"], stack, console.say)
    refine = RefineSettings(
        alignment=alignment,
        symmetries=symmetries,
        apix=apix,
        break_symmetry=values["breaksym"],
        gold_standard=gold,
        keep=values["keep"],
        averager=Averager(values["averager"]),
        seed=values["seed"],
        copies=copies,
    )
    folder = run_folder(program, values, argv)
    output = OutputSettings(
        folder=folder,
        program=program,
        apix=apix,
        iterations=values["iter"],
        gold_standard=gold,
        average_name=values["output"],
        result_matrix=values["resultmx"],
        save_steps=values["savesteps"],
        save_aligned=values["saveali"],
        plots=values["plots"],
    )
    job = Run(stack, sampling, references, seed_classes, values["iter"], refine, output)
    progress = console.progress if values["verbose"] else console.silent
    try:
        state = execute(job, resume=values["resume"], say=console.say, progress=progress)
    except InputError:
        if not values["resume"]:
            shutil.rmtree(folder)  # nothing was computed
        raise
    console.say(f"averages: {folder / values['output']}")
    return state
