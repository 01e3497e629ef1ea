"""Exhaustive search over rotations and shifts in a low band, as one matrix product.

Rows are (particle, shift), columns are rotated references, the inner axis holds the real and
imaginary parts of the band. The norm of every rotated reference under every particle's weight
is a second, small product. References are sliced on the fly, one chunk of rotations at a time,
and only the best score over the shifts is kept; the shift itself is found again for the few
rotations that go on, which is cheaper than carrying an index through the large product.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from .._chunk import map_chunked, map_each
from ..resample import SliceTable, rotated_axes, sample_axes
from ..score import TINY, Observations


def coarse_scores(
    tables: SliceTable,
    observations: Observations,
    vectors: Float[Array, "k 3"],
    rotations: Float[Array, "q 3 3"],
    shifts: Float[Array, "t 3"],
    *,
    box: int,
    chunk: int,
    dtype: jnp.dtype,
    team: int = 1,
) -> Float[Array, "n c q"]:
    """Best score over the shifts for every particle, reference and rotation.

    Args:
        tables: stacked references, ``real`` and ``imag`` ``[c, m]``.
        observations: particles, cut to the band.
        vectors: the band, (kx, ky, kz).
        rotations: particle to reference.
        shifts: particle-frame shifts ``s = -R^T t``, voxels.
        box: edge of the particle box.
        chunk: rotations per product.
        dtype: operands of the product; sums are float32.
        team: devices that share the rotations.

    Returns:
        Scores ``[n, c, q]``.
    """
    n, k = observations.data.shape
    rows = phased_rows(observations, vectors, shifts, box).astype(dtype).reshape(-1, 2 * k)
    power = observations.weight**2

    axes = vectors.T

    def one_reference(flat: tuple[Array, Array]) -> Array:
        table = SliceTable(flat[0], flat[1], tables.half, tables.pad, tables.order)

        def one_chunk(turns: Array) -> Array:
            real, imag = jax.vmap(lambda r: sample_axes(table, rotated_axes(axes, r)))(turns)
            columns = jnp.concatenate([real, imag], -1).astype(dtype)
            norm = dot(power, real * real + imag * imag)
            product = dot(rows, columns).reshape(n, -1, turns.shape[0])
            return (product.max(1) * (jnp.sqrt(2.0) * lax.rsqrt(norm + TINY))).T

        return map_chunked(one_chunk, rotations, chunk, team).T

    return lax.map(one_reference, (tables.real, tables.imag)).transpose(1, 0, 2)


def best_shifts(
    tables: SliceTable,
    observations: Observations,
    vectors: Float[Array, "k 3"],
    rotations: Float[Array, "n c m 3 3"],
    shifts: Float[Array, "t 3"],
    *,
    box: int,
) -> Float[Array, "n c m 3"]:
    """Best of the coarse shifts for chosen rotations of every particle and reference."""
    weight = jnp.broadcast_to(observations.weight, observations.data.shape)
    axes = vectors.T

    def one_particle(args: tuple) -> Array:
        data, w, turns = args
        rows = phased_rows(Observations(data[None], w[None]), vectors, shifts, box)[0]

        def one_reference(real: Array, imag: Array, turns: Array) -> Array:
            table = SliceTable(real, imag, tables.half, tables.pad, tables.order)
            slices = jax.vmap(lambda r: sample_axes(table, rotated_axes(axes, r)))(turns)
            product = dot(rows, jnp.concatenate(slices, -1))
            return shifts[product.argmax(0)]

        return jax.vmap(one_reference)(tables.real, tables.imag, turns)

    return map_each(one_particle, (observations.data, weight, rotations))


def phased_rows(
    observations: Observations,
    vectors: Float[Array, "k 3"],
    shifts: Float[Array, "t 3"],
    box: int,
) -> Float[Array, "n t m"]:
    """Weighted particles times ``exp(2 pi i k.s / n)``, real and imaginary part side by side."""
    angle = (2 * jnp.pi / box) * jnp.matmul(shifts, vectors.T, precision=lax.Precision.HIGHEST)
    phase = lax.complex(jnp.cos(angle), jnp.sin(angle))
    weighted = observations.data * observations.weight.astype(observations.data.dtype)
    moved = weighted[:, None, :] * phase[None]
    return jnp.concatenate([moved.real, moved.imag], -1)


def dot(rows: Array, columns: Array) -> Array:
    """``rows @ columns.T`` with float32 sums."""
    return lax.dot_general(
        rows, columns, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )


def distinct_maxima(
    scores: Float[Array, "q"], neighbours: Int[Array, "q m"], count: int
) -> Int[Array, " count"]:
    """The ``count`` best local maxima on the rotation grid, then the best of the others."""
    peak = scores >= scores[neighbours].max(-1)
    spread = scores.max() - scores.min() + 1.0
    return lax.top_k(jnp.where(peak, scores, scores - spread), count)[1]
