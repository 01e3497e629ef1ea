"""Iterative refinement: align every particle, assign classes, average, filter, go on.

One round takes a state to the next. With *gold-standard* halves, particles of even and odd
index have references of their own and never meet before the end; otherwise the halves share a
reference per class and serve for an FSC curve only (label it so: it is optimistic).
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from . import classify, fourier, particle_weights, pca, resolution, uncertainty
from .align import AlignmentSettings, Found, View, align_views
from .averaging import Assigned, Averages, Averaging, average_classes
from .centring import Autocentre, centre_shift
from .copies import Copies
from .distributed import ALONE, Hosts
from .io import PoseTable
from .measure import measure, next_references
from .particles import Sampling, Stack
from .references import ReferenceSettings, views
from .selection import Selection, assign, select
from .state import RefineState
from .symmetry import Symmetry
from .transfer import Regression

Progress = Callable[[Iterable, str], Iterable]

SETTLED_DEG = 3.0  # median turn of a round
LEAST_SHARE = 1e-3  # probability of a mode that is averaged


@dataclasses.dataclass(frozen=True)
class RefineSettings:
    """What the options of a refinement resolve to."""

    alignment: AlignmentSettings
    symmetries: tuple[Symmetry, ...]  # one per class
    apix: float
    gold_standard: bool = False
    selection: Selection = Selection()
    averaging: Averaging = Averaging()
    references: ReferenceSettings = ReferenceSettings()
    autocentre: Autocentre | None = None
    filter_by_fsc: bool = False  # particles and references of a search, by the last FSC
    only_class: int | None = None  # average this class alone
    seed: int = 0
    anneal: int = 0  # rounds in which classes are drawn at random, less and less
    class_mask: np.ndarray | None = None  # [n, n, n]: classes differ inside it alone
    iterations: int | None = None  # rounds that are planned
    soft: bool = False  # average particles in all their modes by probability; needs modes
    modes: int = 0  # poses of a particle whose uncertainty is measured; 0: none
    by_scale: bool = False  # average by scale and B-factor of the particles
    read: int = 16  # raw particles in memory at a time; results do not depend on it


def refine_round(
    state: RefineState,
    copies: Copies,
    stack: Stack,
    sampling: Sampling,
    settings: RefineSettings,
    *,
    progress: Progress = lambda items, _: items,
) -> RefineState:
    """One round: align, assign, average, measure, and prepare the next references.

    Particles go to the class of their best score. Where the references are copies of one map,
    scores say nothing about classes: then these come from the particles themselves, at the
    poses found (:mod:`sptjax.classify`). As long as they are not clearer than chance, the next
    references are copies again, of the average of all particles.

    Args:
        state: of the round before; its poses are where local aligners start.
        copies: of the whole stack, as the alignment sees it.
        stack: the raw particles, read again for averaging.
        sampling: of the raw particles.
        settings: constant over the rounds.
        progress: wraps iterations over batches.
    """
    found, modes = _align(state, copies, settings, progress)
    if settings.class_mask is not None:
        found = _focused(found, state, copies, settings, settings.class_mask, progress)
    usable = copies.usable
    classes = np.full(len(found.score), -1, np.int32)
    if settings.soft and modes is not None:
        chosen = _likely_classes(modes, found.score.shape[1])
    else:
        chosen = assign(found.score, state.round + 1, settings.anneal, settings.seed)
    classes[usable] = chosen[usable]
    told_apart = state.told_apart
    if not told_apart:
        split = _split(found, usable, stack, sampling, settings, progress, copies.hosts)
        classes[usable] = split.classes
        told_apart = _may_part(split, state, found, settings)
    classes, reseeded = _reseed_empty(classes, found.score)
    strengths = _strengths(state, found, classes, copies, settings) if settings.by_scale else None
    after = _average(
        state, found, classes, stack, sampling, settings, progress, told_apart, copies.hosts, modes,
        strengths,
    )  # fmt: skip
    return dataclasses.replace(after, reseeded=reseeded, peaks=found.peaks)


def average_round(
    state: RefineState,
    stack: Stack,
    sampling: Sampling,
    settings: RefineSettings,
    *,
    hosts: Hosts = ALONE,
    progress: Progress = lambda items, _: items,
) -> RefineState:
    """Average with the classes and poses of a state, without aligning; the round stays as it is.

    Args:
        state: classes and poses.
        stack: raw particles.
        sampling: of the particles.
        settings: of the refinement.
        hosts: processes that share the particles.
        progress: wraps the iteration over batches.
    """
    found = Found(state.rotation, state.shift, state.score)
    found_apart = state.told_apart
    after = _average(
        state, found, state.classes, stack, sampling, settings, progress, found_apart, hosts
    )
    return dataclasses.replace(after, round=state.round)


def _align(
    state: RefineState, copies: Copies, settings: RefineSettings, progress: Progress
) -> tuple[Found, PoseTable | None]:
    """Poses of all particles and, if settings ask for it, how well they are known."""
    found = Found.empty(len(state.classes), state.references.shape[1])
    alignment = settings.alignment
    if settings.modes:
        peaks_kept = max(alignment.peaks or 1, settings.modes)
        alignment = dataclasses.replace(alignment, save_peaks=alignment.searches, peaks=peaks_kept)
    key = jax.random.fold_in(jax.random.key(settings.seed), state.round + 1)
    gain = _fsc_filter(state) if settings.filter_by_fsc else None
    peaks, tables = [], []
    for half, rows, seen in _by_half(state, copies, settings):
        coarse, fine, full = (v if v is None else _filtered(v, gain) for v in seen)
        assert coarse is not None
        begin = Found(state.rotation[rows], state.shift[rows], state.score[rows])
        part = align_views(
            coarse,
            fine,
            full,
            rows,
            settings.symmetries,
            alignment,
            expected_score=state.expected_score,
            start=begin,
            key=jax.random.fold_in(key, half),
            progress=progress,
        )
        found.rotation[rows], found.shift[rows] = part.rotation, part.shift
        found.score[rows] = part.score
        peaks.append((rows, part.peaks))
        if settings.modes:
            table = uncertainty.pose_table(
                _last(coarse, fine, full, alignment),
                rows,
                part,
                settings.symmetries,
                alignment.of_fine_stage() if alignment.fine else alignment,
                expected_score=state.expected_score,
                modes=settings.modes,
                hosts=copies.hosts,
                progress=progress,
            )
            tables.append((rows, table))
    if settings.alignment.save_peaks:
        found.peaks = _joined([(r, p) for r, p in peaks if p is not None], len(found.score))
    modes = _whole_table(tables, len(found.score), copies.hosts) if tables else None
    return _gathered(found, copies.hosts), modes


def _by_half(
    state: RefineState, copies: Copies, settings: RefineSettings
) -> Iterator[tuple[int, np.ndarray, tuple[View, View | None, View | None]]]:
    """Number, particles and views of every half that has references of its own."""
    for half, references in enumerate(state.references):
        rows = copies.coarse.particles.usable
        if len(state.references) == 2:
            rows = rows[rows % 2 == half]
        if not len(rows):
            continue
        seen = views(
            references,
            copies,
            settings.references,
            settings.apix,
            own_averages=state.round >= 0,
            noise_share=state.noise_share,
        )
        yield half, rows, seen


def _strengths(
    state: RefineState,
    found: Found,
    classes: np.ndarray,
    copies: Copies,
    settings: RefineSettings,
) -> particle_weights.Strengths:
    """Scale and B-factor of all particles, against the references they were aligned to."""
    parts, box, scale = [], 0, 1.0
    for _, rows, seen in _by_half(state, copies, settings):
        view = _last(*seen, settings.alignment)
        box, scale, own = view.particles.box, view.scale, classes[rows]
        pose = found.rotation[rows, own], found.shift[rows, own]
        parts.append((rows, particle_weights.regress_view(view, rows, *pose, own)))
    sums = [np.zeros((len(classes), box // 2 + 1), np.float32) for _ in range(3)]
    for rows, part in parts:
        for whole, values in zip(sums, jax.tree.leaves(part)):
            whole[rows] = values
    joined = (jnp.asarray(copies.hosts.joined(x)) for x in sums)
    return particle_weights.fit_strengths(Regression(*joined), box, settings.apix * scale)


def _last(coarse: View, fine: View | None, full: View | None, settings: AlignmentSettings) -> View:
    """Where the last stage of an alignment sees the particles."""
    last = fine if settings.fine is not None and fine is not None else coarse
    return full if settings.tweak and full is not None and last.scale > 1 else last


def _whole_table(parts: list[tuple[np.ndarray, PoseTable]], count: int, hosts: Hosts) -> PoseTable:
    """Modes in the order of the stack; particles without any are in no class."""
    arrays = {}
    for field in dataclasses.fields(PoseTable):
        name, first = field.name, getattr(parts[0][1], field.name)
        empty = {"classes": -1, "elsewhere": 1}.get(name, 0)
        whole = np.full((count, *first.shape[1:]), empty, first.dtype)
        for rows, table in parts:
            whole[rows] = getattr(table, name)
        arrays[name] = hosts.joined(whole)
    return PoseTable(**arrays)


def _focused(
    found: Found,
    state: RefineState,
    copies: Copies,
    settings: RefineSettings,
    mask: np.ndarray,
    progress: Progress,
) -> Found:
    """Scores at the best pose of every particle, of references that differ inside a mask alone.

    Outside, all references are their mean. What aligns particles best need not be what tells
    classes apart, and one pose for all classes keeps differences of poses out of the scores.
    """
    rows, best = np.arange(len(found.score)), np.argmax(found.score, 1)
    turn, shift = (x[rows, best][:, None].repeat(found.score.shape[1], 1) for x in
                   (found.rotation, found.shift))  # fmt: skip
    common = state.references.mean(1, keepdims=True)
    state = dataclasses.replace(
        state,
        references=(common + mask * (state.references - common)).astype(np.float32),
        rotation=turn,
        shift=shift,
    )
    only_score = dataclasses.replace(
        settings.alignment, aligner=None, fine=None, translate_only=False, tweak=False,
        save_peaks=False,
    )  # fmt: skip
    whole = dataclasses.replace(settings.references, mask=None, automask=False)
    fixed = dataclasses.replace(settings, alignment=only_score, references=whole, modes=0)
    scored, _ = _align(state, copies, fixed, progress)
    return dataclasses.replace(scored, peaks=found.peaks)


def _joined(parts: list[tuple[np.ndarray, Found]], count: int) -> Found:
    """Peaks of both halves in the order of the stack."""
    first = parts[0][1]
    whole = [np.zeros((count, *x.shape[1:]), x.dtype) for x in _arrays(first)]
    for rows, part in parts:
        for target, values in zip(whole, _arrays(part)):
            target[rows] = values
    return Found(whole[0], whole[1], whole[2])


def _gathered(found: Found, hosts: Hosts) -> Found:
    """What every process found in its block."""
    peaks = None if found.peaks is None else _gathered(found.peaks, hosts)
    return Found(*(hosts.joined(x) for x in _arrays(found)), peaks=peaks)


def _arrays(found: Found) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return found.rotation, found.shift, found.score


def _fsc_filter(state: RefineState) -> np.ndarray:
    """Wiener gain per raw shell from the last FSC, or of the first two references."""
    if state.round >= 0:
        curve = np.nanmean(state.fsc[:, 0], 0)
    elif len(state.references) == 2:
        curve = np.asarray(resolution.fsc(*(jnp.asarray(r[0]) for r in state.references)))
    else:
        return np.ones(state.references.shape[-1] // 2 + 1, np.float32)
    gain = resolution.wiener_gain(jnp.asarray(np.nan_to_num(curve), jnp.float32))
    return np.maximum(np.asarray(gain), 1e-3)


def _filtered(view: View, gain: np.ndarray | None) -> View:
    """A view with one radial filter on particles and references; clipping stretches shells."""
    if gain is None:
        return view
    box = view.particles.box
    shells = np.arange(box // 2 + 1)
    raw = 2 * (len(gain) - 1)
    own = np.interp(shells * raw / (box * view.scale), np.arange(len(gain)), gain)
    own = own.astype(np.float32)
    maps = jax.vmap(fourier.radial_filter, (0, None))(
        jnp.asarray(view.references), jnp.asarray(own)
    )
    shell = np.rint(np.linalg.norm(view.particles.vectors, axis=1)).astype(int)
    particles = dataclasses.replace(view.particles, gain=own[shell])
    return View(particles, np.asarray(maps), view.scale)


def _split(
    found: Found,
    usable: np.ndarray,
    stack: Stack,
    sampling: Sampling,
    settings: RefineSettings,
    progress: Progress,
    hosts: Hosts,
) -> classify.Split:
    """Classes of the usable particles at their best poses."""
    best = np.argmax(found.score[usable], 1)
    kmax = classify.widest_band(len(usable), stack.box)
    pose = found.rotation[usable, best], found.shift[usable, best]
    band = classify.align_band(
        stack,
        sampling,
        usable,
        *pose,
        kmax,
        batch=settings.read,
        hosts=hosts,
        progress=progress,
    )
    if settings.class_mask is not None:
        band = pca.confined(band, pca.MaskedSpace(jnp.asarray(settings.class_mask), kmax))
    return classify.split(band, found.score.shape[1], key=jax.random.key(settings.seed))


def _may_part(
    split: classify.Split, state: RefineState, found: Found, settings: RefineSettings
) -> bool:
    """Whether the classes of a split are to be followed.

    Poses that are still wrong make groups of their own, of particles that are wrong alike. So the
    poses must have settled since the round before, or the classes be beyond doubt; in the second
    half of the rounds that are planned it is late enough.
    """
    if not split.supported or split.beyond_doubt:
        return split.supported
    if settings.iterations is not None and 2 * (state.round + 2) > settings.iterations:
        return True
    if state.round < 0:
        return False
    row, best = np.arange(len(found.score)), np.argmax(found.score, 1)
    before = state.rotation[row, np.argmax(state.score, 1)]
    trace = np.einsum("nij,nij->n", before, found.rotation[row, best])
    turn = np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))
    return float(np.median(turn)) < SETTLED_DEG


def _likely_classes(modes: PoseTable, count: int) -> np.ndarray:
    """Class of the largest probability over all modes of a particle, ``[n]``."""
    share = [np.where(modes.classes == c, modes.probability, 0).sum(1) for c in range(count)]
    return np.argmax(share, 0)


def _softly(
    rows: np.ndarray, weight: np.ndarray, modes: PoseTable, round_: int, settings: RefineSettings
) -> Assigned:
    """Particles in all their modes, with their weight times the probability of each.

    In the first ``anneal`` rounds probabilities are raised to a power that grows to one, so that
    classes do not settle too early.
    """
    power = min(1.0, (round_ + 1) / (settings.anneal + 1))
    share = modes.tempered(power)[rows] * (modes.classes[rows] >= 0)
    if settings.only_class is not None:
        share = share * (modes.classes[rows] == settings.only_class)
    particle, mode = np.nonzero(share > LEAST_SHARE)
    index = rows[particle]
    return Assigned(
        index,
        modes.rotation[index, mode],
        modes.shift[index, mode],
        modes.classes[index, mode],
        weight[index] * share[particle, mode],
    )


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


def _average(
    state: RefineState,
    found: Found,
    classes: np.ndarray,
    stack: Stack,
    sampling: Sampling,
    settings: RefineSettings,
    progress: Progress,
    told_apart: bool,
    hosts: Hosts,
    modes: PoseTable | None = None,
    strengths: particle_weights.Strengths | None = None,
) -> RefineState:
    """Average the classes, centre and measure them, make the next references."""
    n_classes, n = found.score.shape[1], len(classes)
    row, own = np.arange(n), np.maximum(classes, 0)
    half = row % 2
    group = np.where(classes < 0, -1, 2 * classes + half * settings.gold_standard)
    transfer = None if modes is None else modes.transfer(classes)
    used, weight = select(group, found.score[row, own], settings.selection, transfer)
    soft = settings.soft and told_apart and modes is not None
    if settings.only_class is not None and not soft:
        used &= classes == settings.only_class
    rows = np.flatnonzero(used)
    if soft:
        assert modes is not None, "the settings are checked"
        assigned = _softly(rows, weight, modes, state.round + 1, settings)
    else:
        pose = found.rotation[rows, own[rows]], found.shift[rows, own[rows]]
        assigned = Assigned(rows, *pose, classes[rows], weight[rows])
    if strengths is not None:
        gain = strengths.gain(stack.box, settings.apix)[assigned.indices]
        assigned = dataclasses.replace(assigned, gain=gain)
    averages = average_classes(
        stack,
        sampling,
        assigned,
        settings.symmetries,
        settings.averaging,
        settings.apix,
        batch=settings.read,
        hosts=hosts,
        progress=progress,
    )
    if settings.autocentre is not None:
        moves = _centring(averages, settings)
        averages = averages.moved(moves)
        shift = found.shift + moves[:, half].swapaxes(0, 1)
        found = dataclasses.replace(found, shift=shift.astype(np.float32))
        if modes is not None:
            shift = modes.shift + moves[modes.classes, half[:, None]]
            modes = dataclasses.replace(modes, shift=shift.astype(np.float32))
    total = np.zeros((n_classes, 2))
    np.add.at(total, (assigned.classes, half[assigned.indices]), assigned.weight)
    key = jax.random.fold_in(jax.random.key(settings.seed), 1000 * (state.round + 1))
    gold = settings.gold_standard
    measured = measure(averages, total, settings.symmetries, key, gold_standard=gold)
    if told_apart:
        references = next_references(averages, measured.fsc, total, gold_standard=gold)
    else:
        references = _consensus(averages, total, settings, key)
    empty = (total.sum(1) == 0)[None, :, None, None, None]
    references = np.where(empty, state.references, references)
    member = classes >= 0
    chosen = found.score[member, classes[member]]
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
        weight=np.where(used, weight, 0).astype(np.float32),
        maps=measured.maps,
        halves=measured.halves,
        fsc=measured.fsc,
        told_apart=told_apart,
        modes=modes,
        strength=None if strengths is None else strengths.table,
        odd_to_even=state.odd_to_even if measured.odd_to_even is None else measured.odd_to_even,
    )


def _consensus(
    averages: Averages, total: np.ndarray, settings: RefineSettings, key: jax.Array
) -> np.ndarray:
    """The average of all particles, a copy for every class, ``[h, c, n, n, n]``."""
    gold, weights = settings.gold_standard, total.sum(0, keepdims=True)
    together = averages.together(total)
    measured = measure(together, weights, settings.symmetries[:1], key, gold_standard=gold)
    one = next_references(together, measured.fsc, weights, gold_standard=gold)
    return np.repeat(one, len(total), 1)


def _centring(averages: Averages, settings: RefineSettings) -> np.ndarray:
    """Translations ``[c, 2, 3]``; halves with references of their own are centred apart."""
    assert settings.autocentre is not None
    maps = averages.halves() if settings.gold_standard else averages.merged()[:, None]
    moves = [
        [centre_shift(v, settings.apix, symmetry, settings.autocentre) for v in own]
        for own, symmetry in zip(maps, settings.symmetries)
    ]
    return np.broadcast_to(np.array(moves, np.float32), (len(maps), 2, 3)).copy()
