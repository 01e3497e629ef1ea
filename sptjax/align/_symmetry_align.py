"""Poses and symmetry: the best of the equivalent poses, and the axes of a symmetric volume.

A volume lies on the axes of a symmetry when its copies under the operators agree. For a pose
``X`` the copy ``k`` has the transform ``G_k(q) = V(R_k^T q) exp(-2 pi i q.t_k / n)`` with
``(R_k, t_k) = S_k X``; :func:`align_to_symmetry` maximises the mean correlation of ``G_k`` with
``G_0``. Of a group of ``g`` operators, whose mean is a projection, that mean ``c`` gives the
correlation of the symmetrised with the given volume, ``sqrt((1 + (g - 1) c) / g)``.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from .. import fourier, orientations
from .._chunk import map_chunked, map_each
from .._errors import InputError
from .._types import Alignment, Pose, Volume
from ..orientations import OrientationSet
from ..resample import (
    Axes,
    SliceTable,
    rotated_axes,
    sample_axes,
    sample_with_gradient,
    slice_table,
)
from ..rotation import compose, exp, multiply, random, rotate, to_quaternion, transpose
from ..score import TINY, Observations, score
from ..symmetry import Symmetry, copies
from ._coarse import distinct_maxima
from ._plan import shift_grid
from ._refine import LocalModel, _inner, climb

COARSE_K = 6  # band of the scan, Fourier pixels
DELTA_DEG = 8.0  # its spacing; a pose's error counts twice between two copies
STEPS = (8, 6, 5)  # in the band of the scan, in wider ones
KEPT = (3, 1, 1)  # poses that go on from it, at most
CHUNK = 64  # rotations per matrix product


@eqx.filter_jit
def best_symmetry_copy(
    tables: SliceTable,
    observations: Observations,
    vectors: Float[Array, "k 3"],
    start: Pose,
    symmetry: Symmetry,
    *,
    box: int,
    keep: int = 1,
) -> Alignment:
    """Score all equivalents ``S_k X`` of given poses (EMAN2 ``rotate_symmetry_3d``).

    Picks among the placements of a particle that only looks symmetric. Nothing else is searched.

    Args:
        tables: stacked references, ``real`` and ``imag`` ``[c, m]``.
        observations: particles on the half ball of ``vectors``.
        vectors: frequencies (kx, ky, kz).
        start: poses ``[n, c]``, particle to reference, shifts in voxels.
        symmetry: whose operators are tried, in their order; equal scores keep it.
        box: edge of the particle box.
        keep: poses returned per particle and reference, at most the number of operators.

    Returns:
        ``[n, c, keep]`` poses, best first, by :func:`sptjax.score.score`.
    """
    data, weight = observations.data, observations.weight
    weight = jnp.broadcast_to(weight, data.shape)
    tried = copies(start, symmetry)
    keep = min(keep, len(symmetry))

    def one_reference(args: tuple) -> Array:
        real, imag, turns, moves = args
        table = SliceTable(real, imag, tables.half, tables.pad, tables.order)

        def one_particle(args: tuple) -> Array:
            data, weight, turns, moves = args
            seen = Observations(data[None], weight[None])
            position = -rotate(transpose(turns), moves)
            return jax.vmap(lambda r, s: score(table, seen, vectors, r, s, box))(turns, position)

        return map_each(one_particle, (data, weight, turns, moves))

    by_reference = (jnp.swapaxes(x, 0, 1) for x in (tried.rotation, tried.shift))
    scores = lax.map(one_reference, (tables.real, tables.imag, *by_reference))
    best, index = lax.top_k(jnp.swapaxes(scores, 0, 1), keep)
    return Alignment(
        jnp.take_along_axis(tried.rotation, index[..., None, None], 2),
        jnp.take_along_axis(tried.shift, index[..., None], 2),
        best,
    )


class _Copies(eqx.Module):
    """A volume, what was sampled of it, and the operators under which its copies must agree."""

    volume: SliceTable
    sampling: SliceTable | None
    others: Pose  # operators but the identity, one of each with its inverse
    share: Float[Array, " g"]  # of the mean over all of them
    free: Float[Array, "3 3"]  # projector on the directions that the symmetry determines
    box: int = eqx.field(static=True)


def align_to_symmetry(
    volume: Volume,
    symmetry: Symmetry,
    *,
    key: PRNGKeyArray,
    starts: int = 10,
    kmax: int | None = None,
    max_shift_vox: float | None = None,
    sampling: Float[Array, "z y x"] | None = None,
    grid: OrientationSet | None = None,
) -> tuple[Pose, Float[Array, ""]]:
    """The pose that puts a volume on the axes of a symmetry (EMAN2 ``symalignquat``).

    A scan over one asymmetric unit in a low band, then Levenberg-Marquardt from its best
    distinct maxima, in that band and in the whole one. What the symmetry leaves open is settled:
    of Cn and helices the shift along the axis and the turn about it are zero; among a group's
    equivalent poses, and both ends of a single axis, the one with the smallest rotation is given.

    Args:
        volume: cubic, solvent level near 0.
        symmetry: other than c1.
        key: turns the grid of the scan at random; consumed.
        starts: maxima of the scan to refine.
        kmax: last Fourier pixel used, at most ``n / 2 - 3``; ``n / 3`` if not given.
        max_shift_vox: bound on every component of the shift; ``n / 4`` if not given.
        sampling: centred Fourier grid of the particle's wedge (or CTF^2, if the volume is
            multiplied by it); copies are then compared where both were sampled.
        grid: orientations to scan, made for ``symmetry``; worth keeping for many volumes.

    Returns:
        Pose particle -> symmetric frame, and the correlation of the symmetrised with the moved
        volume, 0 to 1.

    Raises:
        InputError: the symmetry has no rotation, or a parameter is out of its range.
    """
    pose, score = align_many_to_symmetry(
        volume[None],
        symmetry,
        keys=key[None],
        starts=starts,
        kmax=kmax,
        max_shift_vox=max_shift_vox,
        sampling=None if sampling is None else sampling[None],
        grid=grid,
    )
    return jax.tree.map(lambda x: x[0], pose), score[0]


def align_many_to_symmetry(
    volumes: Float[Array, "n z y x"],
    symmetry: Symmetry,
    *,
    keys: PRNGKeyArray,
    starts: int = 10,
    kmax: int | None = None,
    max_shift_vox: float | None = None,
    sampling: Float[Array, "n z y x"] | None = None,
    grid: OrientationSet | None = None,
) -> tuple[Pose, Float[Array, " n"]]:
    """As :func:`align_to_symmetry`, for some volumes at once, ``keys`` and ``sampling`` of each.

    Args:
        volumes: cubic, solvent level near 0.
        symmetry: other than c1.
        keys: one per volume.
        starts: maxima of the scan to refine.
        kmax: last Fourier pixel used.
        max_shift_vox: bound on every component of the shift, voxels.
        sampling: centred Fourier grid of each.
        grid: orientations to scan.

    Raises:
        InputError: the symmetry has no rotation, or a parameter is out of its range.
    """
    box = volumes.shape[-1]
    kmax = max(box // 3, 4) if kmax is None else kmax
    reach = box / 4 if max_shift_vox is None else max_shift_vox
    if starts < 1 or reach < 0 or not 1 <= kmax <= box // 2 - 3:
        raise InputError(
            f"Symmetry alignment needs starts >= 1, a shift bound >= 0 and kmax in 1 ... n / 2 - 3;"
            f" got {starts}, {reach:g} and {kmax} for a box of {box}."
        )
    axis = _common_axis(symmetry)
    free = np.eye(3) - (0 if axis is None else np.outer(axis, axis))
    shifts = shift_grid(reach, box / (2.67 * min(COARSE_K, kmax))) @ free
    shifts = np.unique(shifts.round(5), axis=0)
    grid = orientations.uniform(DELTA_DEG, symmetry) if grid is None else grid
    given = (jnp.asarray(volumes, jnp.float32), keys)
    if sampling is not None:
        given = (*given, jnp.asarray(sampling, jnp.float32))
    return _align(
        given,
        symmetry,
        *_pairs_with_the_first(symmetry),
        grid,
        jnp.asarray(shifts, jnp.float32),
        jnp.asarray(free, jnp.float32),
        None if axis is None else jnp.asarray(axis, jnp.float32),
        jnp.asarray(reach, jnp.float32),
        jnp.asarray(fourier.half_ball(kmax), jnp.float32).T,
        starts,
        kmax,
    )


def _bands(kmax: int) -> list[int]:
    """Last Fourier pixel of the scan, halfway to the last one if that is far, and the last one."""
    first = min(COARSE_K, kmax)
    middle = (first + kmax) // 2 if kmax >= 2 * first else kmax
    return sorted({first, middle, kmax})


def _pairs_with_the_first(symmetry: Symmetry) -> tuple[Pose, Float[Array, " g"]]:
    """Operators to compare with the identity, and the share of each in the mean over all.

    In a group the copy under an operator agrees with the first as well as that under its
    inverse does: of the two one is enough.
    """
    turns, rises = np.asarray(symmetry.operators), np.asarray(symmetry.shifts)
    kept = np.arange(1, len(turns))
    share = np.ones(len(kept))
    if symmetry.helix is None:
        apart = np.abs(turns[:, None] - turns[None].swapaxes(2, 3)).max((2, 3))
        inverse = apart.argmin(1)[1:]
        share = np.where(inverse == kept, 1, 2)[kept <= inverse]
        kept = kept[kept <= inverse]
    others = Pose(jnp.asarray(turns[kept]), jnp.asarray(rises[kept]))
    return others, jnp.asarray(share / share.sum(), jnp.float32)


def _common_axis(symmetry: Symmetry) -> np.ndarray | None:
    """Unit vector that every operator leaves in place, if there is one."""
    mean = np.asarray(symmetry.operators, np.float64).mean(0)
    value, vector = np.linalg.eigh((mean + mean.T) / 2)
    fixed = value > 1 - 1e-4
    if fixed.all():
        raise InputError(f"Symmetry {symmetry.name} has no rotation: every pose is aligned to it.")
    return vector[:, -1] if fixed.any() else None


@eqx.filter_jit
def _align(given, symmetry, others, share, grid, shifts, free, axis, reach, rows, starts, kmax):
    """Poses and scores of some volumes, all of them in every step."""
    bands = _bands(kmax)
    inside = [rows[:, : fourier.half_ball_size(k)] for k in bands]

    def one(volume: Array, key: PRNGKeyArray, sampling: Array | None = None):
        box = volume.shape[-1]
        seen = None if sampling is None else _sampling_table(sampling)

        def model(kmax: float, order: int) -> _Copies:
            table = slice_table(volume, kmax, order)
            return _Copies(table, seen, others, share, free, box)

        coarse = model(bands[0], 1)
        turns = multiply(grid.rotations, random(key, 1))
        found, move = map_chunked(lambda r: _scan(coarse, r, shifts, inside[0]), turns, CHUNK)
        best = distinct_maxima(found, grid.neighbours, min(starts, len(grid)))
        turn, shift = turns[best], shifts[move[best]]
        for step, (band, here) in enumerate(zip(bands, inside)):
            fine = model(band, 2)

            def climbed(turn: Array, shift: Array, fine=fine, here=here, steps=STEPS[step]):
                return climb(lambda r, t: _local_model(fine, r, t, here), turn, shift, steps)

            turn, shift, values = jax.vmap(climbed)(turn, shift)
            rank = jnp.where((jnp.abs(shift) <= reach + 1e-3).all(-1), values, values - 10)
            kept = lax.top_k(rank, min(len(rank), KEPT[step]))[1]
            turn, shift, value = turn[kept], shift[kept], values[kept[0]]
        g = len(symmetry)
        total = jnp.sqrt(jnp.maximum(1 + (g - 1) * value, 0) / g)
        return _nearest(Pose(turn[0], shift[0]), symmetry, axis), total

    return jax.vmap(one)(*given)


def _sampling_table(grid: Float[Array, "z y x"]) -> SliceTable:
    """Trilinear table of a centred grid."""
    flat = grid[1:, 1:, 1:] if grid.shape[-1] % 2 == 0 else grid
    return SliceTable(flat.reshape(-1), flat.reshape(-1), flat.shape[-1] // 2, 1.0, 1)


def _seen(model: _Copies, axes: Axes) -> Float[Array, " k"]:
    """Sampling of the volume at frequencies of its own frame."""
    if model.sampling is None:
        return jnp.ones_like(axes[0])
    return sample_axes(model.sampling, axes)[0]


def _unit(real: Array, imag: Array) -> Float[Array, "2 k"]:
    pair = jnp.stack([real, imag])
    return pair * lax.rsqrt(jnp.sum(pair * pair) + TINY)


def _scan(
    model: _Copies,
    turns: Float[Array, "q 3 3"],
    shifts: Float[Array, "t 3"],
    rows: Float[Array, "3 k"],
) -> tuple[Float[Array, " q"], Array]:
    """Best correlation of the copies over the shifts for every rotation, and which shift."""
    operators, rises = model.others.rotation, model.others.shift

    def products(turn: Float[Array, "3 3"]) -> Array:
        def at(rotation: Float[Array, "3 3"]) -> tuple[Array, Array, Array]:
            axes = rotated_axes(rows, transpose(rotation))
            return *sample_axes(model.volume, axes), _seen(model, axes)

        real0, imag0, seen0 = at(turn)

        def one(operator: Float[Array, "3 3"]) -> Array:
            real, imag, seen = at(multiply(operator, turn))
            a, b = _unit(real * seen0, imag * seen0), _unit(real0 * seen, imag0 * seen)
            return jnp.stack([a[0] * b[0] + a[1] * b[1], a[0] * b[1] - a[1] * b[0]])

        return (lax.map(one, operators) * model.share[:, None, None]).reshape(-1)

    # the shift of a pose moves its copies apart: S_k t + s_k - t
    apart = rotate(operators[:, None], shifts[None]) + rises[:, None] - shifts[None]
    angle = (-2 * jnp.pi / model.box) * jnp.einsum("gtx,xk->gkt", apart, rows, precision="highest")
    columns = jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1).reshape(-1, len(shifts))
    scores = jnp.matmul(jax.vmap(products)(turns), columns, precision="highest")
    return scores.max(1), scores.argmax(1)


def _local_model(
    model: _Copies,
    rotation: Float[Array, "3 3"],
    shift: Float[Array, "3"],
    rows: Float[Array, "3 k"],
) -> LocalModel:
    """Mean correlation of the copies and its Gauss-Newton model.

    With both of a pair scaled to unit norm, the correlation is one minus half the squared
    length of their difference: a least-squares problem in the six parameters.
    """
    pose, first = Pose(rotation, shift), Pose(jnp.eye(3)[None], jnp.zeros((1, 3)))
    operators = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, model.others)
    drawn, seen = lax.map(lambda operator: _with_slopes(model, pose, operator, rows), operators)

    def add(total: Array, other: tuple[Array, Array, Array]) -> tuple[Array, None]:
        copy, seen_copy, share = other
        left = _unit_with_slopes(copy * seen[0]) - _unit_with_slopes(drawn[0] * seen_copy)
        return total + share * jnp.matmul(left, left.T, precision="highest"), None

    gram = lax.scan(add, jnp.zeros((7, 7)), (drawn[1:], seen[1:], model.share))[0]
    value = 1 - gram[0, 0] / 2
    free = jax.scipy.linalg.block_diag(model.free, model.free)
    normal = multiply(free, multiply(gram[1:, 1:], free)) / jnp.maximum(jnp.abs(value), 1e-3)
    return LocalModel(value, -rotate(free, gram[1:, 0]), normal)


def _with_slopes(
    model: _Copies, pose: Pose, operator: Pose, rows: Float[Array, "3 k"]
) -> tuple[Float[Array, "7 2 k"], Float[Array, "1 1 k"]]:
    """Transform of one copy and its slopes (turn, then shift of the pose), and its sampling."""
    along = jnp.stack(rotated_axes(rows, transpose(operator.rotation)))  # S^T q
    axes = rotated_axes(along, transpose(pose.rotation))
    value, slope = sample_with_gradient(model.volume, axes)
    x, y, z = rotated_axes(jnp.stack(slope).reshape(3, -1), pose.rotation)
    x, y, z = (g.reshape(value.shape) for g in (x, y, z))
    u, v, w = along[:, None]
    turn = [y * w - z * v, z * u - x * w, x * v - y * u]
    turned = (2 * jnp.pi / model.box) * jnp.stack([value[1], -value[0]])  # times -2 pi i / n
    parts = jnp.stack([value, *turn, *(p * turned for p in (u, v, w))])
    angle = (-2 * jnp.pi / model.box) * (_inner(along, pose.shift) + _inner(rows, operator.shift))
    cos, sin = jnp.cos(angle)[None], jnp.sin(angle)[None]
    real, imag = parts[:, 0], parts[:, 1]
    moved = jnp.stack([real * cos - imag * sin, real * sin + imag * cos], 1)
    return moved, _seen(model, axes)[None, None]


def _unit_with_slopes(parts: Float[Array, "7 2 k"]) -> Float[Array, "7 m"]:
    """First row scaled to unit norm, the others to its slopes."""
    flat = parts.reshape(7, -1)
    flat = flat * lax.rsqrt(jnp.sum(flat[0] ** 2) + TINY)
    unit = flat[:1]
    return jnp.concatenate([unit, flat[1:] - jnp.sum(flat[1:] * unit, 1, keepdims=True) * unit])


def _nearest(pose: Pose, symmetry: Symmetry, axis: Float[Array, "3"] | None) -> Pose:
    """The equivalent pose with the smallest rotation."""
    if axis is None:
        options = copies(pose, symmetry)
    else:
        turn = jnp.stack([jnp.eye(3), _half_turn_across(axis)])
        both = compose(Pose(turn, jnp.zeros((2, 3))), Pose(pose.rotation[None], pose.shift[None]))
        q = to_quaternion(both.rotation)
        twist = 2 * jnp.arctan2(rotate(q[:, None, 1:], axis[None])[:, 0], q[:, 0])
        options = compose(Pose(exp(-twist[:, None] * axis[None]), jnp.zeros((2, 3))), both)
    best = jnp.argmax(jnp.trace(options.rotation, axis1=-2, axis2=-1))
    return Pose(options.rotation[best], options.shift[best])


def _half_turn_across(axis: Float[Array, "3"]) -> Float[Array, "3 3"]:
    """Rotation by 180 degrees about some direction perpendicular to the axis."""
    other = jnp.cross(axis, jnp.eye(3)[jnp.argmin(jnp.abs(axis))])
    unit = other / jnp.linalg.norm(other)
    return 2 * unit[:, None] * unit[None, :] - jnp.eye(3)
