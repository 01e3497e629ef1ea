"""Alignment of many particles: plan, prepare once, stream batches, results on the host."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .. import fourier, orientations
from .._chunk import batch_size, padded_batches
from ..particles import Particles
from ..rotation import rotate, transpose
from ..score import Comparator
from ..symmetry import Symmetry, within_reach
from ._aligners import Aligner, Refine3D, RotateTranslate3D, RotateTranslate3DTree
from ._grid import grid_search
from ._plan import DETECTABLE, SearchPlan, Stage, information, particle_radius, plan_search
from ._search import Search, align, prepare, reference_spectrum, refine_candidates, stack_tables

Progress = Callable[[Iterable, str], Iterable]
BUDGET_BYTES = 768 * 2**20  # working memory of one batch
MOST_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class AlignmentSettings:
    """What the alignment options resolve to."""

    aligner: Aligner | None = RotateTranslate3DTree()
    fine: Refine3D | None = None
    comparator: Comparator = Comparator.MATCHED
    search_vox: int | None = None  # half width of the cube of shifts; the aligner's if None
    search_fine_vox: float = 2.0  # how far the fine aligner may move a shift
    peaks: int | None = None  # coarse poses to refine; chosen from the data if None


@dataclasses.dataclass
class Found:
    """Poses of ``n`` particles against ``c`` references (host arrays, as in ``Pose``)."""

    rotation: np.ndarray  # [n, c, 3, 3]
    shift: np.ndarray  # [n, c, 3], voxels
    score: np.ndarray  # [n, c], larger is better

    @classmethod
    def empty(cls, n: int, c: int) -> "Found":
        """Identity poses, score zero."""
        turn = np.broadcast_to(np.eye(3, dtype=np.float32), (n, c, 3, 3)).copy()
        return cls(turn, np.zeros((n, c, 3), np.float32), np.zeros((n, c), np.float32))


def align_particles(
    particles: Particles,
    indices: np.ndarray,
    references: np.ndarray | Array,
    symmetries: tuple[Symmetry, ...],
    settings: AlignmentSettings,
    *,
    expected_score: float,
    start: Found | None = None,
    progress: Progress = lambda items, _: items,
) -> Found:
    """Align particles to every reference.

    Args:
        particles: all particles.
        indices: which of them to align.
        references: maps ``[c, n, n, n]``, solvent at zero.
        symmetries: of every reference.
        settings: aligners and comparator.
        expected_score: of a particle at its right pose (see :func:`plan_search`).
        start: poses to start from, where no aligner searches (``aligner=None``).
        progress: wraps the iteration over batches.

    Returns:
        One pose per particle (rows follow ``indices``) and reference.
    """
    found = Found.empty(len(indices), len(references))
    names = [s.name for s in symmetries]
    for name, members in itertools.groupby(
        sorted(range(len(names)), key=names.__getitem__), key=names.__getitem__
    ):
        columns = np.array(list(members))
        symmetry = symmetries[names.index(name)]
        maps = jnp.asarray(np.asarray(references)[columns], jnp.float32)
        run, plan = _runner(particles, maps, symmetry, settings, expected_score)
        full = isinstance(settings.aligner, RotateTranslate3D) and not settings.aligner.refine
        band = fourier.half_ball_size(particles.box // 2 - 2 if full else plan.kmax)
        title = "aligning" if len(columns) == len(names) else f"aligning {name}"
        size = min(_batch(plan, len(columns)), 1 << max(len(indices) - 1, 0).bit_length())
        batches = list(padded_batches(np.arange(len(indices)), size))
        for rows, real in progress(batches, title):
            observed = particles.observations(indices[rows], settings.comparator, band)
            begin = None if start is None else _start(start, rows, columns)
            rotation, shift, score = (np.asarray(x)[:real] for x in run(observed, begin))
            at = np.ix_(rows[:real], columns)
            found.rotation[at], found.shift[at], found.score[at] = rotation, shift, score
    return found


def _start(start: Found, rows: np.ndarray, columns: np.ndarray) -> tuple[Array, Array]:
    at = np.ix_(rows, columns)
    return jnp.asarray(start.rotation[at]), jnp.asarray(start.shift[at])


def make_plan(
    particles: Particles,
    references: Array,
    settings: AlignmentSettings,
    expected_score: float,
    group_order: float = 1,
) -> SearchPlan:
    """Plan of the search for these references, from the spectral information."""
    box, kmax = particles.box, int(np.linalg.norm(particles.vectors[-1]) + 1e-6)
    weight = particles.mean_weight(settings.comparator)
    info = information(reference_spectrum(references), weight, kmax)
    aligner = settings.aligner
    radius = particle_radius(np.asarray(references).mean(0))
    if settings.comparator is not Comparator.MATCHED:
        expected_score = DETECTABLE / np.sqrt(0.8)
    plan = plan_search(
        info,
        box=box,
        radius_vox=radius,
        max_shift_vox=_max_shift(settings, box),
        expected_score=expected_score,
        delta_deg=aligner.delta if isinstance(aligner, RotateTranslate3D) else None,
        candidates=settings.peaks,
        group_order=group_order,
    )
    if isinstance(aligner, RotateTranslate3D) and aligner.refine:
        # the band that this spacing resolves, by the rule that chooses spacings from bands
        resolved = (
            2 * 1.2 * box / (2 * np.pi * radius * np.radians(max(aligner.delta, aligner.dphi)))
        )
        plan = dataclasses.replace(plan, coarse_k=int(np.clip(resolved, 4, plan.coarse_k)))
    return plan


def _max_shift(settings: AlignmentSettings, box: int) -> float:
    aligner = settings.aligner
    if settings.search_vox is not None:
        return float(settings.search_vox)
    own = aligner.search if isinstance(aligner, RotateTranslate3D) else None
    if isinstance(aligner, RotateTranslate3DTree):
        own = aligner.maxshift
    return float(box // 4 if own is None else own)


def _batch(plan: SearchPlan, references: int) -> int:
    shifts = len(plan.shifts())
    rows = shifts * fourier.half_ball_size(plan.coarse_k) * 20
    each = rows + shifts * plan.chunk * 4 + references * 4 * 3 * 20000
    return batch_size(each, BUDGET_BYTES, MOST_AT_ONCE)


def _runner(
    particles: Particles,
    maps: Array,
    symmetry: Symmetry,
    settings: AlignmentSettings,
    expected_score: float,
) -> tuple[Callable, SearchPlan]:
    """A function from observations (and start poses) to rotation, shift and score ``[n, c]``."""
    symmetry = within_reach(symmetry, _max_shift(settings, particles.box))
    plan = make_plan(particles, maps, settings, expected_score, symmetry.redundancy)
    aligner = settings.aligner
    if aligner is None:
        search = prepare(maps, plan, symmetry, orientations.uniform(60.0, symmetry))
        steps = 0 if settings.fine is None else settings.fine.maxiter
        stage = Stage(plan.kmax, steps, 1)
        return lambda observed, begin: _local(search, observed, begin, stage, None), plan
    if isinstance(aligner, RotateTranslate3D):
        grid = orientations.eman(aligner.delta, aligner.dphi, symmetry)
        if not aligner.refine:
            return _exhaustive(plan, maps, symmetry, settings, grid), plan
        search = prepare(maps, plan, symmetry, grid)
    else:
        search = prepare(maps, plan, symmetry)

    def run(observed, begin):
        del begin
        result = align(search, observed)
        return result.rotation[:, :, 0], result.shift[:, :, 0], result.score[:, :, 0]

    return run, plan


def _exhaustive(
    plan: SearchPlan,
    maps: Array,
    symmetry: Symmetry,
    settings: AlignmentSettings,
    grid: orientations.OrientationSet,
) -> Callable:
    """The full-band grid search, followed by the fine aligner if there is one."""
    kmax = plan.box // 2 - 2
    tables = eqx.filter_jit(stack_tables)(maps, kmax)
    vectors = jnp.asarray(fourier.half_ball(kmax))
    fine = settings.fine
    keep = (settings.peaks or 1) if fine is not None else 1
    search = prepare(maps, plan, symmetry, grid) if fine is not None else None

    def run(observed, begin):
        del begin
        coarse = grid_search(
            tables,
            observed,
            vectors,
            grid.rotations,
            box=plan.box,
            max_shift_vox=int(plan.max_shift_vox),
            keep=keep,
            neighbours=grid.neighbours,
        )
        if search is None or fine is None:
            return coarse.rotation[:, :, 0], coarse.shift[:, :, 0], coarse.score[:, :, 0]
        stage = Stage(plan.kmax, fine.maxiter, 1)
        reach = fine.maxshift or settings.search_fine_vox
        return _local(search, observed, (coarse.rotation, coarse.shift), stage, reach)

    return run


@eqx.filter_jit
def _local(
    search: Search,
    observed,
    begin: tuple[Array, Array],
    stage: Stage,
    reach_vox: float | None,
) -> tuple[Array, Array, Array]:
    """Local refinement from poses ``[n, c(, m)]``; the best of the ``m``."""
    rotation, shift = begin
    if rotation.ndim == 4:
        rotation, shift = rotation[:, :, None], shift[:, :, None]
    position = -rotate(transpose(rotation), shift)
    turn, position, score = refine_candidates(
        search, observed, rotation, position, stage, dedupe=False, reach_vox=reach_vox
    )
    back = -rotate(turn, position)
    return turn[:, :, 0], back[:, :, 0], score[:, :, 0]
