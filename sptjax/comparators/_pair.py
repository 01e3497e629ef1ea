"""What is compared, and the sums over it that the comparators share."""

from typing import Protocol

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float

from .._errors import InputError

Scalar = Float[Array, ""]
PerFrequency = Float[Array, " k"]

UNBOUNDED = -1e30  # the worst of a score without a lower bound


class Pair(eqx.Module):
    """Coefficients of a particle and a reference at the same frequencies.

    Attributes:
        a: particle as observed, 0 where nothing was sampled.
        b: reference.
        estimate: ``a`` divided by its sampling, 0 where nothing was sampled.
        overlap: weight of the sampled region, 0 outside it and at frequency zero.
        missing_a: where the particle is known to be empty.
        missing_b: where the reference is known to be empty.
        count: coefficients of the full transform that each one stands for (1 or 2).
        distinct: False for the Friedel partners that EMAN2's radial statistics leave out.
        radius: ``|k|``, Fourier pixels.
        voxels: number of voxels compared.
        box: edge of the volumes, voxels.
        apix: voxel size, angstrom.
    """

    a: Complex[Array, " k"]
    b: Complex[Array, " k"]
    estimate: Complex[Array, " k"]
    overlap: PerFrequency
    missing_a: Bool[Array, " k"]
    missing_b: Bool[Array, " k"]
    count: PerFrequency
    distinct: Bool[Array, " k"]
    radius: PerFrequency
    voxels: Scalar
    box: int = eqx.field(static=True)
    apix: float = eqx.field(static=True)


class Comparator(Protocol):
    """A named comparator: a frozen record of its keys."""

    def score(self, pair: Pair) -> Scalar:
        """Score of a pair, the worst of the range if it is not defined."""
        ...

    def linear_weight(self, k_norm: PerFrequency, box: int, apix: float) -> PerFrequency | None:
        """Weight of every ``|k|`` if the score is a correlation with such weights, else None.

        With weight ``u`` and sampling ``W`` the score is ``sum u W Re a* b`` over
        ``sqrt(sum u W |a|^2 sum u W |b|^2)`` (``a`` divided by its sampling).
        """
        ...


def no_linear_weight(
    self: Comparator, k_norm: PerFrequency, box: int, apix: float
) -> PerFrequency | None:
    """None: the score is no correlation with a weight per frequency."""
    del self, k_norm, box, apix


def power(x: Complex[Array, " k"]) -> PerFrequency:
    """Squared amplitudes."""
    return x.real**2 + x.imag**2


def cross(a: Complex[Array, " k"], b: Complex[Array, " k"]) -> PerFrequency:
    """``Re a* b``."""
    return a.real * b.real + a.imag * b.imag


def root(x: Scalar) -> Scalar:
    """Square root whose derivative at 0 is 0."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)


def or_worst(value: Scalar, worst: float) -> Scalar:
    """The value, or the worst if it is NaN or infinite."""
    return jnp.where(jnp.isfinite(value), value, worst)


def signed(value: Scalar, negative: bool, worst: float) -> Scalar:
    """The score with the sign that ``negative`` asks for."""
    return or_worst(value if negative else -value, worst)


def weighted_mean(values: Float[Array, " m"], weight: Float[Array, " m"]) -> Scalar:
    """Weighted mean, NaN without weight."""
    total = jnp.sum(weight)
    return jnp.where(total > 0, jnp.sum(weight * values) / jnp.where(total > 0, total, 1), jnp.nan)


def correlation(a: Complex[Array, " k"], b: Complex[Array, " k"], weight: PerFrequency) -> Scalar:
    """``sum w Re a* b / sqrt(sum w |a|^2 sum w |b|^2)``, NaN if a norm is zero."""
    norm = root(jnp.sum(weight * power(a))) * root(jnp.sum(weight * power(b)))
    product = jnp.sum(weight * cross(a, b))
    return jnp.where(norm > 0, product / jnp.where(norm > 0, norm, 1), jnp.nan)


def shell_below(radius: PerFrequency) -> PerFrequency:
    """``floor |k|``, safe against rounding."""
    return jnp.floor(radius + 1e-4)


def edge(resolution: float, box: int, apix: float) -> float:
    """Resolution in angstrom as Fourier pixels; 0, no limit, stays 0."""
    return apix * box / resolution if resolution > 0 else 0.0


def check_band(minres: float, maxres: float) -> None:
    """Raise InputError unless the resolutions (angstrom, 0 for no limit) span a band."""
    if minres < 0 or maxres < 0:
        raise InputError(f"minres and maxres cannot be negative, got {minres:g} and {maxres:g}.")
    if 0 < minres <= maxres:
        raise InputError(
            f"minres is the coarser end of the band: {minres:g} A must exceed maxres {maxres:g} A."
        )
