"""Iterative refinement: align every particle, assign classes, average, filter, go on.

One round takes a state to the next. With *gold-standard* halves, particles of even and odd
index have references of their own and never meet before the end; otherwise the halves share a
reference per class and serve for an FSC curve only (label it so: it is optimistic).
"""

import dataclasses
import enum
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from . import average, classify, fourier, masks, resolution, rotation
from ._chunk import padded_batches
from ._types import Pose
from .align import AlignmentSettings, Found, align_particles
from .halves import align_halves
from .particles import Particles, Sampling, Stack
from .symmetry import Symmetry

Progress = Callable[[Iterable, str], Iterable]
CURVES = ("unmasked", "masked", "maskedtight", "corrected")


class Averager(enum.Enum):
    """How particles become a map."""

    MEAN_TOMO = "mean.tomo"  # every frequency divided by how often it was sampled
    MEAN = "mean"  # divided by the number of particles


@dataclasses.dataclass(frozen=True)
class RefineSettings:
    """What the options of a refinement resolve to."""

    alignment: AlignmentSettings
    symmetries: tuple[Symmetry, ...]  # one per class
    apix: float
    break_symmetry: bool = False  # search the asymmetric unit, but do not symmetrise
    gold_standard: bool = False
    keep: float = 1.0  # best-scoring fraction of a class (and half) that is averaged
    averager: Averager = Averager.MEAN_TOMO
    seed: int = 0
    copies: bool = False  # of one map: the references say nothing about classes


