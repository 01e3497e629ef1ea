"""The missing wedge with soft edges, fitted to the power of the particles by gradient.

A frequency at the signed distances ``d`` from the planes of the first and the last tilt (Fourier
voxels, positive inside) is sampled to the share

``w = P(d_1) P(d_2) + (1 - P(d_1)) (1 - P(d_2))``,  ``P(d) = Phi(d / softness)``,

``Phi`` the normal distribution: 1 inside and 0 in the wedge, alike for Friedel mates, and smooth
in both limits and the softness. The mean power of a stack is, at every frequency, exponential or
(of many particles) gamma distributed about

``a(ring) (w + e (1 - w))``

with ``a`` the power of signal and noise on the ring about the tilt axis, whatever made it, and
``e`` the residue in the wedge, whose logarithm is straight between three knots of ``|k|``. The
likelihood (Whittle 1953, Ark. Mat. 2:423) of a ring's power has its maximum in closed form, so
that the limits, the softness and the residue are left. A small share of the ring's power is added
to data and model: what is weaker counts as none.
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy import optimize

from . import _wedge_fit
from .wedge import Wedge, along_axis, estimate

# a Hann window's own blur of power, voxels, and how many neighbours it makes one of
WINDOW_VOX = 3**-0.5
_TOGETHER = (35 / 18) ** 3
_KNOTS = 3
_FLOOR = 0.02  # of the power outside
_LEAST_RESIDUE = 1e-4
_SOFTEST_VOX = 6.0
_SHARP_VOX = 1e-3
_FADING_VOX = 0.5
_UNITS = np.array([1.0, 1.0, 7.0] + [1.0] * _KNOTS)  # a degree is about a seventh of a voxel


class SoftWedge(eqx.Module):
    """Sampled range of tilts in degrees, and how soft its edges are; the beam is z."""

    min_deg: Float[Array, ""]
    max_deg: Float[Array, ""]
    soft_vox: Float[Array, ""]  # standard deviation of an edge, Fourier voxels
    axis: str = eqx.field(static=True, default="y")


class Power(eqx.Module):
    """Power of ``p`` frequencies across the tilt axis and at every height along it."""

    across: Float[Array, " p"]  # Fourier voxels
    beam: Float[Array, " p"]
    place: Float[Array, " p"]  # |k| between the lowest and the highest that are used, 0 to 1
    ring: Int[Array, " p"]
    power: Float[Array, " p"]  # with the floor
    count: Float[Array, " p"]  # values that are averaged in it
    rings: int = eqx.field(static=True)


def sampled_share(
    wedge: SoftWedge,
    across: Float[Array, "*p"],
    beam: Float[Array, "*p"],
    window_vox: float = 0.0,
) -> Float[Array, "*p"]:
    """Share to which frequencies are sampled, 0 to 1; differentiable.

    Args:
        wedge: its range and softness.
        across: frequency across the tilt axis and the beam (kx of an axis y), Fourier voxels.
        beam: frequency along the beam.
        window_vox: blur by a window that the particles were multiplied with, standard deviation.
    """
    width = jnp.sqrt(jnp.maximum(wedge.soft_vox, _SHARP_VOX) ** 2 + window_vox**2)
    low, high = jnp.radians(wedge.min_deg), jnp.radians(wedge.max_deg)
    past_first = beam * jnp.cos(low) - across * jnp.sin(low)
    before_last = across * jnp.sin(high) - beam * jnp.cos(high)
    first, last = (jax.scipy.special.ndtr(d / width) for d in (past_first, before_last))
    return first * last + (1 - first) * (1 - last)


def region(box: int, wedge: SoftWedge) -> np.ndarray:
    """Sampling of the particles, as :func:`sptjax.wedge.region` with these edges.

    Args:
        box: side of the particles, voxels.
        wedge: range and softness.

    Returns:
        float32 ``[n, n, n]``, centred; the zero frequency counts as sampled.
    """
    k = jnp.arange(box, dtype=jnp.float32) - box // 2
    beam, across = jnp.meshgrid(k, k, indexing="ij")
    plane = np.array(sampled_share(wedge, across, beam))
    plane[box // 2, box // 2] = 1
    return along_axis(plane, wedge.axis)


def measured(mean_power: np.ndarray, around: Wedge) -> Power:
    """What the likelihood needs of mean power.

    Args:
        mean_power: on a centred grid ``[n, n, n]``.
        around: about what is sampled; its axis counts.
    """
    grid = np.asarray(mean_power, np.float64)
    view = grid if around.axis == "y" else grid.transpose(0, 2, 1)
    box = len(view)
    rings, radius, _ = _wedge_fit.plane(box)
    k = np.arange(box) - box // 2
    half = (k > 0)[None, :] | ((k == 0)[None, :] & (k >= 0)[:, None])  # one of two Friedel mates
    parts = []
    for height, layer, used in _wedge_fit.layers(view):
        z, x = np.nonzero(used & half)
        count = np.full(len(z), 2.0 if height else 1.0)
        size = np.hypot(radius[z, x], height) / box
        ring = height * box + rings[z, x]
        parts.append((k[x], k[z], size, ring, layer[z, x], count))
    across, beam, size, ring, power, count = (np.concatenate(p) for p in zip(*parts))
    _, ring = np.unique(ring, return_inverse=True)
    place = (size - _wedge_fit.LOWEST) / (_wedge_fit.HIGHEST - _wedge_fit.LOWEST)
    float32 = [jnp.asarray(x, jnp.float32) for x in (across, beam, place, power / power.mean())]
    bare = Power(
        across=float32[0],
        beam=float32[1],
        place=float32[2],
        ring=jnp.asarray(ring, jnp.int32),
        power=float32[3],
        count=jnp.asarray(count, jnp.float32),
        rings=int(ring.max()) + 1,
    )
    limits = jnp.asarray([around.min_deg, around.max_deg, 0.0], jnp.float32)
    share = sampled_share(SoftWedge(*limits), bare.across, bare.beam, WINDOW_VOX)
    level = _on_rings(bare.count * bare.power, bare) / _on_rings(bare.count * share, bare)
    return eqx.tree_at(lambda p: p.power, bare, bare.power + _FLOOR * level[bare.ring])


def misfit(
    wedge: SoftWedge, residue: Float[Array, " k"], power: Power, window_vox: float = WINDOW_VOX
) -> Float[Array, ""]:
    """Negative log-likelihood per frequency, the power of every ring at its best.

    Args:
        wedge: range and softness, differentiable.
        residue: logarithm of the residue at the knots.
        power: of one particle or a stack.
        window_vox: blur by the window of the particles (default: that of
            :func:`sptjax.wedge.accumulate_power`).
    """
    shape = _shape(wedge, residue, power, window_vox)
    total, number = (
        _on_rings(power.count * power.power / shape, power),
        _on_rings(power.count, power),
    )
    level = jnp.log(jnp.maximum(total / number, 1e-30))
    return ((number * level).sum() + (power.count * jnp.log(shape)).sum()) / number.sum()


def _on_rings(values: Float[Array, " p"], power: Power) -> Float[Array, " r"]:
    return jnp.zeros(power.rings).at[power.ring].add(values)


def _shape(wedge: SoftWedge, residue: Array, power: Power, window_vox: float) -> Float[Array, " p"]:
    """Expected power relative to that of a sampled frequency of the ring, and the floor."""
    share = sampled_share(wedge, power.across, power.beam, window_vox)
    knots = jnp.linspace(0.0, 1.0, residue.shape[0])
    return _FLOOR + share + (1 - share) * jnp.exp(jnp.interp(power.place, knots, residue))


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted wedge and the standard errors of its first and last tilt, by noise alone.

    Particles that fade towards their last tilts hold less signal there: they are as if
    multiplied by their sampling. Where edges are sharp, what is left in the wedge is noise.

    A window is not quite Gaussian: beyond these errors, limits are right within a degree and
    softness within a quarter of a voxel (box 32).
    """

    wedge: SoftWedge
    error_deg: np.ndarray  # [2]

    @property
    def fades(self) -> bool:
        """Whether the edges are soft enough for particles to count as multiplied."""
        return float(self.wedge.soft_vox) > _FADING_VOX

    def describe(self) -> str:
        """One line for logs."""
        w, (first, last) = self.wedge, self.error_deg
        return (
            f"tilts {float(w.min_deg):.1f} ± {first:.2g} to {float(w.max_deg):.1f} ± {last:.2g}"
            f" degrees about {w.axis}, edges {float(w.soft_vox):.2f} voxels soft"
        )


