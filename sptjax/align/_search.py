"""Global search: low-band exhaustive scores, distinct maxima, frequency-marching refinement.

``prepare`` does what depends on the references alone; ``align`` runs over batches of
particles. References share one symmetry; the rotations searched cover one asymmetric unit.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from .. import fourier, orientations
from .._chunk import map_each
from .._types import Alignment
from ..orientations import OrientationSet
from ..resample import SliceTable, slice_table
from ..rotation import rotate
from ..score import Observations
from ..symmetry import Symmetry, within_reach
from ._coarse import best_shifts, coarse_scores, distinct_maxima
from ._plan import SearchPlan, Stage
from ._refine import Bounds, refine_pose, split_observation


class Search(eqx.Module):
    """Prepared references and grids; an argument of compiled code, never a constant in it."""

    coarse: SliceTable  # [c, m], cut to the coarse band
    fine: SliceTable  # [c, m]
    vectors: Int[Array, "k 3"]
    rotations: Float[Array, "q 3 3"]
    neighbours: Int[Array, "q m"]
    shifts: Float[Array, "t 3"]
    operators: Float[Array, "g 3 3"]
    plan: SearchPlan = eqx.field(static=True)


def stack_tables(references: Float[Array, "c z y x"], kmax: float, order: int = 1) -> SliceTable:
    """Slice tables of several references, ``real`` and ``imag`` ``[c, m]``.

    Args:
        references: maps.
        kmax: highest ``|k|`` to be sampled, Fourier pixels.
        order: of the B-spline, 1 to 3.
    """
    return eqx.filter_vmap(lambda v: slice_table(v, kmax, order))(references)


@eqx.filter_jit
def _tables(references: Array, plan: SearchPlan) -> tuple[SliceTable, SliceTable]:
    return stack_tables(references, plan.coarse_k), stack_tables(references, plan.kmax)


def prepare(
    references: Float[Array, "c z y x"],
    plan: SearchPlan,
    symmetry: Symmetry,
    grid: OrientationSet | None = None,
) -> Search:
    """Tables and grids for a set of references of one symmetry.

    Args:
        references: maps in the box of the particles, solvent at zero.
        plan: bands and spacings.
        symmetry: of all these references; identity operator first.
        grid: orientations to search; the uniform set of ``plan.delta_deg`` if not given.
    """
    coarse, fine = _tables(jnp.asarray(references, jnp.float32), plan)
    if grid is None:
        reached = within_reach(symmetry, min(plan.half_widths))
        grid = orientations.uniform(plan.delta_deg, reached)
    # equivalents along a helix differ in their shifts: only equal rotations are one candidate
    same = symmetry.operators if symmetry.helix is None else symmetry.operators[:1]
    return Search(
        coarse,
        fine,
        jnp.asarray(fourier.half_ball(plan.kmax)),
        grid.rotations,
        grid.neighbours,
        jnp.asarray(plan.shifts()),
        same,
        plan,
    )


@eqx.filter_jit
def align(search: Search, observations: Observations, *, team: int = 1) -> Alignment:
    """Best poses of every particle against every reference.

    Args:
        search: prepared references.
        observations: particles on a half ball of at least ``plan.kmax``.
        team: devices that share rotations and candidates, inside
            :func:`sptjax._team.together`.

    Returns:
        ``[n, c, m]`` poses with ``m`` the ``keep`` of the last stage, best first.
    """
    rotation, shift, value = coarse_candidates(search, observations, team=team)
    for stage in search.plan.stages:
        rotation, shift, value = refine_candidates(
            search,
            observations,
            rotation,
            shift,
            stage,
            dedupe=stage.keep > 1 or stage is not search.plan.stages[-1],
            team=team,
        )
    back = -rotate(rotation, shift)
    return Alignment(rotation, back, value)


def coarse_candidates(
    search: Search, observations: Observations, *, team: int = 1
) -> tuple[Float[Array, "n c m 3 3"], Float[Array, "n c m 3"], Float[Array, "n c m"]]:
    """Distinct maxima of the exhaustive search: rotation, particle-frame shift, score.

    Args:
        search: what :func:`prepare` made.
        observations: ``n`` whitened particles.
        team: devices that share the rotations.

    Returns:
        Rotations (particle to reference), shifts in the particle frame (voxels), scores, the best
        of ``m`` first, for every particle and reference.
    """
    plan = search.plan
    size = fourier.half_ball_size(plan.coarse_k)
    band = cut(observations, size)
    vectors = search.vectors[:size].astype(jnp.float32)
    scores = coarse_scores(
        search.coarse,
        band,
        vectors,
        search.rotations,
        search.shifts,
        box=plan.box,
        chunk=plan.chunk,
        dtype=jnp.bfloat16 if plan.half_precision else jnp.float32,
        team=team,
    )
    count = min(plan.candidates, scores.shape[-1])

    def choose(row: Array) -> tuple[Array, Array]:
        found = distinct_maxima(row, search.neighbours, count)
        return search.rotations[found], row[found]

    rotation, value = lax.map(choose, scores.reshape(-1, scores.shape[-1]), batch_size=64)
    rotation = rotation.reshape(*scores.shape[:2], count, 3, 3)
    shift = best_shifts(search.coarse, band, vectors, rotation, search.shifts, box=plan.box)
    return rotation, shift, value.reshape(*scores.shape[:2], count)


def refine_candidates(
    search: Search,
    observations: Observations,
    rotation: Float[Array, "n c m 3 3"],
    shift: Float[Array, "n c m 3"],
    stage: Stage,
    *,
    dedupe: bool = True,
    team: int = 1,
) -> tuple[Float[Array, "n c k 3 3"], Float[Array, "n c k 3"], Float[Array, "n c k"]]:
    """Refine all candidates in one band and keep the best distinct ones.

    Candidates that leave the cube of shifts rank behind all others.

    Args:
        search: what :func:`prepare` made.
        observations: ``n`` whitened particles.
        rotation: of the candidates, particle to reference.
        shift: of the candidates, particle frame, voxels.
        stage: band, steps and number of candidates to keep.
        dedupe: of candidates that arrive at one pose keep one.
        team: devices that share the candidates.

    Returns:
        As the input, the best ``k`` first.
    """
    plan = search.plan
    rotation, shift, value = refine_all(
        search.fine,
        observations,
        search.vectors,
        rotation,
        shift,
        box=plan.box,
        kmax=stage.kmax,
        steps=stage.steps,
        free=plan.free,
        team=team,
    )
    limit = np.asarray(plan.half_widths, np.float32) + np.float32(plan.shift_step_vox / 2)
    inside = (jnp.abs(shift) <= limit.reshape(1, 1, 1, 3)).all(-1)
    rank = jnp.where(inside, value, value - 1e3)
    keep = min(stage.keep, rank.shape[2])
    best = best_distinct(search, rotation, rank, keep) if dedupe else lax.top_k(rank, keep)[1]
    return take(rotation, best), take(shift, best), take(value, best)


def refine_all(
    tables: SliceTable,
    observations: Observations,
    vectors: Int[Array, "k 3"],
    rotation: Float[Array, "n c m 3 3"],
    shift: Float[Array, "n c m 3"],
    *,
    box: int,
    kmax: int,
    steps: int,
    free: tuple[bool, ...] | None = None,
    bounds: Bounds | None = None,
    team: int = 1,
) -> tuple[Float[Array, "n c m 3 3"], Float[Array, "n c m 3"], Float[Array, "n c m"]]:
    """Climb from every pose in one band: rotations, particle-frame shifts and scores.

    Args:
        tables: stacked references, ``real`` and ``imag`` ``[c, m]``.
        observations: particles on a half ball of at least ``kmax``.
        vectors: frequencies of at least that ball.
        rotation: particle to reference.
        shift: ``-R^T t``, voxels.
        box: edge of the particle box.
        kmax: the band.
        steps: see :func:`refine_pose`; 0 only scores.
        free: likewise.
        bounds: likewise, one centre for every pose.
        team: devices that share the poses.
    """
    n, c, m = rotation.shape[:3]
    size = fourier.half_ball_size(kmax)
    data, weight = split_observation(cut(observations, size))
    wave = vectors[:size].astype(jnp.float32).T
    owner = jnp.repeat(jnp.arange(n), m)

    def one_reference(args: tuple) -> tuple:
        real, imag, *poses = args
        table = SliceTable(real, imag, tables.half, tables.pad, tables.order)

        def one(candidate: tuple) -> tuple:
            i, turn, move, *centre = candidate
            limits = None
            if bounds is not None:
                limits = Bounds(centre[0], centre[1], bounds.angle, bounds.reach_vox)
            return refine_pose(
                table, data[i], weight[i], wave, turn, move,
                box=box, steps=steps, free=free, bounds=limits,
            )  # fmt: skip

        return map_each(one, (owner, *poses), team)

    per_reference = lambda x: jnp.moveaxis(x, 1, 0).reshape(c, n * m, *x.shape[3:])  # noqa: E731
    poses = [rotation, shift]
    if bounds is not None:
        poses += [bounds.rotation, bounds.shift]
    out = lax.map(one_reference, (tables.real, tables.imag, *map(per_reference, poses)))
    turns, moves, values = (jnp.moveaxis(x.reshape(c, n, m, *x.shape[2:]), 0, 1) for x in out)
    return turns, moves, values


def take(values: Array, index: Int[Array, "n c k"]) -> Array:
    """Entries ``[n, c, k, ...]`` of a list of candidates ``[n, c, m, ...]``."""
    return jnp.take_along_axis(values, index.reshape(*index.shape, *(1,) * (values.ndim - 3)), 2)


def best_distinct(
    search: Search, rotation: Float[Array, "n c m 3 3"], rank: Float[Array, "n c m"], keep: int
) -> Int[Array, "n c keep"]:
    """The best candidates of every particle and reference, copies of better ones last."""
    if rank.shape[2] == 1:
        return jnp.zeros(rank.shape, jnp.int32)
    limit = jnp.cos(jnp.deg2rad(search.plan.distinct_deg))
    pick = lambda r, v: _distinct(r, v, search.operators, limit, keep)  # noqa: E731
    return jax.vmap(jax.vmap(pick))(rotation, rank)


def _distinct(
    rotation: Float[Array, "m 3 3"],
    rank: Float[Array, " m"],
    operators: Float[Array, "g 3 3"],
    cos_limit: Float[Array, ""],
    keep: int,
) -> Int[Array, " keep"]:
    """Indices of the best candidates, those equivalent to a better one last."""
    order, copy = ranked(rotation, rank, operators, cos_limit)
    return order[lax.top_k(jnp.where(copy, rank[order] - 1e6, rank[order]), keep)[1]]


def ranked(
    rotation: Float[Array, "m 3 3"],
    rank: Float[Array, " m"],
    operators: Float[Array, "g 3 3"],
    cos_limit: Float[Array, ""],
) -> tuple[Int[Array, " m"], Bool[Array, " m"]]:
    """Candidates from best to worst, and which of them are near or equivalent to a better one."""
    order = jnp.argsort(-rank)
    turned = rotation[order]

    def nearest(so_far: Array, operator: Array) -> tuple[Array, None]:
        trace = jnp.einsum("aik,bik->ab", jnp.einsum("ij,ajk->aik", operator, turned), turned)
        return jnp.maximum(so_far, trace), None

    lowest = jnp.full((len(rank), len(rank)), -1.0, turned.dtype)
    near = lax.scan(nearest, lowest, operators)[0] > 1 + 2 * cos_limit
    return order, (near & jnp.tril(jnp.ones(near.shape, bool), -1)).any(-1)


def cut(observations: Observations, size: int) -> Observations:
    """The first ``size`` frequencies of the observations (a lower band)."""
    return Observations(observations.data[:, :size], observations.weight[:, :size])


def reference_spectrum(references: np.ndarray | Array) -> np.ndarray:
    """Mean ``|F|^2`` per shell over the references, ``[n // 2 + 1]``."""
    maps = jnp.asarray(references, jnp.float32)
    power = jax.vmap(lambda v: fourier.shell_mean(jnp.abs(fourier.rfftn(v)) ** 2, v.shape[-1]))
    return np.asarray(power(maps).mean(0))
