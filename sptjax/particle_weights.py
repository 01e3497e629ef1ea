"""Scale and B-factor of every particle, from its regression on the map it was aligned to.

A whitened particle (see :mod:`sptjax.score`) is taken as

``p(k) = g(|k|) w(k) G(k) + noise``,  ``g(q) = s exp(-B q^2 / 4)``,

with ``s`` how much of the signal it has (thickness of the ice, dose, occupancy) and ``B`` in
square angstrom how fast that falls off (radiation damage, motion, errors of the pose), both
relative to the mean of the particles: RELION's scale correction and CTF B-factor, M's weights.
All that counts are two sums per shell (:func:`sptjax.transfer.regress`). For a given ``B`` the
best ``s`` has a closed form; ``B`` follows by Newton's method on what is left.

Weak particles tell neither. So ``s`` and ``B`` are normal in the population, whose means and
spreads are those of largest evidence (empirical Bayes; Laplace's approximation about each
particle): where particles do not differ the spreads vanish and all weigh the same.

An average of largest likelihood is then ``sum g d / sum g^2`` (``gain`` of :mod:`sptjax.average`).
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import optimize

from ._chunk import padded_batches
from .align import View, stack_tables
from .comparators import Matched
from .transfer import Regression, radial_transfer, regress

UNIT_A2 = 100.0  # of B inside
_LEAST = np.array([1e-2, 2e-2])  # spreads that count as none: of the scale, of B in its unit
_MOST = np.array([2.0, 20.0])
_BEGIN = np.array([0.3, 1.0])
_ROUNDS, _STEPS = 8, 8
_BATCH = 32
_GRID = np.linspace(-3, 3, 13)  # standard deviations where Newton may begin


class Population(eqx.Module):
    """Normal distributions of scale and B (in ``UNIT_A2``): ``[scale, B]``."""

    mean: Float[Array, "2"]
    spread: Float[Array, "2"]


@dataclass(frozen=True, eq=False)
class Strengths:
    """Signal of ``n`` particles relative to their mean."""

    scale: np.ndarray  # [n]
    b_factor: np.ndarray  # [n], square angstrom
    spread: tuple[float, float]  # standard deviations in the population

    @property
    def table(self) -> np.ndarray:
        """Scale and B-factor, float32 ``[n, 2]``."""
        return np.stack([self.scale, self.b_factor], 1).astype(np.float32)

    def gain(self, box: int, apix: float) -> np.ndarray:
        """Amplitude at the shells 0 ... ``box // 2``, float32 ``[n, s]``.

        Args:
            box: of the particles, voxels.
            apix: their voxel size, angstrom.
        """
        fall = np.exp(-self.b_factor[:, None] * _quarter_square(box // 2 + 1, box, apix)[None])
        return (self.scale[:, None] * fall).astype(np.float32)


def _quarter_square(shells: int, box: int, apix: float) -> np.ndarray:
    """``q^2 / 4`` at the shells, 1 / square angstrom."""
    return (np.arange(shells) / (box * apix)) ** 2 / 4


def regress_view(
    view: View, rows: np.ndarray, rotation: np.ndarray, shift: np.ndarray, classes: np.ndarray
) -> Regression:
    """Regression of particles on the references of their classes, ``[n, s]``.

    Args:
        view: particles and references at one sampling.
        rows: which particles ``[n]``.
        rotation: their poses ``[n, 3, 3]``, particle to reference.
        shift: raw voxels ``[n, 3]``.
        classes: their references ``[n]``.
    """
    particles, maps = view.particles, jnp.asarray(view.references, jnp.float32)
    vectors = jnp.asarray(particles.vectors, jnp.float32)
    tables = stack_tables(maps, float(np.linalg.norm(particles.vectors[-1])), 2)
    out = np.zeros((3, len(rows), particles.box // 2 + 1), np.float32)
    for c in np.unique(classes):
        table = eqx.tree_at(lambda t: (t.real, t.imag), tables, (tables.real[c], tables.imag[c]))
        for here, real in padded_batches(np.flatnonzero(classes == c), _BATCH):
            part = regress(
                table,
                particles.observations(rows[here], Matched()),
                vectors,
                jnp.asarray(rotation[here], jnp.float32),
                jnp.asarray(shift[here] / view.scale, jnp.float32),
                box=particles.box,
            )
            out[:, here[:real]] = np.stack([np.asarray(x)[:real] for x in jax.tree.leaves(part)])
    return Regression(*(jnp.asarray(x) for x in out))


def fit_strengths(regression: Regression, box: int, apix: float) -> Strengths:
    """Scale and B of every particle, drawn towards those of all by how little it tells.

    What all particles have in common of a fall-off or transfer is taken out first.

    Args:
        regression: sums of ``n`` particles, ``[n, s]``.
        box: of these particles, voxels.
        apix: their voxel size, angstrom.
    """
    product, power = (np.asarray(x, np.float64) for x in (regression.product, regression.power))
    common = radial_transfer(regression.summed())
    product, power = product * common, power * common**2
    whole = product.sum() / max(power.sum(), 1e-30)
    if not whole > 0:  # no signal that could differ
        flat = np.ones(len(product))
        return Strengths(flat, 0 * flat, (0.0, 0.0))
    sums = (jnp.asarray(product * whole, jnp.float32), jnp.asarray(power * whole**2, jnp.float32))
    fall = jnp.asarray(UNIT_A2 * _quarter_square(product.shape[1], box, apix), jnp.float32)
    theta = np.concatenate([[1.0, 0.0], np.log(_BEGIN)])
    limits = [(0.2, 5.0), (-20.0, 20.0), *zip(np.log(_LEAST), np.log(_MOST))]
    for _ in range(_ROUNDS):
        values = _most_likely(*sums, fall, _population(jnp.asarray(theta, jnp.float32)))
        local = _expansion(*sums, fall, values)

        def slope(x: np.ndarray, local: tuple = local) -> tuple[float, np.ndarray]:
            value, gradient = _evidence_slope(jnp.asarray(x, jnp.float32), *local)
            return float(value), np.asarray(gradient, np.float64)

        theta = optimize.minimize(slope, theta, jac=True, method="L-BFGS-B", bounds=limits).x
    people = _population(jnp.asarray(theta, jnp.float32))
    values = np.asarray(_most_likely(*sums, fall, people), np.float64)
    mean, spread = np.asarray(people.mean, np.float64), np.asarray(people.spread, np.float64)
    spread = np.where(spread > 1.01 * _LEAST, spread, 0.0) / [mean[0], 1.0]
    return Strengths(
        values[:, 0] / mean[0],
        UNIT_A2 * (values[:, 1] - mean[1]),
        (float(spread[0]), float(UNIT_A2 * spread[1])),
    )


def _population(theta: Float[Array, "4"]) -> Population:
    return Population(theta[:2], jnp.exp(theta[2:]))


def misfit(
    value: Float[Array, "2"],
    product: Float[Array, " s"],
    power: Float[Array, " s"],
    fall: Float[Array, " s"],
) -> Float[Array, ""]:
    """Negative log-likelihood of (scale, B) of one particle, but for a constant.

    Args:
        value: scale, and B in ``UNIT_A2``.
        product: of its regression.
        power: of its regression.
        fall: ``UNIT_A2 q^2 / 4`` at the shells.
    """
    gain = value[0] * jnp.exp(-value[1] * fall)
    return (gain * gain * power - 2 * gain * product).sum()


def _best_scale(b: Array, product: Array, power: Array, fall: Array, people: Population) -> Array:
    """Scale of largest posterior for a given B."""
    gain, sharp = jnp.exp(-b * fall), 0.5 / people.spread[0] ** 2
    above = (gain * product).sum() + sharp * people.mean[0]
    return jnp.maximum(above / ((gain * gain * power).sum() + sharp), 0.0)


def _of_b(b: Array, product: Array, power: Array, fall: Array, people: Population) -> Array:
    """Negative log-posterior of B at the best scale."""
    value = jnp.stack([_best_scale(b, product, power, fall, people), b])
    prior = 0.5 * (((value - people.mean) / people.spread) ** 2).sum()
    return misfit(value, product, power, fall) + prior


@eqx.filter_jit
def _most_likely(product: Array, power: Array, fall: Array, people: Population) -> Array:
    """(scale, B) of every particle, ``[n, 2]``: the best of a grid of B, then Newton's steps."""
    grid = people.mean[1] + people.spread[1] * jnp.asarray(_GRID, jnp.float32)

    def one(own_product: Array, own_power: Array) -> Array:
        known = (own_product, own_power, fall, people)
        objective = lambda b: _of_b(b, *known)  # noqa: E731
        slope, bend = jax.grad(objective), jax.grad(jax.grad(objective))

        def step(_: int, b: Array) -> Array:
            move = -slope(b) / jnp.maximum(bend(b), 0.1 / people.spread[1] ** 2)
            tried = b + jnp.clip(move, -people.spread[1], people.spread[1])
            return jnp.where(objective(tried) < objective(b), tried, b)

        begin = grid[jnp.argmin(jax.vmap(objective)(grid))]
        best = jax.lax.fori_loop(0, _STEPS, step, begin)
        return jnp.stack([_best_scale(best, *known), best])

    return jax.vmap(one)(product, power)


