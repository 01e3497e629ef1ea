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

from . import io, outputs, resample, rotation, workdir
from ._errors import InputError
from .calibration import calibrate
from .halves import half_pose
from .outputs import OutputSettings
from .particles import Particles, Sampling, Stack, load_particles
from .refinement import (
    RefineSettings,
    RefineState,
    average_round,
    converged,
    initial_state,
    refine_round,
)
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


def execute(run: Run, *, resume: bool, say: Say, progress: Progress) -> RefineState:
    """Carry a run out, from the start or from its last whole round.

    Args:
        run: what to do; its folder exists and holds the manifest.
        resume: go on from the newest intact state, if there is one.
        say: prints one line.
        progress: wraps iterations over batches: ``progress(items, title)``.
    """
    box = run.stack.box
    particles = load_particles(run.stack, run.sampling, box // 2 - 2, progress=progress)
    _say_excluded(particles, run.stack, say)
    state, history = None, _History()
    if resume:
        state, history = _load(run, say)
    if state is None:
        state = _begin(run, particles, say, progress)
        _save(run, state, history)
    while state.round + 1 < run.iterations and not history.stop:
        begun = time.monotonic()
        after = refine_round(
            state, particles, run.stack, run.sampling, run.refine, progress=progress
        )
        history.add(state, after)
        history.stop = converged(state, after, apix=run.refine.apix) or ""
        outputs.write_round(after, run.output)
        history.records.append(_report(run, after, history, time.monotonic() - begun, say))
        _save(run, after, history)
        _complete_log(run, history)
        state = after
    if history.stop:
        say(f"converged: {history.stop}")
    _finish(run, state, history)
    return state


class _History:
    """Class sizes and changes by round, and why the run stopped."""

    def __init__(self) -> None:
        self.counts: list[list[int]] = []
        self.changed: list[float] = []
        self.records: list[dict[str, Any]] = []  # the lines of log.jsonl
        self.stop = ""

    def add(self, before: RefineState, after: RefineState) -> None:
        n_classes = after.score.shape[1]
        member = after.classes >= 0
        self.counts.append(np.bincount(after.classes[member], minlength=n_classes).tolist())
        changed = np.mean(before.classes[member] != after.classes[member]) if member.any() else 0
        self.changed.append(float(changed) if before.round >= 0 else 1.0)


def _say_excluded(particles: Particles, stack: Stack, say: Say) -> None:
    bad = np.flatnonzero(particles.status)
    reason = {1: "NaN or infinity", 2: "no contrast"}
    for i in bad[:20]:
        name = getattr(stack, "name", "particle {}".format)(int(i))
        say(f"excluded: {name} ({reason[int(particles.status[i])]})")
    if len(bad) > 20:
        say(f"excluded: {len(bad) - 20} more particles")
    if len(particles.usable) < 2:
        raise InputError("fewer than two particles are usable")


def _begin(run: Run, particles: Particles, say: Say, progress: Progress) -> RefineState:
    """State before the first round: given references, calibrated, or averages of seed classes."""
    gold = run.refine.gold_standard
    if run.references is None:
        assert run.seed_classes is not None, "a run starts from one or the other"
        return _seeded(run, run.seed_classes, particles, progress)
    references = np.asarray(run.references, np.float32)
    first = references[0] if references.ndim == 5 else references
    found = calibrate(
        particles, first, run.refine.symmetries, run.refine.alignment, progress=progress
    )
    if found.count:
        say(
            f"calibration on {found.count} particles: a particle at its pose is expected to"
            f" score {found.expected_score:.1f}"
        )
        if references.ndim == 5:
            halves = [_filtered(half, found.gain) for half in references]
            references = np.stack(halves)
        else:
            references = found.references
    return initial_state(
        references,
        len(particles),
        gold_standard=gold,
        expected_score=found.expected_score,
        noise_share=found.noise_share,
    )


def _filtered(maps: np.ndarray, gain: np.ndarray) -> np.ndarray:
    return np.asarray(apply_transfer(maps, gain))


def _seeded(
    run: Run, seed: io.ClassMatrix, particles: Particles, progress: Progress
) -> RefineState:
    """One averaging pass with the classes and poses of a class matrix."""
    box, n_classes = run.stack.box, seed.n_classes
    if seed.euler_deg is None or seed.shifts_vox is None:
        raise InputError("--classmx: the class matrix holds no poses")
    turn = rotation.from_euler(jnp.asarray(seed.euler_deg), rotation.Convention["EMAN"])
    empty = np.zeros((n_classes, box, box, box), np.float32)
    state = initial_state(
        empty, len(particles), gold_standard=run.refine.gold_standard, expected_score=0.0
    )
    usable = np.isin(np.arange(len(particles)), particles.usable)
    state = dataclasses.replace(
        state,
        rotation=np.repeat(np.asarray(turn)[:, None], n_classes, 1),
        shift=np.repeat(seed.shifts_vox[:, None], n_classes, 1).astype(np.float32),
        classes=np.where(usable, seed.classes, -1).astype(np.int32),
    )
    return average_round(state, run.stack, run.sampling, run.refine, progress=progress)


_SAVED = [f.name for f in dataclasses.fields(RefineState)]


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
        say(f"{name} is damaged and was left aside")
    meta = dict(last.meta)
    for name in vars(history):
        setattr(history, name, meta.pop(name))
    meta["reseeded"] = tuple(meta["reseeded"])
    state = RefineState(**last.arrays, **meta)
    _complete_log(run, history)
    say(f"resuming after round {state.round}" if state.round >= 0 else "resuming at the start")
    return state, history


def _complete_log(run: Run, history: _History) -> None:
    """Append the rounds that the log lacks: one, or two after a kill."""
    there = len(workdir.read_lines(run.output.folder, "log.jsonl"))
    for record in history.records[there:]:
        workdir.append_line(run.output.folder, "log.jsonl", record)


def _report(
    run: Run, after: RefineState, history: _History, seconds: float, say: Say
) -> dict[str, Any]:
    """Say how the round went; the same as a record."""
    table = outputs.resolutions(after, run.refine.apix)
    best = [table[str(c)]["unmasked"]["0.143"] for c in range(len(after.maps))]
    shown = ", ".join("-" if r is None else f"{r:.1f}" for r in best)
    member = after.classes >= 0
    own = after.score[member, after.classes[member]]
    label = "FSC .143" if run.refine.gold_standard else "FSC .143 (halves share a reference)"
    say(
        f"round {after.round + 1}/{run.iterations}: {100 * history.changed[-1]:.1f} % changed"
        f" class, mean score {own.mean():.2f}, {label} {shown} A,"
        f" classes {history.counts[-1]}, {seconds:.1f} s"
    )
    for c in after.reseeded:
        say(f"class {c} was empty and got the least certain half of the largest class")
    return {
        "round": after.round,
        "seconds": round(seconds, 3),
        "mean_score": float(own.mean()),
        "changed_fraction": history.changed[-1],
        "particles_per_class": history.counts[-1],
        "resolution_angstrom": best,
    }


def _finish(run: Run, state: RefineState, history: _History) -> None:
    outputs.write_final(state, run.output)
    if run.output.plots and len(state.maps) > 1 and history.counts:
        outputs.write_occupancy(np.array(history.counts), np.array(history.changed), run.output)
    if run.output.save_aligned:
        move = eqx.filter_jit(resample.transform)
        outputs.write_aligned(state, run.stack, run.output, move)
    if run.output.program == "classaverage" and run.references is not None:
        first = np.asarray(run.references)
        first = first[0, 0] if first.ndim == 5 else first[0]
        pose = half_pose(jnp.asarray(first), jnp.asarray(state.maps[0]))
        moved = np.asarray(resample.transform(jnp.asarray(state.maps[0]), pose))
        path = run.output.folder / "final_avg_ali2ref.hdf"
        io.write_hdf(path, [moved], run.refine.apix, outputs.class_headers(state)[:1])
