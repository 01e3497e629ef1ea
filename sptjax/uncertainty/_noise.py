"""How the noise of neighbouring frequencies goes together, estimated from residuals.

Whitened noise has unit power at every frequency and none in common between two, if the noise
power is right and the noise fills the box. A mask, the edge of the box of a back-projection or a
power that is wrong somewhere break that. What the particles leave beside the reference at the
poses found, averaged over the particles, shows all of it:

``C_d(k) = < r(k) r*(k + d) >``, ``d`` over a frequency itself and its 26 neighbours,

of which 13 are the mirror images of the others. Since the noise belongs to the microscope, not
to the orientation, it is the same function in the frame of every particle.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float, Int

# one of each pair of opposite neighbours
STEPS = np.array([d for d in np.ndindex(3, 3, 3) if d > (1, 1, 1)]) - 1


class Neighbours(eqx.Module):
    """Where the neighbours of a half ball are: in it, mirrored into it, or beyond it."""

    index: Int[Array, "d k"]  # into the ball, its conjugate, and a zero
    steps: Float[Array, "d 3"]

    def phases(self, shift: Float[Array, "3"], box: int) -> Complex[Array, " d"]:
        """What moving the data by a shift does to ``r(k) r*(k + d)``."""
        angle = (-2 * jnp.pi / box) * (self.steps * shift[None]).sum(1)
        return lax.complex(jnp.cos(angle), jnp.sin(angle))


class NoiseModel(eqx.Module):
    """Covariance of whitened noise between a frequency and its neighbours."""

    power: Float[Array, " k"]
    near: Complex[Array, "d k"]


def neighbours(vectors: np.ndarray) -> Neighbours:
    """Neighbours of the frequencies (kx, ky, kz) of a half ball, ``[K, 3]``."""
    count, reach = len(vectors), int(np.abs(vectors).max()) + 1
    where = np.full((2 * reach + 1,) * 3, 2 * count)
    where[tuple((vectors + reach).T)] = np.arange(count)
    where[tuple((-vectors + reach).T)] = count + np.arange(count)
    index = np.stack([where[tuple((vectors + d + reach).T)] for d in STEPS])
    return Neighbours(jnp.asarray(index, jnp.int32), jnp.asarray(STEPS, jnp.float32))


def nothing(around: Neighbours) -> NoiseModel:
    """No noise, to which that of particles is added."""
    shape = around.index.shape
    return NoiseModel(jnp.zeros(shape[1]), jnp.zeros(shape, jnp.complex64))


def _mirrored(values: Complex[Array, "r k"]) -> Complex[Array, "r m"]:
    """What :class:`Neighbours` index: values, their conjugates, zero."""
    return jnp.concatenate([values, jnp.conj(values), jnp.zeros_like(values[:, :1])], 1)


def residual_terms(
    around: Neighbours, residual: Complex[Array, " k"], shift: Float[Array, "3"], box: int
) -> NoiseModel:
    """Terms of one particle in the mean that is the model.

    Args:
        around: neighbours.
        residual: what the reference leaves, moved back by the shift of the particle.
        shift: of the particle, ``-R^T t``.
        box: edge of the particle box.
    """
    beside = _mirrored(residual[None])[0][around.index]
    phases = around.phases(shift, box)[:, None]
    near = residual[None] * jnp.conj(beside * phases)
    return NoiseModel(jnp.abs(residual) ** 2, near)


def covariance(
    model: NoiseModel,
    around: Neighbours,
    rows: Complex[Array, "r k"],
    shift: Float[Array, "3"],
    box: int,
) -> Float[Array, "r r"]:
    """Covariance of ``2 Re sum b_i* r`` over the half ball, for the rows ``b_i``.

    The sum over the whole ball of ``b_i*(k) C_d(k) b_j(k + d)``, ``d`` over all neighbours.

    Args:
        model: of the noise ``r``.
        around: neighbours.
        rows: ``b``, moved back by the shift of the particle.
        shift: of the particle.
        box: edge of the particle box.
    """
    left, both = jnp.conj(rows), _mirrored(rows)

    def gram(values: Array) -> Array:
        return 2 * jnp.matmul(left, values.T, precision=lax.Precision.HIGHEST).real

    def add(total: Array, step: tuple) -> tuple[Array, None]:
        index, near, phase = step
        part = gram(both[:, index] * (near * phase)[None])
        return total + part + part.T, None

    own = gram(rows * model.power[None].astype(rows.dtype))
    return lax.scan(add, own, (around.index, model.near, around.phases(shift, box)))[0]
