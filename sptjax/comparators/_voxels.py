"""Comparators of voxels, written as sums over all of Fourier space: what is missing is zero."""

import dataclasses
import math

import jax.numpy as jnp

from ._pair import (
    UNBOUNDED,
    Pair,
    PerFrequency,
    Scalar,
    correlation,
    cross,
    no_linear_weight,
    or_worst,
    power,
    root,
    signed,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CCC:
    """``ccc``: Pearson correlation of all voxels."""

    negative: bool = True
    linear_weight = no_linear_weight

    def score(self, pair: Pair) -> Scalar:
        """Correlation of everything but the means."""
        weight = jnp.where(pair.radius > 0, pair.count, 0)
        return signed(correlation(pair.a, pair.b, weight), self.negative, -1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dot:
    """``dot``: mean product of the voxels, means included.

    Attributes:
        normalize: the cosine of the angle between the volumes instead.
    """

    normalize: bool = False
    negative: bool = True
    linear_weight = no_linear_weight

    def score(self, pair: Pair) -> Scalar:
        """Mean product or cosine."""
        if self.normalize:
            return signed(correlation(pair.a, pair.b, pair.count), self.negative, -1.0)
        return signed(_voxel_mean(cross(pair.a, pair.b), pair), self.negative, UNBOUNDED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SqEuclidean:
    """``sqeuclidean``: minus the mean squared difference of the voxels.

    Attributes:
        normto: first scale the reference, and add a constant to it, for the smallest difference.
    """

    normto: bool = False
    linear_weight = no_linear_weight

    def score(self, pair: Pair) -> Scalar:
        """Minus the mean squared difference."""
        difference = pair.a - pair.b
        if self.normto:
            weight = jnp.where(pair.radius > 0, pair.count, 0)
            norm = jnp.sum(weight * power(pair.b))
            product = jnp.sum(weight * cross(pair.a, pair.b))
            scale = jnp.where(norm > 0, product / jnp.where(norm > 0, norm, 1), 0)
            fitted = pair.a - scale.astype(pair.b.dtype) * pair.b
            difference = jnp.where(pair.radius > 0, fitted, 0)
        return or_worst(-_voxel_mean(power(difference), pair), UNBOUNDED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CCCTomo:
    """``ccc.tomo``: cross-correlation at zero lag in standard deviations of the CCF volume.

    Attributes:
        norm: False gives the cross-correlation itself, ``sum a b`` over the voxels.
    """

    norm: bool = True
    negative: bool = True
    linear_weight = no_linear_weight

    def score(self, pair: Pair) -> Scalar:
        """Height of the CCF above its mean; its variance is ``sum |a* b|^2`` by Parseval."""
        if not self.norm:
            total = _voxel_mean(cross(pair.a, pair.b), pair) * pair.voxels
            return signed(total, self.negative, UNBOUNDED)
        weight = jnp.where(pair.radius > 0, pair.count, 0)
        scales = [root(jnp.sum(weight * power(x))) for x in (pair.a, pair.b)]
        a, b = (
            x / jnp.where(s > 0, s, 1).astype(x.dtype) for x, s in zip((pair.a, pair.b), scales)
        )
        size = pair.box**3
        variance = jnp.sum(weight * power(a) * power(b)) * (size / (size - 1))  # EMAN2's n - 1
        height = jnp.sum(weight * cross(a, b)) / jnp.where(variance > 0, root(variance), 1)
        found = jnp.where(variance > 0, height, jnp.nan)
        return signed(found, self.negative, -math.sqrt(size))


def _voxel_mean(product: PerFrequency, pair: Pair) -> Scalar:
    """Mean over the voxels, from the product of two transforms (Parseval)."""
    return jnp.sum(pair.count * product / pair.box**3) / pair.voxels
