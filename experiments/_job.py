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
import _resolve
import jax
import numpy as np

from sptjax import console, io, planner, reporting, symmetry, workdir
from sptjax._errors import InputError
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
        found = [d for d in jax.devices() if d.platform == "gpu"]
        wanted = [int(i) for i in re.findall(r"\d+", rest)] or list(range(len(found)))
        if not wanted or max(wanted) >= len(found):
            raise InputError(f"--parallel={text}: {len(found)} GPUs are there")
        jax.config.update("jax_default_device", found[wanted[0]])
    elif text != "auto":
        raise InputError(f"--parallel={text}: known are auto, none, thread:N and gpu[:i,j]")


def device() -> str:
    """What the run computes on, in words."""
    first = jax.devices()[0]
    return f"{jax.device_count()} x {first.device_kind} ({first.platform})"


def run_folder(program: str, values: Values, argv: Sequence[str]) -> pathlib.Path:
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
    """
    stack, apix = particles.stack, particles.apix
    _resolve.check_names(values)
    alignment = _alignment.settings(values, stack.box, apix, console.say)
    if alignment.aligner is None and seed_classes is None and not values["inixforms"]:
        console.say("--align=None without --inixforms: the particles are taken as they lie")
    if values["breaksym"] and all(s.name == "c1" for s in symmetries):
        console.say("--breaksym: without symmetry there is nothing to break")
    only = values["oneclass"]
    if only is not None and only >= len(symmetries):
        raise InputError(f"--oneclass={only}: there are {len(symmetries)} classes, from 0 on")
    matched = isinstance(alignment.comparator, Matched)
    align_mask, class_mask = _classes.masks(values, stack.box, apix)
    prepared = _resolve.reference_settings(values, stack.box, apix, match=not matched)
    if align_mask is not None:
        prepared = dataclasses.replace(prepared, mask=align_mask)
    averaging = _resolve.averaging(values)
    refine = RefineSettings(
        alignment=alignment,
        symmetries=symmetries,
        apix=apix,
        gold_standard=gold,
        selection=_resolve.selection(values, stack),
        averaging=averaging,
        references=prepared,
        autocentre=_resolve.autocentre(values),
        filter_by_fsc=values["filterbyfsc"],
        only_class=only,
        seed=values["seed"],
        anneal=values.get("anneal", 0),
        class_mask=class_mask,
    )
    fine = alignment.fine is not None
    pipelines = _resolve.pipelines(values, stack.box, apix, fine=fine, say=console.say)
    extras = _resolve.extras(values, averaging.averager, pipelines.coarse, stack, apix)
    start = None
    if values["inixforms"]:
        start = _inputs.read_poses(values["inixforms"], particles, len(symmetries))
    sampling = _inputs.find_sampling(
        values["wedge"], values["premultiplied"], particles, console.say
    )
    plan = _memory(values, particles, sampling, pipelines, refine, same_start=same_start)
    alignment = dataclasses.replace(alignment, batch_bytes=plan.batch_bytes)
    refine = dataclasses.replace(refine, alignment=alignment, read=max(plan.read // 2, 1))
    folder = run_folder(program, values, argv)
    storage = plan.storage
    if storage.folder is not None and not values["scratch"]:
        storage = dataclasses.replace(storage, folder=folder)
    _warn_of_full_disk(values, folder, len(stack), stack.box)
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
        save_all_aligned=values["saveallalign"],
        pose_tag=values["refinemultireftag"],
        plots=values["plots"],
        rows=particles.rows,
        table=_inputs.describe(particles, values["inixforms"]),
    )
    job = Run(
        stack=stack,
        sampling=sampling,
        references=None if isinstance(references, _generate.Recipe) else references,
        seed_classes=seed_classes,
        iterations=values["iter"],
        refine=refine,
        output=output,
        pipelines=pipelines,
        start=start,
        fit_transfer=not values["notmatchimgs"],
        extras=extras,
        input_name=pathlib.Path(values["input"]).stem,
        average_only=average_only,
        same_start=same_start,
        verbose=values["verbose"],
        storage=storage,
    )
    console.say(str(plan))
    if values["verbose"] >= reporting.DEBUG:
        jax.config.update("jax_log_compiles", True)
        console.say(f"settings: {refine}")
    progress = console.progress if values["verbose"] else console.silent
    try:
        if isinstance(references, _generate.Recipe):
            coarse = pipelines.coarse
            made = _generate.kitchen(values, particles, sampling, coarse, start, progress)
            job = _with_references(job, references, made)
        state = execute(job, resume=values["resume"], say=console.say, progress=progress)
    except InputError:
        if not values["resume"]:
            shutil.rmtree(folder)  # nothing was computed
        raise
    console.say(f"averages: {folder / values['output']}")
    return state


def _memory(
    values: Values,
    particles: _inputs.Particles,
    sampling: Sampling,
    pipelines: Pipelines,
    refine: RefineSettings,
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
            f"warning: the particles to be written (--saveali, --saveallalign, --savepreproc) take"
            f" about {needed / 2**30:.1f} GiB, {folder} has {free / 2**30:.1f} GiB left"
        )


def _with_references(job: Run, recipe: _generate.Recipe, made: _generate.Kitchen) -> Run:
    """The run with references made from its particles, prepared like these from the start."""
    maps = _generate.references(recipe, job.output.folder, made, console.say)
    prepared = dataclasses.replace(job.refine.references, preprocess=True)
    refine = dataclasses.replace(job.refine, references=prepared)
    return dataclasses.replace(job, references=maps, refine=refine)