def fit_wedge(mean_power: np.ndarray) -> Fitted | None:
    """Range and softness of largest likelihood, from where :func:`sptjax.wedge.estimate` starts.

    Args:
        mean_power: mean or sum of ``|F|^2`` over a stack, or of one particle, tapered,
            ``[n, n, n]``, centred (see :func:`sptjax.wedge.estimate`).

    Returns:
        None if no wedge is found.

    Raises:
        InputError: as :func:`sptjax.wedge.estimate`.
    """
    begin = estimate(mean_power)
    if begin.wedge is None:
        return None
    power = measured(mean_power, begin.wedge)
    residue = np.log(np.clip(1 - begin.contrast, 0.01, 0.5))
    values = np.array([begin.wedge.min_deg, begin.wedge.max_deg, 0.5, *[residue] * _KNOTS])
    bounds = np.array(
        [(-90, 90)] * 2 + [(0, _SOFTEST_VOX)] + [(np.log(_LEAST_RESIDUE), 0)] * _KNOTS
    )

    def slope(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = _slope(jnp.asarray(x / _UNITS, jnp.float32), power, begin.axis)
        return float(value), np.asarray(gradient, np.float64) / _UNITS

    best = optimize.minimize(
        slope, values * _UNITS, jac=True, method="L-BFGS-B", bounds=bounds * _UNITS[:, None],
        options={"ftol": 1e-9, "gtol": 1e-7},
    )  # fmt: skip
    values = best.x / _UNITS
    free = (values > bounds[:, 0]) & (values < bounds[:, 1])
    found = jnp.asarray(values, jnp.float32)
    return Fitted(_parts(found, begin.axis)[0], _errors(found, free, power, begin.axis))


def _parts(values: Float[Array, " v"], axis: str) -> tuple[SoftWedge, Float[Array, " k"]]:
    return SoftWedge(values[0], values[1], values[2], axis), values[3:]


def _misfit_of(values: Float[Array, " v"], power: Power, axis: str) -> Float[Array, ""]:
    return misfit(*_parts(values, axis), power)


_slope = eqx.filter_jit(jax.value_and_grad(_misfit_of))
_curvature = eqx.filter_jit(jax.hessian(_misfit_of))


def _errors(values: Float[Array, " v"], free: np.ndarray, power: Power, axis: str) -> np.ndarray:
    """Standard errors of the limits: curvature, scatter of the power, overlap by the window."""
    shape = _shape(*_parts(values, axis), power, WINDOW_VOX)
    total, number = (_on_rings(x, power) for x in (power.count * power.power / shape, power.count))
    ratio = power.power / (shape * (total / number)[power.ring])
    scatter = float((power.count * (ratio - 1) ** 2).mean())
    curvature = np.asarray(_curvature(values, power, axis), np.float64)[np.ix_(free, free)]
    inverse = np.zeros((len(free),) * 2)
    inverse[np.ix_(free, free)] = np.linalg.pinv(curvature, hermitian=True)
    variance = np.diag(inverse)[:2] * scatter * _TOGETHER / float(power.count.sum())
    return np.sqrt(np.maximum(variance, 0))
