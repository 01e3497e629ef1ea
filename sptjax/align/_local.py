"""Local search: a grid of rotations and shifts around given poses.

Rows are shifts, columns are rotations turned from the start by the entries of one set; both are
the products of :mod:`._coarse`, for one particle at a time, since every start has rotations of
its own.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from .. import fourier
from .._chunk import map_chunked
from .._types import Alignment
from ..resample import SliceTable, rotated_axes, sample_axes
from ..rotation import multiply, rotate, transpose
from ..score import TINY, Observations
from ._coarse import distinct_maxima, dot, phased_rows
from ._refine import Bounds
from ._search import Search, best_distinct, cut, refine_all, take

TURNS = 64  # rotations in a product
SHIFTS = 512  # shifts in a product
PER_START = 8  # candidates of a coarse local search


def local_scores(
    tables: SliceTable,
    observations: Observations,
    vectors: Float[Array, "k 3"],
    rotation: Float[Array, "n c m 3 3"],
    position: Float[Array, "n c m 3"],
    turns: Float[Array, "q 3 3"],
    shifts: Float[Array, "t 3"],
    *,
    box: int,
    team: int = 1,
) -> tuple[Float[Array, "n c m q"], Int[Array, "n c m q"]]:
    """Best score over the shifts for every turn of every start, and the index of that shift.

    Args:
        tables: stacked references, ``real`` and ``imag`` ``[c, m]``.
        observations: particles, cut to the band.
        vectors: the band, (kx, ky, kz).
        rotation: starts, particle to reference.
        position: of the starts, ``-R^T t`` in voxels.
        turns: rotations ``T``; ``T R`` is scored.
        shifts: added to the position.
        box: edge of the particle box.
        team: devices that share the turns, inside :func:`sptjax._team.together`.
    """
    axes = vectors.T
    n, c, m = rotation.shape[:3]
    weight = jnp.broadcast_to(observations.weight, observations.data.shape)
    owner = jnp.repeat(jnp.arange(n), m)
    size = min(SHIFTS, len(shifts))
    rows = np.minimum(np.arange(-(-len(shifts) // size) * size), len(shifts) - 1).reshape(-1, size)

    def one_reference(args: tuple) -> tuple[Array, Array]:
        real, imag, starts, places = args
        table = SliceTable(real, imag, tables.half, tables.pad, tables.order)

        def one_start(args: tuple) -> tuple[Array, Array]:
            i, start, place = args
            seen = Observations(observations.data[i][None], weight[i][None])
            power = seen.weight**2

            def some_shifts(index: Array) -> tuple[Array, Array]:
                moved = phased_rows(seen, vectors, place[None] + shifts[index], box)[0]

                def some_turns(some: Array) -> tuple[Array, Array]:
                    slices = jax.vmap(lambda r: sample_axes(table, rotated_axes(axes, r)))(some)
                    columns = jnp.concatenate(slices, -1)
                    norm = dot(power, slices[0] ** 2 + slices[1] ** 2)[0]
                    product = dot(moved, columns)
                    best = product.max(0) * (jnp.sqrt(2.0) * lax.rsqrt(norm + TINY))
                    return best, index[product.argmax(0)]

                return map_chunked(some_turns, multiply(turns, start), TURNS, team)

            best, which = lax.map(some_shifts, jnp.asarray(rows))
            top = best.argmax(0)[None]
            pick = lambda x: jnp.take_along_axis(x, top, 0)[0]  # noqa: E731
            return pick(best), pick(which)

        return lax.map(one_start, (owner, starts, places))

    flat = [jnp.swapaxes(x, 0, 1).reshape(c, n * m, *x.shape[3:]) for x in (rotation, position)]
    found = lax.map(one_reference, (tables.real, tables.imag, *flat))
    score, which = (jnp.swapaxes(x.reshape(c, n, m, -1), 0, 1) for x in found)
    return score, which


def best_around(
    tables: SliceTable,
    observations: Observations,
    vectors: Int[Array, "k 3"],
    rotation: Float[Array, "n c m 3 3"],
    position: Float[Array, "n c m 3"],
    turns: Float[Array, "q 3 3"],
    shifts: Float[Array, "t 3"],
    *,
    box: int,
    team: int = 1,
) -> tuple[Float[Array, "n c m 3 3"], Float[Array, "n c m 3"]]:
    """Rotation and position of the best pose of a grid around every start.

    Never worse than the start if ``turns`` holds the identity and ``shifts`` zero. Arguments as
    :func:`local_scores`.
    """
    score, which = local_scores(
        tables,
        observations,
        vectors.astype(jnp.float32),
        rotation,
        position,
        turns,
        shifts,
        box=box,
        team=team,
    )
    best = score.argmax(-1)
    move = jnp.take_along_axis(which, best[..., None], -1)[..., 0]
    return multiply(turns[best], rotation), position + shifts[move]


@eqx.filter_jit
def align_near(
    search: Search,
    observations: Observations,
    start: Alignment,
    *,
    max_angle_deg: float,
    team: int = 1,
) -> Alignment:
    """Search around starts, from the lowest band to the highest (``search`` has a local grid).

    Args:
        search: prepared references; its rotations are turns from the start.
        observations: particles on a half ball of at least ``plan.kmax``.
        start: poses ``[n, c, m]``.
        max_angle_deg: how far a pose may turn.
        team: devices that share turns and candidates, inside :func:`sptjax._team.together`.

    Returns:
        ``[n, c, p]`` poses with the starts, refined in the last band, among them.
    """
    plan = search.plan
    n, c, m = start.score.shape
    size = fourier.half_ball_size(plan.coarse_k)
    wave = search.vectors[:size].astype(jnp.float32)
    origin = -rotate(transpose(start.rotation), start.shift)
    score, which = local_scores(
        search.coarse, cut(observations, size), wave, start.rotation, origin,
        search.rotations, search.shifts, box=plan.box, team=team,
    )  # fmt: skip
    count = min(PER_START, score.shape[-1])
    pick = lambda row: distinct_maxima(row, search.neighbours, count)  # noqa: E731
    best = lax.map(pick, score.reshape(n * c * m, -1)).reshape(n, c, m, count)
    turn = multiply(search.rotations[best], start.rotation[:, :, :, None])
    move = search.shifts[jnp.take_along_axis(which, best, -1)]
    spread = lambda x: jnp.repeat(x, count, 2)  # noqa: E731
    centre = [spread(start.rotation), spread(origin)]
    joined = lambda x: x.reshape(n, c, m * count, *x.shape[4:])  # noqa: E731
    pose = [joined(turn), joined(origin[:, :, :, None] + move)]
    reach = tuple(half + plan.shift_step_vox / 2 if half else 0.0 for half in plan.half_widths)
    value = start.score
    for stage in plan.stages:
        if stage is plan.stages[-1]:
            pose = [jnp.concatenate(x, 2) for x in zip(pose, (start.rotation, origin))]
            centre = [jnp.concatenate(x, 2) for x in zip(centre, (start.rotation, origin))]
        *pose, value = refine_all(
            search.fine, observations, search.vectors, *pose,
            box=plan.box, kmax=stage.kmax, steps=stage.steps, free=plan.free,
            bounds=Bounds.around(*centre, max_angle_deg, reach), team=team,
        )  # fmt: skip
        if stage is not plan.stages[-1]:
            kept = best_distinct(search, pose[0], value, min(stage.keep * m, value.shape[2]))
            pose, centre = ([take(x, kept) for x in each] for each in (pose, centre))
    return Alignment(pose[0], -rotate(*pose), value)
