"""What every aligner does with a batch: the coarse searches and the refinements around poses."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import fourier, orientations
from .._team import together
from .._types import Alignment, Pose
from ..rotation import multiply, rotate, transpose
from ..symmetry import within_reach
from ._aligners import (
    GRIDS,
    FineAligner,
    Refine3D,
    Refine3DGrid,
    RotateSymmetry3D,
    RotateTranslate3DTree,
    Shifts,
    cube,
    own_shifts,
)
from ._drive import Work
from ._grid import grid_search, shift_search
from ._group import Group, max_shift
from ._local import align_near, best_around
from ._plan import SearchPlan, free_parameters, half_widths
from ._refine import Bounds
from ._search import align, prepare, refine_all, stack_tables, take
from ._symmetry_align import best_symmetry_copy

POLISH_STEPS = 9
APART_STEPS = 1.5  # grid steps between poses that count as distinct


def coarse_work(group: Group, keep: int, turn: Float[Array, "3 3"] | None) -> Work:
    """The coarse stage of the settings.

    Args:
        group: references and particles.
        keep: distinct poses to return.
        turn: rotation that multiplies the global grid from the right.
    """
    aligner = group.settings.aligner
    if group.settings.translate_only:
        return _shifts_only(group)
    if isinstance(aligner, RotateSymmetry3D):
        return _copies(group, keep)
    if isinstance(aligner, RotateTranslate3DTree) and aligner.maxang is not None:
        return _near(group, aligner, max_shift(group.settings, group.box), keep)
    if isinstance(aligner, GRIDS) and not aligner.refine:
        return _exhaustive(group, keep, turn)
    return _global(group, keep, turn)


def _listed(group: Group, keep: int) -> int:
    """Poses that the search has to leave, so that ``keep`` distinct ones are among them."""
    return group.listed if keep == 1 else max(group.listed, 2 * keep)


def _global(group: Group, keep: int, turn: Array | None) -> Work:
    """Low-band products, then polished candidates."""
    symmetry = within_reach(group.symmetry, group.pitch_reach())
    grid, step = None, None
    if isinstance(group.aligner, GRIDS):
        grid = group.aligner.grid(symmetry)
        step = group.aligner.step_deg(grid)
    plan = group.plan(keep=_listed(group, keep), delta_deg=step)
    search = prepare(group.maps, plan, symmetry, grid)
    if turn is not None:
        turned = multiply(search.rotations, turn)
        search = eqx.tree_at(lambda s: s.rotations, search, turned)
    search_all = together(align, group.team)

    def run(indices: np.ndarray, start: Alignment | None) -> Alignment:
        del start
        found = search_all(search, group.observe(indices, plan.kmax))
        return group.chosen(indices, found, keep, APART_STEPS * plan.delta_deg)

    return run, plan


def _exhaustive(group: Group, keep: int, turn: Array | None) -> Work:
    """Every grid rotation and every whole-voxel shift, in the full band."""
    assert isinstance(group.aligner, GRIDS)
    symmetry = within_reach(group.symmetry, group.pitch_reach())
    grid = group.aligner.grid(symmetry)
    step, kmax = group.aligner.step_deg(grid), exhaustive_k(group)
    plan, listed = group.plan(delta_deg=step), _listed(group, keep)
    tables = eqx.filter_jit(stack_tables)(group.maps, kmax)
    vectors = jnp.asarray(fourier.half_ball(kmax))
    rotations = grid.rotations if turn is None else multiply(grid.rotations, turn)
    x, y, z = (int(half) for half in plan.half_widths)
    search_all = together(
        grid_search, group.team, box=plan.box, max_shift_vox=(x, y, z), keep=listed
    )

    def run(indices: np.ndarray, start: Alignment | None) -> Alignment:
        del start
        found = search_all(
            tables,
            group.observe(indices, kmax),
            vectors,
            rotations,
            neighbours=grid.neighbours if listed > 1 else None,
        )
        return group.chosen(indices, found, keep, APART_STEPS * step)

    return run, plan


def exhaustive_k(group: Group) -> int:
    """The full band."""
    return min(group.box // 2 - 2, group.last_k)


def _shifts_only(group: Group) -> Work:
    """Whole-voxel shifts at one rotation, then a polish of the shift."""
    plan = group.plan()
    tables = eqx.filter_jit(stack_tables)(group.maps, plan.kmax)
    vectors = jnp.asarray(fourier.half_ball(plan.kmax))
    widths = plan.half_widths
    x, y, z = (int(half) for half in widths)

    def run(indices: np.ndarray, start: Alignment | None) -> Alignment:
        observed = group.observe(indices, plan.kmax)
        shape = (len(indices), len(group.maps), 3, 3)
        turn = jnp.broadcast_to(jnp.eye(3), shape) if start is None else start.rotation[:, :, 0]
        found = shift_search(tables, observed, vectors, turn, box=plan.box, max_shift_vox=(x, y, z))
        return group.scored(indices, _polish_shifts(tables, observed, vectors, found, plan))

    return run, plan


@eqx.filter_jit
def _polish_shifts(tables, observed, vectors, found: Alignment, plan: SearchPlan) -> Alignment:
    position = -rotate(transpose(found.rotation), found.shift)
    reach = tuple(0.5 if half else 0.0 for half in plan.half_widths)
    bounds = Bounds.around(found.rotation, position, 180.0, reach)
    turn, place, score = refine_all(
        tables, observed, vectors, found.rotation, position, box=plan.box, kmax=plan.kmax,
        steps=POLISH_STEPS, free=free_parameters(plan.half_widths, turns=False), bounds=bounds,
    )  # fmt: skip
    return Alignment(turn, -rotate(turn, place), score)


def _copies(group: Group, keep: int) -> Work:
    """The equivalents of the start poses."""
    plan = group.plan()
    tables = eqx.filter_jit(stack_tables)(group.maps, plan.kmax)
    vectors = jnp.asarray(fourier.half_ball(plan.kmax), jnp.float32)

    def run(indices: np.ndarray, start: Alignment | None) -> Alignment:
        assert start is not None, "the caller gives start poses"
        found = best_symmetry_copy(
            tables,
            group.observe(indices, plan.kmax),
            vectors,
            Pose(start.rotation[:, :, 0], start.shift[:, :, 0]),
            group.symmetry,
            box=plan.box,
            keep=max(keep, group.listed),
        )
        found = group.scored(indices, found)
        order = jnp.argsort(-found.score, axis=-1)[:, :, :keep]
        return Alignment(*(take(x, order) for x in (found.rotation, found.shift, found.score)))

    return run, plan


def _near(
    group: Group,
    aligner: RotateTranslate3DTree,
    reach: float | Shifts,
    keep: int,
) -> Work:
    """The tree around start poses."""
    angle = aligner.maxang
    assert angle is not None, "the settings are checked"
    plan = group.plan(keep=_listed(group, keep), shifts=half_widths(reach))
    around = orientations.local(angle, min(plan.delta_deg, angle))
    search = prepare(group.maps, plan, group.symmetry, around)
    search_near = together(align_near, group.team, max_angle_deg=angle)

    def run(indices: np.ndarray, start: Alignment | None) -> Alignment:
        assert start is not None, "the caller gives start poses"
        observed = group.observe(indices, plan.kmax)
        found = search_near(search, observed, start)
        return group.chosen(indices, found, keep, APART_STEPS * plan.delta_deg, start)

    return run, plan


def fine_work(group: Group, aligner: FineAligner | None, kmax: int | None = None) -> Work:
    """Refinement around the start poses; the best of them ``[n, c, 1]``.

    Never worse than the best start, by the score that is reported.

    Args:
        group: references and particles.
        aligner: how to refine; None only scores.
        kmax: the band; that of the plan if not given.
    """
    settings = group.settings
    reach = own_shifts(aligner) or cube(settings.search_fine_vox)
    if isinstance(aligner, RotateTranslate3DTree) and not settings.translate_only:
        return _near(group, aligner, reach, 1)
    plan = group.plan()
    band = kmax or plan.kmax
    tables = eqx.filter_jit(stack_tables)(group.maps, band)
    vectors = jnp.asarray(fourier.half_ball(band))
    around = _around(aligner, settings.translate_only, reach)

    def run(indices: np.ndarray, start: Alignment | None) -> Alignment:
        assert start is not None, "the caller gives start poses"
        found = _refine_around(
            tables, group.observe(indices, band), vectors, start, *around, plan.box, band
        )
        return group.chosen(indices, found, 1, 0.0, start)

    return run, plan


def _around(
    aligner: FineAligner | None, translate_only: bool, reach: Shifts
) -> tuple[tuple[Array, Array] | None, tuple]:
    """Grid around the starts, if there is one; steps, free parameters, bounds of the polish."""
    free = free_parameters(reach, turns=not translate_only)
    if not isinstance(aligner, Refine3DGrid):
        steps = aligner.maxiter if isinstance(aligner, Refine3D) else 0
        return None, (steps, free, 180.0, reach)
    x, y, z = (np.arange(-int(half), int(half) + 1) for half in reach)
    shifts = np.stack(np.meshgrid(x, y, z, indexing="ij"), -1).reshape(-1, 3)
    turns = jnp.eye(3)[None]
    if not translate_only:
        turns = orientations.local(aligner.range, min(aligner.delta, aligner.range)).rotations
    wide = tuple(half + 0.5 if half else 0.0 for half in reach)
    steps = POLISH_STEPS if aligner.refine else 0
    return (turns, jnp.asarray(shifts, jnp.float32)), (steps, free, aligner.range, wide)


@eqx.filter_jit
def _refine_around(tables, observed, vectors, start: Alignment, grid, polish, box: int, kmax: int):
    steps, free, range_deg, reach = polish
    position = -rotate(transpose(start.rotation), start.shift)
    turn, place = start.rotation, position
    if grid is not None:
        turn, place = best_around(tables, observed, vectors, turn, place, *grid, box=box)
    turn, place, score = refine_all(
        tables, observed, vectors, turn, place, box=box, kmax=kmax, steps=steps, free=free,
        bounds=Bounds.around(start.rotation, position, range_deg, reach),
    )  # fmt: skip
    return Alignment(turn, -rotate(turn, place), score)
