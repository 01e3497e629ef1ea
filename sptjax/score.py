"""Score of one particle against one reference at one pose. Larger is better.

Matched filter with missing data. A particle is observed as ``P(k) = T(k) V(k) + noise`` with
noise power ``N(k)``; both are folded into *observations*: whitened data ``p = P / sqrt(N W)``
and weight ``w = sqrt(W / N)``, where ``W`` is the sampling of the particle (wedge, or the sum
of CTF^2) and ``P`` is already multiplied by it. With the reference transform ``F`` rotated and
shifted into the particle frame, ``G(k) = F(R k) exp(-2 pi i k.s / n)``, ``s = -R^T t``,

``score = Re sum p* w G / sqrt(sum w^2 |G|^2)``  over the whole ball.

Its noise has unit variance at every pose, so it counts standard deviations, and half its square
is a log-likelihood ratio. With white noise and data scaled to unit norm it is the
wedge-constrained cross-correlation coefficient (EMAN2 ``ccc.tomo.thresh`` with a known wedge).
"""

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Complex, Float

from .resample import SliceTable, rotated_axes, sample_axes

TINY = 1e-30


class Observations(eqx.Module):
    """Whitened particles on the half ball (see the module docstring)."""

    data: Complex[Array, "n k"]
    weight: Float[Array, "#n k"]


def observe(
    coefficients: Complex[Array, "n k"],
    sampling: Float[Array, "#n k"],
    noise: Float[Array, " k"],
    *,
    unit_norm: bool = False,
) -> Observations:
    """Whiten particle coefficients.

    A score is a correlation with a weight ``u(k)`` per frequency (a comparator's
    ``linear_weight``) if ``noise`` is ``1 / u`` and the norm is 1.

    Args:
        coefficients: centred half-ball coefficients, multiplied by their sampling.
        sampling: wedge (0 or 1) or sum of CTF^2 >= 0, one row or one per particle.
        noise: noise power per unit of sampling, > 0 wherever something is sampled; a frequency
            whose noise is infinite does not count.
        unit_norm: scale every particle to unit norm.
    """
    power = noise[None, :]
    seen = sampling > 0
    scale = jnp.where(seen, lax.rsqrt(jnp.where(seen, power * sampling, 1.0)), 0.0)
    weight = jnp.where(seen, jnp.sqrt(jnp.where(seen, sampling / power, 1.0)), 0.0)
    data = coefficients * scale.astype(coefficients.dtype)
    if unit_norm:
        norm = lax.rsqrt(2 * jnp.sum(jnp.abs(data) ** 2, 1, keepdims=True) + TINY)
        data = data * norm.astype(data.dtype)
    return Observations(data, weight)


def slice_reference(
    table: SliceTable,
    vectors: Float[Array, "k 3"],
    rotation: Float[Array, "3 3"],
    shift: Float[Array, "3"],
    box: int,
) -> Complex[Array, " k"]:
    """Reference in the particle frame, ``F(R k) exp(-2 pi i k.s / n)``.

    Args:
        table: the reference.
        vectors: half-ball frequencies (kx, ky, kz).
        rotation: particle to reference.
        shift: ``s = -R^T t``, the position of the reference's centre in the particle, voxels.
        box: edge of the particle box, voxels.
    """
    rows = vectors.T
    real, imag = sample_axes(table, rotated_axes(rows, rotation))
    along = rows[0] * shift[0] + rows[1] * shift[1] + rows[2] * shift[2]
    angle = (-2 * jnp.pi / box) * along
    return lax.complex(real, imag) * lax.complex(jnp.cos(angle), jnp.sin(angle))


def score(
    table: SliceTable,
    observation: Observations,
    vectors: Float[Array, "k 3"],
    rotation: Float[Array, "3 3"],
    shift: Float[Array, "3"],
    box: int,
) -> Float[Array, ""]:
    """Score of one particle (``observation`` with leading axis 1) at one pose.

    Differentiable with respect to the pose, the table (hence the reference) and the weights
    (hence the wedge).

    Args:
        table: the reference.
        observation: the whitened particle.
        vectors: half-ball frequencies (kx, ky, kz).
        rotation: particle to reference.
        shift: ``s = -R^T t``, voxels.
        box: edge of the particle box, voxels.

    Returns:
        Score in standard deviations of the noise.
    """
    reference = slice_reference(table, vectors, rotation, shift, box)
    model = observation.weight[0].astype(reference.dtype) * reference
    product = jnp.sum((jnp.conj(observation.data[0]) * model).real)
    return jnp.sqrt(2.0) * product * lax.rsqrt(jnp.sum(jnp.abs(model) ** 2) + TINY)
