"""Radial transfer between a reference and the particles, measured from aligned particles.

A reference from a model or another microscope lacks what the particles have: the CTF magnitude,
an envelope. At the poses found, the regression of the whitened particles on the reference,
shell by shell, is that transfer; a matched filter needs it to weight the shells as the data do.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import fourier
from .resample import SliceTable
from .score import Observations, slice_reference


class Regression(eqx.Module):
    """Sums per shell 0 ... kmax, over one particle or many; merge by addition."""

    product: Float[Array, "*n s"]  # sum of Re(p* w G)
    power: Float[Array, "*n s"]  # sum of w^2 |G|^2
    total: Float[Array, "*n s"]  # sum of |p|^2

    def summed(self) -> "Regression":
        """Over the particles, ``[s]``."""
        return jax.tree.map(lambda x: x.sum(0), self)


@eqx.filter_jit
def regress(
    table: SliceTable,
    observations: Observations,
    vectors: Float[Array, "k 3"],
    rotation: Float[Array, "n 3 3"],
    shift: Float[Array, "n 3"],
    *,
    box: int,
) -> Regression:
    """Regression sums of every particle against one reference at the poses ``x_ref = R x + t``.

    Differentiable with respect to the reference, the weights and the poses.

    Args:
        table: the reference.
        observations: ``n`` particles.
        vectors: their frequencies (kx, ky, kz).
        rotation: particle to reference.
        shift: ``t``, voxels.
        box: edge of the particle box.
    """
    shell = jnp.rint(jnp.sqrt((vectors * vectors).sum(-1))).astype(jnp.int32)
    shells = box // 2 + 1
    weight = jnp.broadcast_to(observations.weight, observations.data.shape)

    def one(args: tuple) -> Regression:
        data, w, turn, move = args
        model = slice_reference(table, vectors, turn, -turn.T @ move, box)
        model = w.astype(model.dtype) * model
        product = (jnp.conj(data) * model).real
        power = jnp.abs(model) ** 2
        total = jnp.abs(data) ** 2
        return Regression(*(jnp.zeros(shells).at[shell].add(x) for x in (product, power, total)))

    return jax.lax.map(one, (observations.data, weight, rotation, shift))


def radial_transfer(regression: Regression) -> np.ndarray:
    """Transfer per shell, smoothed over three shells, never negative, its maximum one.

    Shells whose regression is within its own noise are drawn towards zero (positive-part
    shrinkage with the variance ``1 / (2 power)`` of a unit-noise regression).
    """
    product = np.asarray(regression.product, np.float64)
    power = np.asarray(regression.power, np.float64)
    kernel = np.array([0.25, 0.5, 0.25])
    product, power = (np.convolve(np.pad(x, 1, "edge"), kernel, "valid") for x in (product, power))
    seen = power > 1e-12 * power.max()
    slope = np.where(seen, product / np.where(seen, power, 1.0), 0.0)
    variance = np.where(seen, 0.5 / np.where(seen, power, 1.0), 0.0)
    square = np.maximum(slope, 0.0) ** 2
    kept = slope * np.maximum(0.0, 1 - variance / np.maximum(square, 1e-30))
    gain = np.where(square > 0, kept, 0.0)
    top = gain.max()
    return (gain / top if top > 0 else np.ones_like(gain)).astype(np.float32)


def noise_share(regression: Regression) -> np.ndarray:
    """Share of the particles' power that the reference does not explain, per shell.

    One minus the squared correlation of particles and reference in the shell: mean power
    estimates noise plus signal, this factor takes the signal out.

    Args:
        regression: sums of particles against the reference.
    """
    product, power, total = (
        np.asarray(x, np.float64) for x in (regression.product, regression.power, regression.total)
    )
    scale = power * total
    seen = scale > 0
    square = np.where(seen, np.maximum(product, 0) ** 2 / np.where(seen, scale, 1.0), 0.0)
    return (1 - np.clip(square, 0.0, 0.999)).astype(np.float32)


def apply_transfer(references: Float[Array, "c z y x"] | np.ndarray, gain: np.ndarray) -> Array:
    """References with the transfer folded in; shells beyond the measured ones are zero.

    Args:
        references: maps.
        gain: ``[s]``, one factor per shell.
    """
    return fourier.radial_filter(jnp.asarray(references), jnp.asarray(gain, jnp.float32))
