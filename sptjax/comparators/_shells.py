"""Comparators that look at every resolution shell: Fourier shell correlation and phases."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ._pair import (
    Pair,
    PerFrequency,
    Scalar,
    check_band,
    cross,
    edge,
    no_linear_weight,
    or_worst,
    power,
    shell_below,
    weighted_mean,
)

SNR_LIMIT = 0.99  # largest squared correlation from which a signal-to-noise ratio is read


@dataclasses.dataclass(frozen=True, kw_only=True)
class FRC:
    """``frc``: Fourier shell correlation averaged over the shells 0 ... n / 2 - 1.

    Shells without power are left out. The band has soft edges: ``(1 + tanh(5 (i - p) / p)) / 2``
    at ``p = pmin`` and ``(1 - tanh(i - p)) / 2`` at ``p = pmax``.

    Attributes:
        sweight: weight a shell by the number of its sampled frequencies.
        ampweight: weight a shell by the mean amplitude of the reference.
        minres: coarsest resolution, angstrom; 0 for no limit.
        maxres: finest resolution, angstrom; 0 for no limit.
        pmin: lower edge in Fourier pixels in place of ``minres``.
        pmax: upper edge in Fourier pixels in place of ``maxres``.
    """

    sweight: bool = True
    ampweight: bool = False
    minres: float = 200.0
    maxres: float = 8.0
    pmin: float | None = None
    pmax: float | None = None
    linear_weight = no_linear_weight

    def __post_init__(self):
        """Refuse an empty band."""
        check_band(self.minres, self.maxres)

    def score(self, pair: Pair) -> Scalar:
        """Weighted mean over the shells."""
        curve, members = _shell_correlation(pair)
        low = edge(self.minres, pair.box, pair.apix) if self.pmin is None else self.pmin
        high = edge(self.maxres, pair.box, pair.apix) if self.pmax is None else self.pmax
        shells = jnp.arange(curve.shape[0], dtype=curve.dtype)
        weight = jnp.where(jnp.isfinite(curve), _soft_band(shells, low, high), 0)
        if self.sweight:
            weight = weight * members
        if self.ampweight:
            weight = weight * _shell_amplitude(pair)
        return or_worst(weighted_mean(jnp.nan_to_num(curve), weight), -1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """``phase``: minus the mean absolute phase difference, radians.

    Over the sampled frequencies below shell n / 2, with the soft band of ``frc``. EMAN2 rounds
    every angle to a table of 2001 cosines (about 1e-3 of the mean).

    Attributes:
        snrweight: weight by the signal-to-noise ratio of the shell, ``c^2 / (1 - c^2)`` from the
            correlation ``c`` of particle and reference in it. (EMAN2 takes it from a CTF model.)
        ampweight: weight by the amplitude of the reference.
        minres: coarsest resolution, angstrom; 0 for no limit.
        maxres: finest resolution, angstrom; 0 for no limit.
        compat: count both Friedel partners on the plane kx = 0 and the others once.
    """

    snrweight: bool = False
    ampweight: bool = False
    minres: float = 500.0
    maxres: float = 10.0
    compat: bool = False
    linear_weight = no_linear_weight

    def __post_init__(self):
        """Refuse an empty band."""
        check_band(self.minres, self.maxres)

    def score(self, pair: Pair) -> Scalar:
        """Minus the weighted mean of the absolute differences."""
        product = pair.estimate * jnp.conj(pair.b)
        length = jnp.abs(product)
        known = (pair.overlap > 0) & (length > 0)
        unit = product / jnp.where(known, length, 1).astype(product.dtype)
        angle = jnp.arctan2(jnp.abs(unit.imag), jnp.where(known, unit.real, 1))
        shell = shell_below(pair.radius)
        band = _soft_band(
            shell, edge(self.minres, pair.box, pair.apix), edge(self.maxres, pair.box, pair.apix)
        )
        weight = jnp.where(known & (shell < pair.box // 2), band * pair.overlap, 0)
        if not self.compat:
            weight = weight * pair.count
        if self.ampweight:
            weight = weight * jnp.abs(pair.b)
        if self.snrweight:
            curve, _ = _shell_correlation(pair)
            square = jnp.minimum(jnp.nan_to_num(curve) ** 2, SNR_LIMIT)
            ratio = lax.stop_gradient(square / (1 - square))
            nearest = jnp.minimum(_nearest_shell(pair.radius), ratio.shape[0] - 1)
            weight = weight * ratio[nearest]
        return or_worst(-weighted_mean(angle, weight), -math.pi)


def _nearest_shell(radius: PerFrequency) -> Int[Array, " k"]:
    return jnp.rint(radius).astype(jnp.int32)


def _shell_sum(values: PerFrequency, pair: Pair) -> Float[Array, " s"]:
    """Sum over the shells ``round |k|`` = 0 ... n / 2 - 1."""
    last = pair.box // 2  # collects the rest
    shell = jnp.minimum(_nearest_shell(pair.radius), last)
    return jax.ops.segment_sum(values, shell, last + 1)[:last]


def _shell_correlation(pair: Pair) -> tuple[Float[Array, " s"], Float[Array, " s"]]:
    """Correlation of every shell inside the overlap (NaN without power), and its sampled size."""
    weight = pair.count * pair.overlap
    product = _shell_sum(weight * cross(pair.estimate, pair.b), pair)
    powers = [_shell_sum(weight * power(x), pair) for x in (pair.estimate, pair.b)]
    full = (powers[0] > 0) & (powers[1] > 0)
    roots = [jnp.sqrt(jnp.where(full, p, 1)) for p in powers]
    curve = jnp.where(full, product / (roots[0] * roots[1]), jnp.nan)
    return curve, _shell_sum(jnp.where(pair.overlap > 0, pair.count, 0), pair)


def _shell_amplitude(pair: Pair) -> Float[Array, " s"]:
    """Mean amplitude of the reference in every shell, inside the overlap."""
    seen = jnp.where(pair.overlap > 0, pair.count, 0)
    total = jnp.maximum(_shell_sum(seen, pair), 1)
    return _shell_sum(seen * jnp.abs(pair.b), pair) / total


def _soft_band(shell: Float[Array, " m"], low: float, high: float) -> Float[Array, " m"]:
    """Weight that rises at ``low`` and falls at ``high`` Fourier pixels; 0 switches a side off."""
    rise = (jnp.tanh(5 * (shell - low) / low) + 1) / 2 if low > 0 else jnp.ones_like(shell)
    fall = (1 - jnp.tanh(shell - high)) / 2 if high > 0 else jnp.ones_like(shell)
    return rise * fall
