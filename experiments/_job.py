"""From checked settings to a run: its folder, its manifest, its execution."""

import dataclasses
import os
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import _alignment
import _classes
import _generate
import _inputs
import _report
import _resolve
import _uncertainty
import jax
import numpy as np

from sptjax import console, distributed, io, planner, reporting, symmetry, workdir
from sptjax._chunk import use_only
from sptjax._errors import InputError
from sptjax._messages import step, warning
from sptjax.comparators import Matched
from sptjax.copies import Pipelines
from sptjax.outputs import OutputSettings
from sptjax.particles import Sampling
from sptjax.refinement import RefineSettings
from sptjax.runner import Run, execute
from sptjax.state import RefineState

Values = Mapping[str, Any]


def use_devices(text: str) -> None:
    """``--parallel``: which cores or devices the run may use.

    Raises:
        InputError: an unknown scheme, no such device, or fewer than one core.
    """
    scheme, _, rest = text.partition(":")
    if scheme in ("none", "thread"):
        count = 1 if scheme == "none" else int(rest) if rest.isdigit() else 0
        if count < 1:
            raise InputError(f"--parallel={text}: thread:N with N of at least 1 is needed")
        if hasattr(os, "sched_setaffinity"):  # Linux
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
        if scheme == "none":
            jax.config.update("jax_cpu_enable_async_dispatch", False)
    elif scheme == "gpu":
        found = [d for d in jax.local_devices() if d.platform == "gpu"]
        wanted = [int(i) for i in re.findall(r"\d+", rest)] or list(range(len(found)))
        if not wanted or max(wanted) >= len(found):
            raise InputError(f"--parallel={text}: {len(found)} GPUs are there")
        jax.config.update("jax_default_device", found[wanted[0]])
        use_only([found[i] for i in wanted])
    elif text != "auto" and scheme != "mpi":
        raise InputError(f"--parallel={text}: known are auto, none, thread:N, gpu[:i,j] and mpi:N")


def join_processes(values: Values) -> distributed.Hosts:
    """``--coordinator``, ``--parallel=mpi:N``, SLURM: this process among those of the run.

    All but the first fall silent.

    Raises:
        InputError: they do not find each other, or the options contradict.
    """
    hosts = _processes(values)
    if not hosts.leads:
        console.mute()
    return hosts


def _processes(values: Values) -> distributed.Hosts:
    stated = [values[name] for name in ("coordinator", "num_processes", "process_id")]
    scheme, _, rest = values["parallel"].partition(":")
    if scheme == "mpi" and not (rest.isdigit() and int(rest) > 0):
        raise InputError(f"--parallel={values['parallel']}: mpi:N with N of at least 1 is needed")
    if all(x is not None for x in stated):
        if not 0 <= stated[2] < stated[1]:
            raise InputError(
                f"--process_id={stated[2]}: there are {stated[1]} processes, from 0 on"
            )
        return distributed.join(*stated)
    if any(x is not None for x in stated):
        raise InputError("--coordinator, --num_processes and --process_id belong together")
    if (scheme == "mpi" and int(rest) > 1) or _launched():
        return distributed.join(expected=int(rest) if scheme == "mpi" else None)
    return distributed.ALONE


def _launched() -> bool:
    """Whether SLURM or Open MPI started this process as one of several."""
    sizes = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
    ranks = ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
    return any(int(os.environ.get(s, 1)) > 1 and r in os.environ for s, r in zip(sizes, ranks))


def device() -> str:
    """What the run computes on, in words."""
    first = jax.local_devices()[0]
    return f"{jax.device_count()} x {first.device_kind} ({first.platform})"


def run_folder(
    program: str, values: Values, argv: Sequence[str], hosts: distributed.Hosts = distributed.ALONE
) -> pathlib.Path:
    """The folder of this run, from the first process: a new one, or the one to resume."""
    folder = str(_own_folder(program, values, argv)) if hosts.leads else ""
    return pathlib.Path(hosts.same_text(folder))


