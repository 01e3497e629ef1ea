"""A whole run: read, calibrate, refine round by round, write, resume.

Every round ends with one atomic state file; a run killed at any moment goes on from its last
whole round and ends with the numbers of an unbroken one.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from . import (
    io,
    msa,
    outputs,
    pictures,
    products,
    reporting,
    resample,
    results,
    rotation,
    workdir,
)
from ._errors import InputError
from ._messages import step, warning
from .align import Found
from .calibration import calibrate
from .copies import Copies, Pipelines, load_copies
from .distributed import ALONE, Hosts
from .halves import half_pose
from .outputs import OutputSettings
from .particles import Sampling, Stack
from .products import Extras
from .references import views
from .refinement import RefineSettings, average_round, refine_round
from .rows import IN_MEMORY, Storage
from .state import RefineState, converged, initial_state
from .symmetry import parse
from .transfer import apply_transfer

Progress = Callable[[Iterable, str], Iterable]
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything a run needs, checked and resolved."""

    stack: Stack
    sampling: Sampling
    references: np.ndarray | None  # [c, n, n, n] or [2, c, n, n, n]; None: seeded by classes
    seed_classes: io.ClassMatrix | None
    iterations: int
    refine: RefineSettings
    output: OutputSettings
    pipelines: Pipelines = Pipelines()
    start: Found | None = None  # poses known beforehand, [n, c]
    fit_transfer: bool = True  # give references the radial transfer of the particles
    extras: Extras = Extras()
    input_name: str = "particles"  # of the files of prepared particles
    average_only: bool = False  # average the seed classes and stop
    storage: Storage = IN_MEMORY  # of the coefficients of the particles
    hosts: Hosts = ALONE  # the processes that share the run; the first one writes
    verbose: int = 0  # level of detail of what is said (see reporting.lines)
    same_start: bool = False  # the references tell no classes: copies, or averages at random

    @property
    def has_frame(self) -> bool:
        """Whether the average belongs in the frame of one given reference."""
        return self.output.program == "classaverage" and self.references is not None


def execute(run: Run, *, resume: bool, say: Say, progress: Progress) -> RefineState:
    """Carry a run out, from the start or from its last whole round.

    Args:
        run: what to do; its folder exists and holds the manifest.
        resume: go on from the newest intact state, if there is one.
        say: prints one line.
        progress: wraps iterations over batches: ``progress(items, title)``.

    Raises:
        InputError: fewer than two particles are usable.
    """
    copies = load_copies(
        run.stack,
        run.sampling,
        run.pipelines,
        run.refine.apix,
        spectra=run.refine.references.match,
        storage=run.storage,
        batch=2 * run.refine.read,
        hosts=run.hosts,
        progress=progress,
    )
    assert copies.status is not None, "it was just read"
    for line in reporting.excluded(copies.status, run.stack):
        say(line)
    if len(copies.usable) < 2:
        raise InputError("fewer than two particles are usable")
    leads = run.hosts.leads
    if leads:
        _write_prepared(run, copies)
    state, history = None, _History()
    if resume:
        state, history = _load(run, say)
    if state is None:
        state = _begin(run, copies, say, progress)
        if leads:
            _save(run, state, history)
    if run.average_only:
        if leads:
            outputs.write_recomputed(state, run.output)
            _report(run, state, "")
        return state
    while state.round + 1 < run.iterations and not history.stop:
        begun = time.monotonic()
        after = refine_round(state, copies, run.stack, run.sampling, run.refine, progress=progress)
        history.add(state, after)
        history.stop = converged(state, after, apix=run.refine.apix) or ""
        if leads:
            outputs.write_round(after, run.output)
            _write_extra_steps(run, after)
        history.records.append(
            reporting.record(
                after,
                history.counts[-1],
                history.changed[-1],
                run.refine.apix,
                time.monotonic() - begun,
            )
        )
        for line in reporting.lines(
            after,
            history.records[-1],
            run.iterations,
            gold_standard=run.refine.gold_standard,
            level=run.verbose,
        ):
            say(line)
        if leads:
            _save(run, after, history)
            _complete_log(run, history)
        state = after
    if history.stop:
        say(step(f"converged: {history.stop}"))
    if leads:
        _finish(run, state, history, say, progress)
    run.hosts.wait("finished")
    return state