@eqx.filter_jit
def _expansion(product: Array, power: Array, fall: Array, values: Array) -> tuple[Array, Array]:
    """Information ``F`` about (scale, B) and ``F`` times the most likely values, at ``values``."""

    def one(value: Array, own_product: Array, own_power: Array) -> tuple[Array, Array]:
        gain = jnp.exp(-value[1] * fall)
        sensitivity = jnp.stack([gain, -value[0] * fall * gain])
        weighed = sensitivity * own_power[None]
        information = 2 * (sensitivity[:, None] * weighed[None]).sum(-1)
        slope = jax.grad(misfit)(value, own_product, own_power, fall)
        return information, (information * value[None]).sum(1) - slope

    return jax.vmap(one)(values, product, power)


def _evidence(theta: Array, information: Array, pull: Array) -> Float[Array, ""]:
    """Minus the log of the evidence of a population, the likelihoods being normal; per particle.

    With ``z`` the most likely values, ``F`` their information and ``T`` the prior covariance,
    ``z`` is normal about the mean with covariance ``T + 1 / F``. Written without ``1 / F``.
    """
    people = _population(theta)
    mean, spread = people.mean, people.spread

    def one(own: Array, own_pull: Array) -> Array:
        along = (own * mean[None]).sum(1)
        rest = spread * (own_pull - along)
        scaled = spread[:, None] * own * spread[None]
        a, b, d = 1 + scaled[0, 0], scaled[0, 1], 1 + scaled[1, 1]
        det = a * d - b * b
        square = (d * rest[0] ** 2 - 2 * b * rest[0] * rest[1] + a * rest[1] ** 2) / det
        return 0.5 * ((mean * along).sum() + jnp.log(det) - square) - (mean * own_pull).sum()

    return jax.vmap(one)(information, pull).mean()


_evidence_slope = eqx.filter_jit(jax.value_and_grad(_evidence))
