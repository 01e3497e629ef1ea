"""Plain exhaustive search: every rotation, every whole-voxel shift, the whole band.

For one rotation the scores at all shifts are a correlation, hence one inverse transform of
``p w conj(F(R k))`` on the grid of the box. Nothing is interpolated and nothing is refined: this
is what a list of rotations and a shift range can give, at the price of one transform of the box
for every particle, reference and rotation.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Complex, Float, Int

from .. import fourier
from .._chunk import batch_size, map_chunked
from .._errors import InputError
from .._types import Alignment
from ..resample import SliceTable, rotated_axes, sample_axes
from ..rotation import rotate
from ..score import TINY, Observations
from ._coarse import distinct_maxima
from ._search import cut

MEMORY = 2**27  # bytes for the correlations of one chunk of rotations
MOST = 64  # rotations in a chunk


class _Correlator(eqx.Module):
    """Particles ready for correlation; the window of shifts starts at voxel 0 of the result."""

    data: Complex[Array, "n k"]  # p w, its origin moved by the largest shift
    power: Float[Array, "#n k"]  # w^2
    vectors: Float[Array, "3 k"]
    source: Int[Array, "v"]  # entry of the half ball at every voxel of the half grid, or k
    box: int = eqx.field(static=True)
    reach: tuple[int, int, int] = eqx.field(static=True)  # of the shifts along x, y and z

    def places(self, index: Int[Array, "..."]) -> Float[Array, "... 3"]:
        """Shifts (x, y, z) of flat indices into the window."""
        axes = jnp.unravel_index(index, tuple(2 * half + 1 for half in self.reach[::-1]))
        return jnp.stack(axes[::-1], -1).astype(jnp.float32) - jnp.asarray(
            self.reach, jnp.float32
        ).reshape((1,) * index.ndim + (3,))


@eqx.filter_jit
def grid_search(
    tables: SliceTable,
    observations: Observations,
    vectors: Int[Array, "k 3"],
    rotations: Float[Array, "q 3 3"],
    *,
    box: int,
    max_shift_vox: int | tuple[int, int, int],
    keep: int,
    neighbours: Int[Array, "q m"] | None = None,
    team: int = 1,
) -> Alignment:
    """Best grid poses of every particle against every reference, by :func:`sptjax.score.score`.

    Memory beyond the result: about 128 MB for the correlations of one chunk of rotations (of one
    rotation, if that is larger); with ``neighbours`` also 8 bytes per particle and rotation.

    Args:
        tables: stacked references, ``real`` and ``imag`` ``[c, m]``.
        observations: particles on the half ball of ``vectors`` or a larger one.
        vectors: the band, (kx, ky, kz), ``|k| <= box / 2``.
        rotations: particle to reference.
        box: edge of the particle box.
        max_shift_vox: shifts ``s = -R^T t`` are whole voxels within this on every axis, or
            within these along x, y and z.
        keep: poses returned per particle and reference, at most ``q``.
        neighbours: nearest entries of every rotation; if given, only local maxima of the score
            over the rotations count, so that the poses returned are distinct.
        team: devices that share the rotations, inside :func:`sptjax._team.together`.

    Returns:
        ``[n, c, keep]`` poses, best first.

    Raises:
        InputError: the window of shifts is larger than the box.
    """
    correlator = _correlator(cut(observations, len(vectors)), vectors, box, max_shift_vox)
    keep = min(keep, rotations.shape[0])

    def one_reference(flat: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        table = SliceTable(flat[0], flat[1], tables.half, tables.pad, tables.order)
        if neighbours is None:
            return _best(correlator, table, rotations, keep, team)
        return _best_maxima(correlator, table, rotations, neighbours, keep, team)

    found = lax.map(one_reference, (tables.real, tables.imag))
    score, turn, move = (jnp.swapaxes(x, 0, 1) for x in found)
    rotation = rotations[turn]
    return Alignment(rotation, -rotate(rotation, correlator.places(move)), score)


@eqx.filter_jit
def shift_search(
    tables: SliceTable,
    observations: Observations,
    vectors: Int[Array, "k 3"],
    rotation: Float[Array, "n c 3 3"],
    *,
    box: int,
    max_shift_vox: int | tuple[int, int, int],
) -> Alignment:
    """Best whole-voxel shift of every particle and reference at its one rotation, ``[n, c, 1]``.

    Arguments otherwise as :func:`grid_search`.
    """
    correlator = _correlator(cut(observations, len(vectors)), vectors, box, max_shift_vox)
    power = jnp.broadcast_to(correlator.power, correlator.data.shape)

    def one_reference(args: tuple) -> tuple[Array, Array]:
        real, imag, turns = args
        table = SliceTable(real, imag, tables.half, tables.pad, tables.order)

        def one_particle(args: tuple) -> tuple[Array, Array]:
            data, power, turn = args
            alone = dataclasses.replace(correlator, data=data[None], power=power[None])
            score, move = _chunk_scores(alone, table, turn[None])
            return score[0], move[0]

        return lax.map(one_particle, (correlator.data, power, turns))

    found = lax.map(one_reference, (tables.real, tables.imag, jnp.swapaxes(rotation, 0, 1)))
    score, move = (jnp.swapaxes(x, 0, 1) for x in found)
    turns = rotation[:, :, None]
    return Alignment(turns, -rotate(turns, correlator.places(move)), score)


def _correlator(
    observations: Observations,
    vectors: Int[Array, "k 3"],
    box: int,
    max_shift_vox: int | tuple[int, int, int],
) -> _Correlator:
    rx, ry, rz = max_shift_vox if isinstance(max_shift_vox, tuple) else (max_shift_vox,) * 3
    if not all(0 <= 2 * half < box for half in (rx, ry, rz)):
        raise InputError(f"Shifts of up to {max_shift_vox} voxels do not fit a box of {box}.")
    wave = vectors.astype(jnp.float32)
    angle = (-2 * jnp.pi / box) * (rx * wave[:, 0] + ry * wave[:, 1] + rz * wave[:, 2])
    phase = lax.complex(jnp.cos(angle), jnp.sin(angle))
    size = wave.shape[0]
    kx, ky, kz = vectors.T
    place = ((kz % box) * box + ky % box) * (box // 2 + 1) + kx
    source = jnp.full(box * box * (box // 2 + 1), size).at[place].set(jnp.arange(size))
    weight = observations.weight
    data = observations.data * weight.astype(phase.dtype) * phase[None]
    return _Correlator(data, weight * weight, wave.T, source, box, (rx, ry, rz))


def _chunk_scores(
    correlator: _Correlator, table: SliceTable, turns: Float[Array, "b 3 3"]
) -> tuple[Float[Array, "b n"], Int[Array, "b n"]]:
    """Best score over the shifts, and the flat index of that shift, for a chunk of rotations."""
    real, imag = jax.vmap(lambda r: sample_axes(table, rotated_axes(correlator.vectors, r)))(turns)
    power = jnp.matmul(
        real * real + imag * imag, correlator.power.T, precision=lax.Precision.HIGHEST
    )
    scale = (correlator.box**3 / 2**0.5) * lax.rsqrt(power + TINY)
    model = lax.complex(real, -imag)

    def one_particle(data: Complex[Array, " k"]) -> tuple[Array, Array]:
        correlation = _correlate(correlator, data[None] * model)
        flat = correlation.reshape(turns.shape[0], -1)
        return flat.max(1), flat.argmax(1).astype(jnp.int32)

    best, index = lax.map(one_particle, correlator.data)
    return best.T * scale, index.T


def _correlate(correlator: _Correlator, product: Complex[Array, "b k"]) -> Float[Array, "b z y x"]:
    """Inverse transform of half balls on the grid of the box, cut to the window of shifts."""
    box = correlator.box
    x, y, z = (2 * half + 1 for half in correlator.reach)
    half = product.at[:, correlator.source].get(mode="fill", fill_value=0)
    half = half.reshape(-1, box, box, box // 2 + 1)
    # the planes kx = 0 and kx = n/2 hold both of a Friedel pair, the half ball one
    for plane in {0, box // 2} if box % 2 == 0 else {0}:
        one = half[..., plane]
        other = jnp.roll(jnp.flip(one, (-2, -1)), 1, (-2, -1)).conj()
        half = half.at[..., plane].set(one + other)
    return fourier.irfftn(half, box)[:, :z, :y, :x]


def _best(
    correlator: _Correlator,
    table: SliceTable,
    rotations: Float[Array, "q 3 3"],
    keep: int,
    team: int,
) -> tuple[Float[Array, "n keep"], Int[Array, "n keep"], Int[Array, "n keep"]]:
    """Score, rotation and shift of the best rotations: top-k of the top-k of every chunk."""
    count, size = rotations.shape[0], _chunk_size(correlator.box)

    def one_chunk(start: Int[Array, "1"]) -> tuple[Array, Array, Array]:
        row = start + jnp.arange(min(size, count))
        turns = rotations[jnp.minimum(row, count - 1)]
        score, move = _chunk_scores(correlator, table, turns)
        real = jnp.where((row < count)[:, None], score, -jnp.inf)
        top, index = lax.top_k(real.T, min(keep, row.shape[0]))
        return top[None], row[index][None], jnp.take_along_axis(move.T, index, 1)[None]

    chunks = map_chunked(one_chunk, jnp.arange(0, count, size), 1, team)
    score, turn, move = (jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1) for x in chunks)
    top, index = lax.top_k(score, keep)
    return top, jnp.take_along_axis(turn, index, 1), jnp.take_along_axis(move, index, 1)


def _best_maxima(
    correlator: _Correlator,
    table: SliceTable,
    rotations: Float[Array, "q 3 3"],
    neighbours: Int[Array, "q m"],
    keep: int,
    team: int,
) -> tuple[Float[Array, "n keep"], Int[Array, "n keep"], Int[Array, "n keep"]]:
    """Score, rotation and shift of the best local maxima over the rotations."""
    score, move = map_chunked(
        lambda turns: _chunk_scores(correlator, table, turns),
        rotations,
        _chunk_size(correlator.box),
        team,
    )
    turn = lax.map(lambda row: distinct_maxima(row, neighbours, keep), score.T)
    top = jnp.take_along_axis(score.T, turn, 1)
    return top, turn, jnp.take_along_axis(move.T, turn, 1)


def _chunk_size(box: int) -> int:
    """Rotations per chunk; spectrum, work space and correlation take about 16 bytes a voxel."""
    return batch_size(16 * box**3, MEMORY, MOST)