def _own_folder(program: str, values: Values, argv: Sequence[str]) -> pathlib.Path:
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
    values: Values,
    argv: Sequence[str],
    particles: _inputs.Particles,
    references: np.ndarray | _generate.Recipe | None,
    seed_classes: io.ClassMatrix | None,
    symmetries: tuple[symmetry.Symmetry, ...],
    *,
    gold: bool,
    same_start: bool = False,
    average_only: bool = False,
    hosts: distributed.Hosts,
) -> RefineState:
    """Resolve the shared options, make the run folder and run.

    Args:
        program: ``refinemulti`` or ``classaverage``.
        values: every flag by name.
        argv: the command line, for the record.
        particles: which ones, and their voxel size.
        references: ``[c, n, n, n]``, ``[2, c, n, n, n]`` for halves apart, how to make them, or
            None with classes.
        seed_classes: classes and poses to start from, instead of references.
        symmetries: one per class.
        gold: whether the halves have references of their own.
        same_start: whether the references are copies of one map.
        average_only: average the seed classes and stop.
        hosts: the processes of the run.
    """
    stack, apix = particles.stack, particles.apix
    _resolve.check_names(values)
    refine = _refine_settings(values, particles, symmetries, gold=gold)
    if refine.alignment.aligner is None and seed_classes is None and not values["inixforms"]:
        console.say("--align=None without --inixforms: the particles are taken as they lie")
    fine = refine.alignment.fine is not None
    pipelines = _resolve.pipelines(values, stack.box, apix, fine=fine, say=console.say)
    extras = _resolve.extras(values, refine.averaging.averager, pipelines.coarse, stack, apix)
    start = None
    if values["inixforms"]:
        start = _inputs.read_poses(values["inixforms"], particles, len(symmetries))
    sampling = _inputs.find_sampling(
        values["wedge"], values["premultiplied"], particles, console.say
    )
    plan = _memory(values, particles, sampling, pipelines, refine, hosts, same_start=same_start)
    alignment = dataclasses.replace(refine.alignment, batch_bytes=plan.batch_bytes)
    refine = dataclasses.replace(refine, alignment=alignment, read=max(plan.read // 2, 1))
    folder = run_folder(program, values, argv, hosts)
    _report.begin(folder)
    storage = plan.storage
    if storage.folder is not None and not values["scratch"]:
        storage = dataclasses.replace(storage, folder=folder)
    _warn_of_full_disk(values, folder, len(stack), stack.box)
    job = Run(
        stack=stack,
        sampling=sampling,
        references=None if isinstance(references, _generate.Recipe) else references,
        seed_classes=seed_classes,
        iterations=values["iter"],
        refine=refine,
        output=_output_settings(program, values, particles, folder, gold=gold),
        pipelines=pipelines,
        start=start,
        fit_transfer=not values["notmatchimgs"],
        extras=extras,
        input_name=pathlib.Path(values["input"]).stem,
        average_only=average_only,
        same_start=same_start,
        verbose=values["verbose"],
        storage=storage,
        hosts=hosts,
    )
    console.say(step(str(plan)))
    if values["verbose"] >= reporting.DEBUG:
        jax.config.update("jax_log_compiles", True)
        console.say(step(f"settings: {refine}"))
    recipe = references if isinstance(references, _generate.Recipe) else None
    state = _execute(job, values, particles, recipe)
    console.say(step(f"averages: {folder / values['output']}"))
    return state


def _refine_settings(
    values: Values,
    particles: _inputs.Particles,
    symmetries: tuple[symmetry.Symmetry, ...],
    *,
    gold: bool,
) -> RefineSettings:
    """What concerns the rounds."""
    stack, apix = particles.stack, particles.apix
    alignment = _alignment.settings(values, stack.box, apix, console.say)
    if values["breaksym"] and all(s.name == "c1" for s in symmetries):
        console.say(warning("--breaksym: without symmetry there is nothing to break"))
    only = values["oneclass"]
    if only is not None and only >= len(symmetries):
        raise InputError(f"--oneclass={only}: there are {len(symmetries)} classes, from 0 on")
    matched = isinstance(alignment.comparator, Matched)
    align_mask, class_mask = _classes.masks(values, stack.box, apix)
    prepared = _resolve.reference_settings(values, stack.box, apix, match=not matched)
    if align_mask is not None:
        prepared = dataclasses.replace(prepared, mask=align_mask)
    return RefineSettings(
        alignment=alignment,
        symmetries=symmetries,
        apix=apix,
        gold_standard=gold,
        selection=_resolve.selection(values, stack),
        averaging=_resolve.averaging(values),
        references=prepared,
        autocentre=_resolve.autocentre(values),
        filter_by_fsc=values["filterbyfsc"],
        only_class=only,
        seed=values["seed"],
        anneal=values.get("anneal", 0),
        iterations=values["iter"],
        class_mask=class_mask,
        soft=values["soft"],
        modes=_uncertainty.modes(values, alignment, apix),
        by_scale=values["weighbyscale"],
    )


def _output_settings(
    program: str,
    values: Values,
    particles: _inputs.Particles,
    folder: pathlib.Path,
    *,
    gold: bool,
) -> OutputSettings:
    """What is written, and where to."""
    return OutputSettings(
        folder=folder,
        program=program,
        apix=particles.apix,
        iterations=values["iter"],
        gold_standard=gold,
        average_name=values["output"],
        result_matrix=values["resultmx"],
        uncertainty=values["uncertainty"],
        save_steps=values["savesteps"],
        save_aligned=values["saveali"],
        save_all_aligned=values["saveallalign"],
        pose_tag=values["refinemultireftag"],
        plots=values["plots"],
        rows=particles.rows,
        table=_inputs.describe(particles, values["inixforms"]),
    )


def _execute(
    job: Run, values: Values, particles: _inputs.Particles, recipe: _generate.Recipe | None
) -> RefineState:
    """Make the references, if need be, and run; nothing is left of a run that did not begin."""
    progress = console.progress if values["verbose"] else console.silent
    folder = job.output.folder
    try:
        if recipe is not None:
            coarse = job.pipelines.coarse
            made = _generate.kitchen(values, particles, job.sampling, coarse, job.start, progress)
            job = _with_references(job, recipe, made)
        return execute(job, resume=values["resume"], say=console.say, progress=progress)
    except InputError:
        if job.hosts.leads and not values["resume"]:
            shutil.rmtree(folder)  # nothing was computed
        raise
    except jax.errors.JaxRuntimeError as error:
        if job.hosts.count == 1:
            raise
        raise InputError(
            f"another process of this run has ended or cannot be reached; {folder} keeps its whole"
            " rounds, start all processes again with --resume"
        ) from error


def _memory(
    values: Values,
    particles: _inputs.Particles,
    sampling: Sampling,
    pipelines: Pipelines,
    refine: RefineSettings,
    hosts: distributed.Hosts,
    *,
    same_start: bool,
) -> planner.Plan:
    """How the run uses memory and, if need be, a file."""
    stack, gigabyte = particles.stack, 1e9
    if values["scratch"] and not pathlib.Path(values["scratch"]).is_dir():
        raise InputError(f"--scratch={values['scratch']}: there is no such folder")
    made = {p for p in (pipelines.coarse, pipelines.fine, pipelines.full) if p is not None}
    size = planner.Size(
        particles=len(stack),
        box=stack.box,
        copies=tuple(p.output(stack.box, particles.apix)[0] for p in made),
        classes=len(refine.symmetries),
        halves=2 if refine.gold_standard else 1,
        own_sampling=sampling.stack is not None,
        split=same_start,
        half=values["cache"] == "bfloat16",
        processes=hosts.count,
    )
    limit = values["memory"] * gigabyte or planner.USED_SHARE * planner.available()
    folder = pathlib.Path(values["scratch"] or pathlib.Path(values["path"]).parent)
    return planner.make(size, limit=limit, folder=folder)


def _warn_of_full_disk(values: Values, folder: pathlib.Path, count: int, box: int) -> None:
    """Say so if the aligned or prepared particles asked for will not fit."""
    copies = 0
    if values["saveallalign"]:
        copies += values["iter"]
    elif values["saveali"]:
        copies += 1
    if values["savepreproc"]:
        copies += 1
    needed, free = copies * count * box**3 * 4, shutil.disk_usage(folder).free
    if needed > free:
        console.say(
            warning(
                "warning: the particles to be written (--saveali, --saveallalign, --savepreproc)"
                f" take about {needed / 2**30:.1f} GiB, {folder} has {free / 2**30:.1f} GiB left"
            )
        )


def _with_references(job: Run, recipe: _generate.Recipe, made: _generate.Kitchen) -> Run:
    """The run with references made from its particles, prepared like these from the start."""
    maps = None
    if job.hosts.leads:
        maps = _generate.references(recipe, job.output.folder, made, console.say)
    maps = job.hosts.same(maps)
    prepared = dataclasses.replace(job.refine.references, preprocess=True)
    refine = dataclasses.replace(job.refine, references=prepared)
    return dataclasses.replace(job, references=maps, refine=refine)
