"""Exhaustive search over rotations and shifts in a low band, as one matrix product.

Rows are (particle, shift), columns are rotated references, the inner axis holds the real and
imaginary parts of the band. The norm of every rotated reference under every particle's weight
is a second, small product. References are sliced on the fly, one chunk of rotations at a time,
and only the best shift of every (particle, reference, rotation) is kept.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from .._chunk import map_chunked
from ..resample import SliceTable, sample
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
) -> tuple[Float[Array, "n c q"], Int[Array, "n c q"]]:
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

    Returns:
        Scores and the index of the best shift, ``[n, c, q]``.
    """
    n, k = observations.data.shape
    rows = _phased_rows(observations, vectors, shifts, box).astype(dtype)
    power = observations.weight**2

    def one_reference(flat: tuple[Array, Array]) -> tuple[Array, Array]:
        table = SliceTable(flat[0], flat[1], tables.half, tables.pad, tables.order)

        def one_chunk(turns: Array) -> tuple[Array, Array]:
            real, imag = jax.vmap(lambda r: sample(table, vectors @ r.T))(turns)
            columns = jnp.concatenate([real, imag], -1).astype(dtype)
            norm = _dot(power, real * real + imag * imag)
            product = _dot(rows.reshape(-1, 2 * k), columns)
            product = product.reshape(n, -1, turns.shape[0])
            best, index = product.max(1), product.argmax(1).astype(jnp.int32)
            scale = jnp.sqrt(2.0) * lax.rsqrt(norm + TINY)
            return (best * scale).T, index.T

        best, index = map_chunked(one_chunk, rotations, chunk)
        return best.T, index.T

    best, index = lax.map(one_reference, (tables.real, tables.imag))
    return best.transpose(1, 0, 2), index.transpose(1, 0, 2)


def _phased_rows(
    observations: Observations,
    vectors: Float[Array, "k 3"],
    shifts: Float[Array, "t 3"],
    box: int,
) -> Float[Array, "n t m"]:
    """Weighted particles times ``exp(2 pi i k.s / n)``, real and imaginary part side by side."""
    angle = (2 * jnp.pi / box) * (shifts @ vectors.T)
    phase = lax.complex(jnp.cos(angle), jnp.sin(angle))
    weighted = observations.data * observations.weight.astype(observations.data.dtype)
    moved = weighted[:, None, :] * phase[None]
    return jnp.concatenate([moved.real, moved.imag], -1)


def _dot(rows: Array, columns: Array) -> Array:
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
