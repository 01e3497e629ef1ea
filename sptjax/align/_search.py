"""Global search: low-band exhaustive scores, distinct maxima, frequency-marching refinement.

``prepare`` does what depends on the references alone; ``align`` runs over batches of
particles. References share one symmetry; the rotations searched cover one asymmetric unit.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from .. import fourier, orientations
from .._types import Alignment
from ..orientations import OrientationSet
from ..resample import SliceTable, slice_table
from ..rotation import rotate
from ..score import Observations
from ..symmetry import Symmetry, within_reach
from ._coarse import best_shifts, coarse_scores, distinct_maxima
from ._plan import SearchPlan, Stage
from ._refine import refine_pose, split_observation


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
    """Slice tables of several references, ``real`` and ``imag`` ``[c, m]``."""
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
        reached = within_reach(symmetry, plan.max_shift_vox)
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
def align(search: Search, observations: Observations) -> Alignment:
    """Best poses of every particle against every reference.

    Args:
        search: prepared references.
        observations: particles on a half ball of at least ``plan.kmax``.

    Returns:
        ``[n, c, m]`` poses with ``m`` the ``keep`` of the last stage, best first.
    """
    rotation, shift, value = coarse_candidates(search, observations)
    for stage in search.plan.stages:
        rotation, shift, value = refine_candidates(
            search, observations, rotation, shift, stage, dedupe=stage is not search.plan.stages[-1]
        )
    back = -rotate(rotation, shift)
    return Alignment(rotation, back, value)


def coarse_candidates(
    search: Search, observations: Observations
) -> tuple[Float[Array, "n c m 3 3"], Float[Array, "n c m 3"], Float[Array, "n c m"]]:
    """Distinct maxima of the exhaustive search: rotation, particle-frame shift, score."""
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
    reach_vox: float | None = None,
) -> tuple[Float[Array, "n c k 3 3"], Float[Array, "n c k 3"], Float[Array, "n c k"]]:
    """Refine all candidates in one band and keep the best distinct ones.

    Candidates that leave the cube of shifts, or move further than ``reach_vox`` from their
    start, rank behind all others.
    """
    plan = search.plan
    n, c, m = rotation.shape[:3]
    size = fourier.half_ball_size(stage.kmax)
    data, weight = split_observation(cut(observations, size))
    vectors = search.vectors[:size].astype(jnp.float32).T
    owner = jnp.repeat(jnp.arange(n), m)

    def one_reference(args: tuple) -> tuple:
        real, imag, turns, moves = args
        fine = search.fine
        table = SliceTable(real, imag, fine.half, fine.pad, fine.order)

        def one(candidate: tuple) -> tuple:
            i, turn, move = candidate
            return refine_pose(
                table, data[i], weight[i], vectors, turn, move, box=plan.box, steps=stage.steps
            )

        return lax.map(one, (owner, turns, moves))

    per_reference = lambda x: jnp.moveaxis(x, 1, 0).reshape(c, n * m, *x.shape[3:])  # noqa: E731
    turns, moves, values = lax.map(
        one_reference,
        (search.fine.real, search.fine.imag, per_reference(rotation), per_reference(shift)),
    )
    back = lambda x: jnp.moveaxis(x.reshape(c, n, m, *x.shape[2:]), 0, 1)  # noqa: E731
    start = shift
    rotation, shift, value = back(turns), back(moves), back(values)
    inside = (jnp.abs(shift) <= plan.max_shift_vox + plan.shift_step_vox / 2).all(-1)
    if reach_vox is not None:
        inside &= (jnp.abs(shift - start) <= reach_vox).all(-1)
    rank = jnp.where(inside, value, value - 1e3)
    keep = min(stage.keep, m)
    if dedupe and m > 1:
        limit = jnp.cos(jnp.deg2rad(plan.distinct_deg))
        pick = lambda r, v: _distinct(r, v, search.operators, limit, keep)  # noqa: E731
        best = jax.vmap(jax.vmap(pick))(rotation, rank)
    else:
        best = lax.top_k(rank, keep)[1]
    take = lambda x: jnp.take_along_axis(  # noqa: E731
        x, best.reshape(*best.shape, *(1,) * (x.ndim - 3)), 2
    )
    return take(rotation), take(shift), take(value)


def _distinct(
    rotation: Float[Array, "m 3 3"],
    rank: Float[Array, " m"],
    operators: Float[Array, "g 3 3"],
    cos_limit: Float[Array, ""],
    keep: int,
) -> Int[Array, " keep"]:
    """Indices of the best candidates, those equivalent to a better one last."""
    order = jnp.argsort(-rank)
    turned = rotation[order]
    trace = jnp.einsum("gij,ajk,bik->abg", operators, turned, turned).max(-1)
    near = trace > 1 + 2 * cos_limit
    copy = (near & jnp.tril(jnp.ones(near.shape, bool), -1)).any(-1)
    return order[lax.top_k(jnp.where(copy, rank[order] - 1e6, rank[order]), keep)[1]]


def cut(observations: Observations, size: int) -> Observations:
    """The first ``size`` frequencies of the observations (a lower band)."""
    return Observations(observations.data[:, :size], observations.weight[:, :size])


def reference_spectrum(references: np.ndarray | Array) -> np.ndarray:
    """Mean ``|F|^2`` per shell over the references, ``[n // 2 + 1]``."""
    maps = jnp.asarray(references, jnp.float32)
    power = jax.vmap(lambda v: fourier.shell_mean(jnp.abs(fourier.rfftn(v)) ** 2, v.shape[-1]))
    return np.asarray(power(maps).mean(0))