@dataclasses.dataclass(frozen=True)
class RefineState:
    """Everything a round leaves behind; host arrays, ``h`` = 2 gold-standard halves or 1."""

    round: int  # of the round that made it; -1 before the first
    references: np.ndarray  # [h, c, n, n, n], for the next round
    expected_score: float
    noise_share: np.ndarray  # [s], part of the stack's mean power that is noise
    rotation: np.ndarray  # [n, c, 3, 3]
    shift: np.ndarray  # [n, c, 3], voxels
    score: np.ndarray  # [n, c]
    classes: np.ndarray  # [n]; -1 for an excluded particle
    used: np.ndarray  # [n] bool, part of the average
    maps: np.ndarray  # [c, n, n, n], both halves
    halves: np.ndarray  # [c, 2, n, n, n], odd moved onto even
    fsc: np.ndarray  # [c, 4, s]: one row per name in CURVES
    odd_to_even: np.ndarray  # [c, 3, 4], how the odd map of gold-standard halves was moved
    reseeded: tuple[int, ...] = ()  # classes that had emptied

    @property
    def margin(self) -> np.ndarray:
        """Best minus second best score of every particle (infinite for one class), ``[n]``."""
        if self.score.shape[1] < 2:
            return np.full(len(self.score), np.inf)
        top = -np.partition(-self.score, 1, axis=1)
        return top[:, 0] - top[:, 1]

    @property
    def pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Rotation and shift of every particle against the reference of its class."""
        row, own = np.arange(len(self.classes)), np.maximum(self.classes, 0)
        return self.rotation[row, own], self.shift[row, own]


def initial_state(
    references: np.ndarray,
    n_particles: int,
    *,
    gold_standard: bool,
    expected_score: float,
    noise_share: np.ndarray | None = None,
) -> RefineState:
    """State before the first round.

    Args:
        references: ``[c, n, n, n]``, or ``[2, c, n, n, n]`` with halves of their own.
        n_particles: size of the stack.
        gold_standard: keep two sets of references.
        expected_score: see :func:`sptjax.calibration.calibrate`.
        noise_share: likewise, ``[box // 2 + 1]``; all of the power if not given.
    """
    maps = np.asarray(references, np.float32)
    if maps.ndim == 4:
        maps = np.stack([maps] * (2 if gold_standard else 1))
    c, box = maps.shape[1], maps.shape[-1]
    found = Found.empty(n_particles, c)
    return RefineState(
        round=-1,
        references=maps,
        expected_score=expected_score,
        noise_share=np.ones(box // 2 + 1, np.float32) if noise_share is None else noise_share,
        rotation=found.rotation,
        shift=found.shift,
        score=found.score,
        classes=np.full(n_particles, -1, np.int32),
        used=np.zeros(n_particles, bool),
        maps=maps.mean(0),
        halves=np.stack([maps[0], maps[-1]], 1),
        fsc=np.full((c, len(CURVES), box // 2 + 1), np.nan, np.float32),
        odd_to_even=np.broadcast_to(np.eye(3, 4, dtype=np.float32), (c, 3, 4)).copy(),
    )


def refine_round(
    state: RefineState,
    particles: Particles,
    stack: Stack,
    sampling: Sampling,
    settings: RefineSettings,
    *,
    start: Found | None = None,
    progress: Progress = lambda items, _: items,
) -> RefineState:
    """One round: align, assign, average, measure, and prepare the next references.

    Particles go to the class of their best score. Where the first references are copies of one
    map, scores say nothing about classes: then the first classes come from the particles
    themselves, at the poses found (:mod:`sptjax.classify`).

    Args:
        state: of the round before.
        particles: coefficients of the whole stack.
        stack: the raw particles, read again for averaging.
        sampling: of the particles.
        settings: constant over the rounds.
        start: poses to start from where no aligner searches; those of the state if not given.
        progress: wraps iterations over batches.
    """
    observed = particles.with_noise_share(state.noise_share)
    found = _align(state, observed, settings, start, progress)
    usable = particles.usable
    classes = np.full(len(particles), -1, np.int32)
    classes[usable] = np.argmax(found.score[usable], 1)
    if settings.copies and state.round < 0:
        classes[usable] = _split(found, usable, stack, sampling, settings, progress)
    classes, reseeded = _reseed_empty(classes, found.score)
    used = _keep_best(classes, found.score, settings)
    sums = _average(found, classes, used, stack, sampling, settings, progress)
    return _measure(state, found, classes, used, reseeded, sums, settings)


def average_round(
    state: RefineState,
    stack: Stack,
    sampling: Sampling,
    settings: RefineSettings,
    *,
    progress: Progress = lambda items, _: items,
) -> RefineState:
    """Average with the classes and poses of a state, without aligning; the round stays as it is."""
    found = Found(state.rotation, state.shift, state.score)
    used = state.classes >= 0
    sums = _average(found, state.classes, used, stack, sampling, settings, progress)
    after = _measure(state, found, state.classes, used, (), sums, settings)
    return dataclasses.replace(after, round=state.round)


def _align(
    state: RefineState,
    particles: Particles,
    settings: RefineSettings,
    start: Found | None,
    progress: Progress,
) -> Found:
    found = Found.empty(len(particles), state.references.shape[1])
    start = start or Found(state.rotation, state.shift, state.score)
    for half, references in enumerate(state.references):
        rows = particles.usable
        if len(state.references) == 2:
            rows = rows[rows % 2 == half]
        if not len(rows):
            continue
        begin = Found(start.rotation[rows], start.shift[rows], start.score[rows])
        part = align_particles(
            particles,
            rows,
            references,
            settings.symmetries,
            settings.alignment,
            expected_score=state.expected_score,
            start=begin,
            progress=progress,
        )
        found.rotation[rows], found.shift[rows] = part.rotation, part.shift
        found.score[rows] = part.score
    return found


def _split(
    found: Found,
    usable: np.ndarray,
    stack: Stack,
    sampling: Sampling,
    settings: RefineSettings,
    progress: Progress,
) -> np.ndarray:
    """Classes of the usable particles at their best poses."""
    best = np.argmax(found.score[usable], 1)
    band = classify.align_band(
        stack,
        sampling,
        usable,
        found.rotation[usable, best],
        found.shift[usable, best],
        classify.widest_band(len(usable), stack.box),
        progress=progress,
    )
    return classify.split(band, found.score.shape[1], key=jax.random.key(settings.seed)).classes


def _reseed_empty(classes: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Give an emptied class the least certain half of the largest one."""
    classes, reseeded = classes.copy(), []
    for empty in range(score.shape[1]):
        if (classes == empty).any():
            continue
        counts = np.bincount(classes[classes >= 0], minlength=score.shape[1])
        largest = int(counts.argmax())
        members = np.flatnonzero(classes == largest)
        if len(members) < 2:
            continue
        margin = score[members, largest] - score[members, empty]
        classes[members[np.argsort(margin, kind="stable")[: len(members) // 2]]] = empty
        reseeded.append(empty)
    return classes, tuple(reseeded)


def _keep_best(classes: np.ndarray, score: np.ndarray, settings: RefineSettings) -> np.ndarray:
    """Best-scoring fraction of every class (and gold-standard half)."""
    used = np.zeros(len(classes), bool)
    parts = (0, 1) if settings.gold_standard else (None,)
    for c in range(score.shape[1]):
        for half in parts:
            member = classes == c
            if half is not None:
                member &= np.arange(len(classes)) % 2 == half
            rows = np.flatnonzero(member)
            if not len(rows):
                continue
            count = max(1, int(settings.keep * len(rows) + 1e-9))
            used[rows[np.argsort(-score[rows, c], kind="stable")[:count]]] = True
    return used


def _average(
    found: Found,
    classes: np.ndarray,
    used: np.ndarray,
    stack: Stack,
    sampling: Sampling,
    settings: RefineSettings,
    progress: Progress,
    batch: int = 16,
) -> average.FourierSums:
    """Partial sums of every class and half, group ``2 * class + half``, symmetrised."""
    n_classes = found.score.shape[1]
    sums = average.empty(stack.box, 2 * n_classes)
    rows = np.flatnonzero(used)
    for indices, real in progress(list(padded_batches(rows, batch)), "averaging"):
        own = classes[indices]
        group = np.where(np.arange(batch) < real, 2 * own + indices % 2, -1)
        grids = jnp.asarray(sampling.grids(indices))
        volumes = jnp.asarray(stack.read(indices))
        if not sampling.premultiplied:
            volumes = average.apply_sampling(volumes, grids)
        pose = Pose(
            jnp.asarray(found.rotation[indices, own]), jnp.asarray(found.shift[indices, own])
        )
        weights = None if settings.averager is Averager.MEAN else grids
        sums = average.add(sums, volumes, pose, jnp.asarray(group), None, weights)
    if settings.break_symmetry or all(len(s.operators) == 1 for s in settings.symmetries):
        return sums
    parts = []
    for c, symmetry in enumerate(settings.symmetries):
        part = jax.tree.map(lambda x, c=c: x[2 * c : 2 * c + 2], sums)
        parts.append(average.symmetrise(part, symmetry.operators, symmetry.shifts))
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def _measure(
    state: RefineState,
    found: Found,
    classes: np.ndarray,
    used: np.ndarray,
    reseeded: tuple[int, ...],
    sums: average.FourierSums,
    settings: RefineSettings,
) -> RefineState:
    """Maps, FSC curves and the references of the next round."""
    n_classes, box = found.score.shape[1], state.references.shape[-1]
    own = average.finish(sums).reshape(n_classes, 2, box, box, box)
    merged = average.finish(_merge_halves(sums, n_classes))
    halves, maps, fsc, moved = [], [], [], []
    for c, symmetry in enumerate(settings.symmetries):
        even, odd, both = own[c, 0], own[c, 1], merged[c]
        if settings.gold_standard:
            odd, pose = align_halves(even, odd, symmetry)
            moved.append(np.asarray(rotation.pose_to_matrix34(pose)))
            count = np.maximum(np.asarray(sums.count[2 * c : 2 * c + 2], np.float32), 0)
            both = (count[0] * even + count[1] * odd) / max(count.sum(), 1)
        key = jax.random.fold_in(jax.random.key(settings.seed), 1000 * (state.round + 1) + c)
        fsc.append(_fsc_curves(key, even, odd, both))
        halves.append(np.stack([np.asarray(even), np.asarray(odd)]))
        maps.append(np.asarray(both))
    curves = np.stack(fsc)
    counts = np.bincount(classes[used], minlength=n_classes)
    references = _next_references(sums, curves, counts, settings)
    assigned = classes >= 0
    chosen = found.score[assigned, classes[assigned]]
    return RefineState(
        round=state.round + 1,
        references=references,
        expected_score=float(np.median(chosen)) if len(chosen) else state.expected_score,
        noise_share=state.noise_share,
        rotation=found.rotation,
        shift=found.shift,
        score=found.score,
        classes=classes,
        used=used,
        maps=np.stack(maps),
        halves=np.stack(halves),
        fsc=curves,
        odd_to_even=np.stack(moved) if moved else state.odd_to_even,
        reseeded=reseeded,
    )


def _merge_halves(sums: average.FourierSums, n_classes: int) -> average.FourierSums:
    return jax.tree.map(lambda x: x.reshape(n_classes, 2, *x.shape[1:]).sum(1), sums)


def _fsc_curves(key, even, odd, both) -> np.ndarray:
    """The curves named in CURVES, ``[4, s]``."""
    box = even.shape[-1]
    unmasked = resolution.fsc(even, odd)
    if not float(jnp.abs(both).max()) > 0:
        return np.full((len(CURVES), box // 2 + 1), np.nan, np.float32)
    mask = jnp.asarray(masks.automask(both))
    tight = jnp.asarray(masks.automask(both, dilate_vox=0.0))
    masked = resolution.fsc_corrected(key, even, odd, mask)
    curves = (unmasked, masked.masked, resolution.fsc_masked(even, odd, tight), masked.corrected)
    return np.stack([np.asarray(x) for x in curves])


def _next_references(
    sums: average.FourierSums,
    curves: np.ndarray,
    counts: np.ndarray,
    settings: RefineSettings,
) -> np.ndarray:
    """Wiener-filtered averages; classes share one filter and radial power, to compare scores."""
    n_classes, box = len(curves), sums.numerator.shape[1]
    weight = np.where(np.isfinite(curves[:, 0]), counts[:, None], 0)
    mean = np.nansum(weight * np.nan_to_num(curves[:, 0]), 0) / np.maximum(weight.sum(0), 1)
    gain = resolution.wiener_gain(jnp.asarray(mean, jnp.float32))
    ratio = (1 - gain) / jnp.maximum(gain, 1e-6)  # noise to signal of the merged map
    edge = masks.sphere(box, box / 2 - 2, 2.0)
    if settings.gold_standard:  # one half has twice the noise
        maps = average.finish(sums, noise_to_signal=jnp.tile(2 * ratio, (2 * n_classes, 1)))
        halves = maps.reshape(n_classes, 2, box, box, box).swapaxes(0, 1)
        return np.asarray(halves * edge[None, None])
    merged = _merge_halves(sums, n_classes)
    maps = average.finish(merged, noise_to_signal=jnp.tile(ratio, (n_classes, 1)))
    return np.asarray(_common_power(maps) * edge[None])[None]


@jax.jit
def _common_power(maps):
    """Maps rescaled, shell by shell, to the mean radial power of those that are not empty."""
    box = maps.shape[-1]
    power = jax.vmap(lambda v: fourier.shell_mean(jnp.abs(fourier.rfftn(v)) ** 2, box))(maps)
    filled = (power.sum(1) > 0).astype(power.dtype)[:, None]
    mean = (power * filled).sum(0) / jnp.maximum(filled.sum(), 1)
    gain = jnp.sqrt(mean[None] / jnp.where(power > 1e-12 * power.max(), power, jnp.inf))
    return jax.vmap(fourier.radial_filter)(maps, gain)


def converged(before: RefineState, after: RefineState, *, apix: float) -> str | None:
    """Why a refinement may stop, or None.

    A round that changes the class of less than 1 % of the particles, turns them by less than
    half a degree and moves them by less than a quarter voxel (medians), and no FSC curve by
    more than one shell, has arrived.
    """
    if before.round < 0:
        return None
    member = (after.classes >= 0) & (before.classes >= 0)
    changed = (
        float(np.mean(before.classes[member] != after.classes[member])) if member.any() else 1.0
    )
    (r0, t0), (r1, t1) = before.pose, after.pose
    cosine = (np.einsum("nij,nij->n", r0, r1) - 1) / 2
    turn = float(np.median(np.degrees(np.arccos(np.clip(cosine, -1, 1)))[member]))
    move = float(np.median(np.linalg.norm(t0 - t1, axis=1)[member]))
    limits = [
        [int(resolution.band_limit(jnp.asarray(curve[0]))) for curve in state.fsc]
        for state in (before, after)
    ]
    shells = max(abs(a - b) for a, b in zip(*limits))
    if changed < 0.01 and turn < 0.5 and move < 0.25 and shells <= 1:
        return (
            f"{100 * changed:.1f} % of the particles changed class, poses moved by"
            f" {turn:.2f} degrees and {move * apix:.2f} A, the FSC by {shells} shell(s)"
        )
    return None
