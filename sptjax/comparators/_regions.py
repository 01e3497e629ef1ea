"""Correlations inside the region of Fourier space that was sampled."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex

from .._errors import InputError
from ._pair import (
    UNBOUNDED,
    Pair,
    PerFrequency,
    Scalar,
    check_band,
    correlation,
    cross,
    edge,
    or_worst,
    power,
    root,
    shell_below,
    signed,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CCCTomoThresh:
    """``ccc.tomo.thresh``: correlation inside the region that both volumes sample.

    Attributes:
        sigmaimg: with ``compat``, smallest amplitude of the particle that counts, in standard
            deviations of the real and imaginary parts of its transform.
        sigmawith: the same of the reference.
        compat: find the region by these thresholds, frequency zero included.
    """

    sigmaimg: float = 0.5
    sigmawith: float = 0.5
    negative: bool = True
    compat: bool = False

    def score(self, pair: Pair) -> Scalar:
        """Correlation inside the region."""
        if not self.compat:
            return _overlap_score(pair, jnp.ones_like(pair.radius), self.negative)
        kept = (jnp.abs(pair.a) >= self.sigmaimg * _deviation(pair.a)) & (
            jnp.abs(pair.b) >= self.sigmawith * _deviation(pair.b)
        )
        return _kept_score(pair, kept, jnp.ones_like(pair.radius), self.negative)

    def linear_weight(self, k_norm: PerFrequency, box: int, apix: float) -> PerFrequency | None:
        """One everywhere."""
        del box, apix
        return None if self.compat or not self.negative else jnp.ones_like(k_norm)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FSCTomoAuto:
    """``fsc.tomo.auto``: correlation inside the sampled region, every shell weighing the same.

    Frequencies are weighted by ``1 / |k|^2`` in the shells ``pmin <= floor |k| <= pmax``.

    Attributes:
        sigmaimgval: with ``compat``, smallest squared amplitude of the particle that counts, in
            variances of the amplitude in its shell.
        sigmawithval: the same of the reference.
        minres: coarsest resolution, angstrom, in place of ``pmin`` unless 0.
        maxres: finest resolution, angstrom, in place of ``pmax`` unless 0.
        pmin: first shell, Fourier pixels.
        pmax: last shell, Fourier pixels; half the box if none.
        compat: find the region by these thresholds.
    """

    sigmaimgval: float = 0.5
    sigmawithval: float = 0.5
    minres: float = 0.0
    maxres: float = 0.0
    pmin: int = 3
    pmax: int | None = None
    negative: bool = True
    compat: bool = False

    def __post_init__(self):
        """Refuse an empty band."""
        check_band(self.minres, self.maxres)
        if self.pmax is not None and self.pmax < self.pmin:
            raise InputError(f"pmax is below pmin: {self.pmax} < {self.pmin}.")

    def score(self, pair: Pair) -> Scalar:
        """Weighted correlation inside the region."""
        weight = self._weight(pair.radius, pair.box, pair.apix)
        if not self.compat:
            return _overlap_score(pair, weight, self.negative)
        kept = jnp.ones_like(pair.distinct)
        for x, share in ((pair.a, self.sigmaimgval), (pair.b, self.sigmawithval)):
            kept &= power(x) >= share * _shell_variance(jnp.abs(x), pair)
        return _kept_score(pair, kept, weight, self.negative)

    def linear_weight(self, k_norm: PerFrequency, box: int, apix: float) -> PerFrequency | None:
        """``1 / |k|^2`` inside the band."""
        return None if self.compat or not self.negative else self._weight(k_norm, box, apix)

    def _weight(self, radius: PerFrequency, box: int, apix: float) -> PerFrequency:
        low, high = self.pmin, box // 2 if self.pmax is None else self.pmax
        if self.minres > 0:
            low = math.floor(apix * box / self.minres + 1e-6)
        if self.maxres > 0:
            high = math.ceil(apix * box / self.maxres - 1e-6)
        shell = shell_below(radius)
        inside = (shell >= low) & (shell <= high) & (radius > 0)
        return jnp.where(inside, 1 / jnp.where(inside, radius * radius, 1), 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FSCTomo:
    """``fsc.tomo``: correlation inside the known wedges and a band of resolution.

    Attributes:
        minres: coarsest resolution, angstrom; 0 for no limit.
        maxres: finest resolution, angstrom; 0 for no limit.
        sigmas: with ``compat``, how far an amplitude must exceed those in the volume's own
            missing region (their mean plus so many standard deviations).
        compat: find the region by this threshold, frequency zero included. EMAN2 reads the mean
            and the standard deviation from the header; here they are taken from the volumes.
    """

    minres: float = 0.0
    maxres: float = 0.0
    sigmas: float = 5.0
    negative: bool = True
    compat: bool = False

    def __post_init__(self):
        """Refuse an empty band."""
        check_band(self.minres, self.maxres)

    def score(self, pair: Pair) -> Scalar:
        """Correlation inside the region."""
        weight = self._weight(pair.radius, pair.box, pair.apix)
        if not self.compat:
            return _overlap_score(pair, weight, self.negative)
        kept = jnp.ones_like(pair.distinct)
        for x, missing in ((pair.a, pair.missing_a), (pair.b, pair.missing_b)):
            amplitude = jnp.abs(x)
            mean, variance = _moments(amplitude, missing)
            kept &= amplitude > mean + self.sigmas * jnp.sqrt(variance)
        return _kept_score(pair, kept, weight, self.negative)

    def linear_weight(self, k_norm: PerFrequency, box: int, apix: float) -> PerFrequency | None:
        """One inside the band."""
        return None if self.compat or not self.negative else self._weight(k_norm, box, apix)

    def _weight(self, radius: PerFrequency, box: int, apix: float) -> PerFrequency:
        low = edge(self.minres, box, apix)
        high = edge(self.maxres, box, apix) or math.inf
        return ((radius >= low - 1e-4) & (radius <= high + 1e-4)).astype(radius.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matched:
    """``matched``: matched filter of :mod:`sptjax.score`, in standard deviations of the noise.

    The noise has unit power per coefficient on the ball, where data and sampling are to be
    divided by its power first, and unit variance per voxel between volumes.
    """

    def score(self, pair: Pair) -> Scalar:
        """``sum Re a* b / sqrt(sum W |b|^2)`` with ``a`` as observed, over the sampled region."""
        weight = pair.count * pair.overlap
        norm = root(jnp.sum(weight * power(pair.b)))
        product = jnp.sum(weight * cross(pair.estimate, pair.b))
        found = jnp.where(norm > 0, product / jnp.where(norm > 0, norm, 1), jnp.nan)
        return or_worst(found, UNBOUNDED)

    def linear_weight(self, k_norm: PerFrequency, box: int, apix: float) -> PerFrequency | None:
        """One everywhere, for data and sampling divided by the noise power."""
        del box, apix
        return jnp.ones_like(k_norm)


def _overlap_score(pair: Pair, weight: PerFrequency, negative: bool) -> Scalar:
    """Correlation inside the sampled region with a weight per frequency."""
    found = correlation(pair.estimate, pair.b, weight * pair.count * pair.overlap)
    return signed(found, negative, -1.0)


def _kept_score(
    pair: Pair, kept: Bool[Array, " k"], weight: PerFrequency, negative: bool
) -> Scalar:
    """Correlation of the kept coefficients, each stored one counting once (EMAN2)."""
    found = correlation(pair.a, pair.b, jnp.where(kept, weight, 0))
    beyond_means = jnp.any(kept & (weight > 0) & (pair.radius > 0))
    return signed(jnp.where(beyond_means, found, jnp.nan), negative, -1.0)


def _deviation(x: Complex[Array, " k"]) -> Scalar:
    """Sample standard deviation of all real and imaginary parts."""
    return jnp.std(jnp.stack([x.real, x.imag]), ddof=1)


def _moments(values: PerFrequency, where: Bool[Array, " k"]) -> tuple[Scalar, Scalar]:
    """Mean and variance of some of the values, 0 and 0 of none."""
    total = jnp.maximum(where.sum(), 1).astype(values.dtype)
    mean = jnp.sum(jnp.where(where, values, 0)) / total
    return mean, jnp.sum(jnp.where(where, (values - mean) ** 2, 0)) / total


def _shell_variance(amplitude: PerFrequency, pair: Pair) -> PerFrequency:
    """Variance of the amplitude in the shell ``floor |k|`` of every coefficient."""
    shell = shell_below(pair.radius).astype(jnp.int32)
    shells = 2 * pair.box
    distinct = pair.distinct.astype(amplitude.dtype)
    total = jnp.maximum(jax.ops.segment_sum(distinct, shell, shells), 1)
    mean = jax.ops.segment_sum(distinct * amplitude, shell, shells) / total
    square = distinct * (amplitude - mean[shell]) ** 2
    return (jax.ops.segment_sum(square, shell, shells) / total)[shell]
