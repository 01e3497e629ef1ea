"""What a particle says about a pose, as products of the linearised model with itself and the data.

A particle is ``p = a m(pose) + r`` with the weighted reference ``m``, an amplitude ``a`` and noise
``r``. With the columns ``B`` (derivatives of ``m`` by three turns and three shifts, and ``m``), the
normal matrix ``2 Re B* B`` and the covariance of ``2 Re B* r`` are all that a linear fit of pose
and amplitude needs.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Complex, Float

from ..align import linear_rows, local_model
from ..resample import SliceTable
from ..rotation import exp, multiply
from ..score import TINY, Observations, score
from ._noise import Neighbours, NoiseModel, covariance, nothing, residual_terms


class Products(eqx.Module):
    """Of ``n`` particles at ``m`` poses; turns in radians about the reference's axes, voxels."""

    normal: Float[Array, "n m 7 7"]
    spread: Float[Array, "n m 7 7"]  # covariance of ``along``
    along: Float[Array, "n m 7"]  # 2 Re B* p


def _complex(rows: Float[Array, "r 2 k"]) -> Complex[Array, "r k"]:
    return lax.complex(rows[:, 0], rows[:, 1])


def _gram(a: Array, b: Array) -> Array:
    return 2 * jnp.matmul(jnp.conj(a), b.T, precision=lax.Precision.HIGHEST).real


def _at_every_pose(
    function: Callable[..., Any], observations: Observations, *poses: Float[Array, "n m *_"]
) -> Any:
    """``function(parts, weight, *pose)`` of every particle at each of its poses, ``[n, m, ...]``.

    ``parts`` are the real and imaginary part of a particle, ``[2, k]``.
    """
    weights = jnp.broadcast_to(observations.weight, observations.data.shape)

    def one_particle(args: tuple) -> Any:
        data, weight, *own = args
        parts = jnp.stack([data.real, data.imag])
        return lax.map(lambda pose: function(parts, weight, *pose), tuple(own))

    return lax.map(one_particle, (observations.data, weights, *poses))


@eqx.filter_jit
def products(
    table: SliceTable,
    observations: Observations,
    vectors: Float[Array, "k 3"],
    rotation: Float[Array, "n m 3 3"],
    place: Float[Array, "n m 3"],
    model: NoiseModel,
    around: Neighbours,
    box: int,
) -> Products:
    """Products of a batch against one reference.

    Args:
        table: the reference.
        observations: whitened particles.
        vectors: their frequencies.
        rotation: particle to reference.
        place: ``-R^T t``, voxels.
        model: of the noise that is left after whitening.
        around: neighbours of the frequencies.
        box: edge of the particle box.
    """
    wave = vectors.T

    def one_pose(parts: Array, weight: Array, turn: Array, move: Array) -> Products:
        rows = _complex(linear_rows(table, parts, weight, wave, turn, move, box))
        columns = rows[:7]
        spread = covariance(model, around, columns, move, box)
        return Products(_gram(columns, columns), spread, _gram(columns, rows[7:])[:, 0])

    return _at_every_pose(one_pose, observations, rotation, place)


def score_at(table, parts, weight, vectors, turn, move, box) -> Float[Array, ""]:
    """Score of a particle ``parts`` (real and imaginary part, ``[2, k]``) at one pose."""
    seen = Observations(lax.complex(parts[:1], parts[1:]), weight[None])
    return score(table, seen, vectors, turn, move, box)


def gradient_at(table, parts, weight, vectors, turn, move, box) -> Float[Array, "6"]:
    """Gradient of that by turns in radians about the reference's axes, and voxels."""
    return local_model(table, parts, weight, vectors.T, turn, move, box).gradient


@eqx.filter_jit
def at_steps(
    function: Callable[..., Array],
    table: SliceTable,
    observations: Observations,
    vectors: Float[Array, "k 3"],
    rotation: Float[Array, "n m 3 3"],
    place: Float[Array, "n m 3"],
    steps: Float[Array, "n m s 6"],
    box: int,
) -> Float[Array, "n m s *_"]:
    """A function of poses some steps away from those given.

    Args:
        function: :func:`score_at` or :func:`gradient_at`.
        table: the reference.
        observations: whitened particles.
        vectors: their frequencies.
        rotation: particle to reference.
        place: ``-R^T t``, voxels.
        steps: turns in radians about the reference's axes, voxels.
        box: edge of the particle box.
    """

    def one_pose(parts: Array, weight: Array, turn: Array, move: Array, own: Array) -> Array:
        def one_step(step: Array) -> Array:
            there = multiply(exp(step[:3]), turn)
            return function(table, parts, weight, vectors, there, move + step[3:], box)

        return lax.map(one_step, own)

    return _at_every_pose(one_pose, observations, rotation, place, steps)


@eqx.filter_jit
def residual_sums(
    table: SliceTable,
    observations: Observations,
    vectors: Float[Array, "k 3"],
    rotation: Float[Array, "n 3 3"],
    place: Float[Array, "n 3"],
    counted: Float[Array, " n"],
    around: Neighbours,
    box: int,
) -> NoiseModel:
    """Sums of the noise model over the particles.

    Args:
        table: the reference.
        observations: whitened particles.
        vectors: their frequencies.
        rotation: particle to reference.
        place: ``-R^T t``, voxels.
        counted: 1 for particles that count, 0 for padding.
        around: neighbours of the frequencies.
        box: edge of the particle box.
    """
    wave, weights = vectors.T, jnp.broadcast_to(observations.weight, observations.data.shape)

    def add(total: NoiseModel, item: tuple) -> tuple[NoiseModel, None]:
        data, weight, turn, move, share = item
        parts = jnp.stack([data.real, data.imag])
        rows = _complex(linear_rows(table, parts, weight, wave, turn, move, box))
        model, seen = rows[6], rows[7]
        amplitude = _gram(model[None], seen[None])[0, 0] / (
            _gram(model[None], model[None])[0, 0] + TINY
        )
        left = seen - amplitude.astype(seen.dtype) * model
        own = residual_terms(around, left, move, box)
        return jax.tree.map(lambda t, x: t + share.astype(x.dtype) * x, total, own), None

    items = (observations.data, weights, rotation, place, counted)
    return lax.scan(add, nothing(around), items)[0]