class _History:
    """Class sizes and changes by round, and why the run stopped."""

    def __init__(self) -> None:
        self.counts: list[list[int]] = []
        self.changed: list[float | None] = []  # none in a round without one before it
        self.records: list[dict[str, Any]] = []  # the lines of log.jsonl
        self.stop = ""

    def add(self, before: RefineState, after: RefineState) -> None:
        n_classes = after.score.shape[1]
        member = after.classes >= 0
        self.counts.append(np.bincount(after.classes[member], minlength=n_classes).tolist())
        moved = before.classes[member] != after.classes[member]
        self.changed.append(float(moved.sum() / max(len(moved), 1)) if before.round >= 0 else None)


def _begin(run: Run, copies: Copies, say: Say, progress: Progress) -> RefineState:
    """State before the first round: given references, calibrated, or averages of seed classes."""
    gold, particles = run.refine.gold_standard, copies.coarse.pilot or copies.coarse.particles
    if run.references is None:
        assert run.seed_classes is not None, "a run starts from one or the other"
        return _seeded(run, run.seed_classes, copies, progress)
    references = np.asarray(run.references, np.float32)
    share, expected = np.ones(particles.box // 2 + 1, np.float32), 0.0
    alignment = run.refine.alignment
    if alignment.aligner is not None or alignment.fine is not None:
        seen, _, _ = views(
            references[0] if references.ndim == 5 else references,
            copies,
            run.refine.references,
            run.refine.apix,
            own_averages=False,
            noise_share=share,
        )
        found = calibrate(
            particles,
            np.asarray(seen.references),
            run.refine.symmetries,
            alignment,
            progress=progress,
        )
        share, expected = found.noise_share, found.expected_score
        if found.count:
            say(
                step(
                    f"calibration on {found.count} particles: a particle at its pose is expected"
                    f" to score {found.expected_score:.1f}"
                )
            )
        if found.count and run.fit_transfer:
            references = _with_transfer(references, found.gain, copies.coarse.scale)
    return initial_state(
        references,
        len(run.stack),
        gold_standard=gold,
        expected_score=expected,
        noise_share=share,
        start=run.start,
        told_apart=not run.same_start,
    )


def _with_transfer(references: np.ndarray, gain: np.ndarray, scale: float) -> np.ndarray:
    """Raw references with a transfer measured on the shells of the coarse copy."""
    box, coarse = references.shape[-1], 2 * (len(gain) - 1)
    shells = np.arange(box // 2 + 1) * (coarse * scale / box)
    own = np.interp(shells, np.arange(len(gain)), gain).astype(np.float32)
    flat = references.reshape(-1, *references.shape[-3:])
    return np.asarray(apply_transfer(flat, own)).reshape(references.shape)


def _seeded(run: Run, seed: io.ClassMatrix, copies: Copies, progress: Progress) -> RefineState:
    """One averaging pass with the classes and poses of a class matrix."""
    box, n_classes = run.stack.box, seed.n_classes
    if seed.euler_deg is None or seed.shifts_vox is None:
        raise InputError("--classmx: the class matrix holds no poses")
    turn = rotation.from_euler(jnp.asarray(seed.euler_deg), rotation.Convention["EMAN"])
    empty = np.zeros((n_classes, box, box, box), np.float32)
    state = initial_state(
        empty,
        len(run.stack),
        gold_standard=run.refine.gold_standard,
        expected_score=0.0,
        told_apart=not run.same_start,
    )
    usable = np.isin(np.arange(len(run.stack)), copies.usable)
    state = dataclasses.replace(
        state,
        rotation=np.repeat(np.asarray(turn)[:, None], n_classes, 1),
        shift=np.repeat(seed.shifts_vox[:, None], n_classes, 1).astype(np.float32),
        classes=np.where(usable, seed.classes, -1).astype(np.int32),
    )
    return average_round(
        state, run.stack, run.sampling, run.refine, hosts=run.hosts, progress=progress
    )


_SAVED = [f.name for f in dataclasses.fields(RefineState) if f.name not in ("peaks", "modes")]


def _save(run: Run, state: RefineState, history: _History) -> None:
    arrays, meta = {}, {}
    for name in _SAVED:
        value = getattr(state, name)
        (arrays if isinstance(value, np.ndarray) else meta)[name] = value
    meta |= vars(history)
    workdir.save_round(run.output.folder, state.round + 1, arrays, meta)


def _load(run: Run, say: Say) -> tuple[RefineState | None, _History]:
    last = workdir.load_last_round(run.output.folder)
    history = _History()
    if last is None:
        return None, history
    for name in last.skipped:
        say(warning(f"{name} is damaged and was left aside"))
    meta = dict(last.meta)
    for name in vars(history):
        setattr(history, name, meta.pop(name))
    meta["reseeded"] = tuple(meta["reseeded"])
    state = RefineState(**last.arrays, **meta)
    if run.hosts.leads:
        _complete_log(run, history)
    say(step(f"resuming {f'after round {state.round}' if state.round >= 0 else 'at the start'}"))
    return state, history


def _complete_log(run: Run, history: _History) -> None:
    """Append the rounds that the log lacks: one, or two after a kill."""
    there = len(workdir.read_lines(run.output.folder, "log.jsonl"))
    for record in history.records[there:]:
        workdir.append_line(run.output.folder, "log.jsonl", record)


def _write_prepared(run: Run, copies: Copies) -> None:
    if not run.extras.prepared:
        return
    products.write_prepared(run.stack, run.input_name, copies, run.refine.apix, run.output)
    if run.references is not None and run.refine.references.preprocess:
        maps = np.asarray(run.references)
        maps = maps[0] if maps.ndim == 5 else maps
        products.write_prepared_references(maps, copies, run.refine.apix, run.output)


def _write_extra_steps(run: Run, state: RefineState) -> None:
    """What is written every round on request."""
    if run.output.save_steps:
        products.write_postprocessed(state, run.extras, run.output, every_round=True)
        if run.has_frame:
            moved = _in_frame_of_reference(run, state)
            outputs.append_image(
                run.output.folder / "avgs_ali2ref.hdf",
                moved,
                state.round,
                run.refine.apix,
                outputs.class_headers(state)[0],
            )
    if run.output.save_all_aligned:
        move = eqx.filter_jit(resample.transform)
        outputs.write_aligned(state, run.stack, run.output, move, every_round=True)


def _finish(run: Run, state: RefineState, history: _History, say: Say, progress: Progress) -> None:
    if not state.told_apart:
        text = "the classes are no clearer than chance: more rounds, or fewer classes, may help"
        say(warning(text))
    outputs.write_final(state, run.output)
    means = [record["mean_score"] for record in history.records]
    outputs.write_mean_scores(means, run.output)
    if run.output.plots and len(state.maps) > 1 and history.counts:
        changed = np.array(history.changed, float)  # none is NaN
        outputs.write_occupancy(np.array(history.counts), changed, run.output)
    if run.output.save_aligned:
        move = eqx.filter_jit(resample.transform)
        outputs.write_aligned(state, run.stack, run.output, move, every_round=False)
    products.write_postprocessed(state, run.extras, run.output, every_round=False)
    if run.extras.variance:
        products.write_variance(
            state, run.stack, run.refine.averaging, run.output, progress=progress
        )
    if run.extras.bootstrap:
        products.write_bootstrap(
            state,
            run.stack,
            run.sampling,
            run.extras.bootstrap,
            run.refine.seed,
            run.output,
            say,
        )
    if run.extras.msa is not None:
        msa.write_split(
            state,
            run.stack,
            run.sampling,
            run.refine.symmetries,
            run.refine.averaging,
            run.extras.msa,
            run.output.folder,
            run.refine.apix,
            say,
            pictures=run.output.plots,
            progress=progress,
        )
    if run.has_frame:
        moved = _in_frame_of_reference(run, state)
        path = run.output.folder / "final_avg_ali2ref.hdf"
        io.write_hdf(path, [moved], run.refine.apix, outputs.class_headers(state)[:1])
    _report(run, state, history.stop)


def _report(run: Run, state: RefineState, stopped: str) -> None:
    """The last pictures, and the page that shows them all."""
    refine = run.refine
    if run.output.plots:
        broken = refine.averaging.break_symmetry
        kept = (parse("c1"),) * len(refine.symmetries) if broken else refine.symmetries
        pictures.draw(state, run.sampling, kept, run.output)
    results.write(
        state, refine.symmetries, run.output, stopped=stopped, recomputed=run.average_only
    )


def _in_frame_of_reference(run: Run, state: RefineState) -> np.ndarray:
    first = np.asarray(run.references)
    first = first[0, 0] if first.ndim == 5 else first[0]
    pose = half_pose(jnp.asarray(first), jnp.asarray(state.maps[0]))
    return np.asarray(resample.transform(jnp.asarray(state.maps[0]), pose))
