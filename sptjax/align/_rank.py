"""Scores of a comparator at given poses, and the best of a list of poses."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Complex, Float, Int

from .._chunk import map_each
from .._types import Alignment
from ..comparators import Comparator, ball_score
from ..resample import SliceTable
from ..rotation import rotate, transpose
from ..score import slice_reference
from ._search import ranked, take


@eqx.filter_jit
def comparator_scores(
    comparator: Comparator,
    tables: SliceTable,
    coefficients: Complex[Array, "n k"],
    sampling: Float[Array, "#n k"],
    vectors: Int[Array, "k 3"],
    poses: Alignment,
    *,
    box: int,
    apix: float,
) -> Alignment:
    """The same poses with the comparator's score (:func:`sptjax.comparators.ball_score`).

    Args:
        comparator: any.
        tables: stacked references, ``real`` and ``imag`` ``[c, m]``.
        coefficients: particles, multiplied by their sampling.
        sampling: of the particles, in one row or one for each.
        vectors: their frequencies.
        poses: ``[n, c, p]``.
        box: edge of the particle box.
        apix: its voxel size, angstrom.
    """
    n, c, p = poses.score.shape
    rows = jnp.broadcast_to(sampling, coefficients.shape)
    wave = vectors.astype(jnp.float32)
    owner = jnp.repeat(jnp.arange(n), p)
    place = -rotate(transpose(poses.rotation), poses.shift)

    def one_reference(args: tuple) -> Array:
        real, imag, turns, places = args
        table = SliceTable(real, imag, tables.half, tables.pad, tables.order)

        def one(args: tuple) -> Array:
            i, turn, shift = args
            model = slice_reference(table, wave, turn, shift, box)
            return ball_score(comparator, coefficients[i], model, rows[i], vectors, box, apix)

        return map_each(one, (owner, turns, places))

    flat = [jnp.swapaxes(x, 0, 1).reshape(c, n * p, *x.shape[3:]) for x in (poses.rotation, place)]
    score = lax.map(one_reference, (tables.real, tables.imag, *flat))
    return Alignment(poses.rotation, poses.shift, jnp.swapaxes(score.reshape(c, n, p), 0, 1))


@eqx.filter_jit
def separate(
    found: Alignment, operators: Float[Array, "g 3 3"], apart_deg: Float[Array, ""], keep: int
) -> Alignment:
    """The best poses that lie apart, best first.

    Args:
        found: poses ``[n, c, m]``.
        operators: of the symmetry; equivalent poses are one.
        apart_deg: smallest angle between two poses.
        keep: poses returned; where fewer lie apart, copies with a score of minus infinity follow.
    """
    keep = min(keep, found.score.shape[2])
    known = jnp.where(jnp.isnan(found.score), -jnp.inf, found.score)

    def pick(turns: Array, rank: Array) -> tuple[Array, Array]:
        order, copy = ranked(turns, rank, operators, jnp.cos(jnp.deg2rad(apart_deg)))
        value, index = lax.top_k(jnp.where(copy, -jnp.inf, rank[order]), keep)
        return order[index], value

    index, value = jax.vmap(jax.vmap(pick))(found.rotation, known)
    return Alignment(take(found.rotation, index), take(found.shift, index), value)


def joined(*lists: Alignment) -> Alignment:
    """Lists of poses one after the other."""
    return jax.tree.map(lambda *x: jnp.concatenate(x, 2), *lists)
