"""Curvatures of modes from the likelihood around them, where it is no parabola.

Below a score of about ten the likelihood of a pose falls more slowly than the parabola at its
maximum. What counts is its second moment about the maximum,

``C = int L(s(x)) x x^T dx / int L(s(x)) dx``,

with ``x`` in standard deviations that are expected. ``L`` is that of a particle whose amplitude is
known and of white noise, as in the curvature: what the noise really is enters the covariance
afterwards. The integral is done by importance sampling
(:func:`second_moments`): poses drawn from a gaussian that is somewhat wider than the covariance
known so far, weighted by ``L`` over the density they were drawn from. Twice, because a first
gaussian that is much too narrow misses the tails. With few poses that count, the estimate is drawn
towards the covariance it began with. ``C^-1`` takes the place of the curvature.
"""

from collections.abc import Callable

import numpy as np
from scipy.stats import chi, special_ortho_group

from ._posterior import Linear, moved_prior

CLEAR = 10.0  # scores above which the curvature at the maximum will do
PASSES = 2
FRAMES = 11  # of 12 poses each, in a pass
WIDER = 1.5  # standard deviations of the gaussian over those known so far
KNOWN = 12.0  # poses that what was known before counts for

Scores = Callable[[np.ndarray], np.ndarray]  # of steps [n, q, 6]; their scores, [n, q]


def normal_points() -> np.ndarray:
    """Points for means over a six-dimensional normal distribution, ``[12 FRAMES, 6]``.

    Random frames of axes and their opposites, one at each of evenly spread quantiles of the
    radius: means of what depends on the radius alone are a quadrature, all axes are alike.
    """
    frames = special_ortho_group(6, seed=0).rvs(FRAMES)
    radii = chi.ppf((np.arange(FRAMES) + 0.5) / FRAMES, 6)
    half = (radii[:, None, None] * frames).reshape(-1, 6)
    return np.concatenate([half, -half])


def second_moments(log_likelihood: Scores, start: np.ndarray) -> np.ndarray:
    """Second moments of distributions about zero.

    Args:
        log_likelihood: logarithm of their densities at points ``[n, q, 6]``, up to a constant.
        start: covariances that are near, ``[n, 6, 6]``.

    Returns:
        ``[n, 6, 6]``.
    """
    points, found = normal_points(), start
    for _ in range(PASSES):
        x = WIDER * np.einsum("nij,qj->nqi", np.linalg.cholesky(found), points)
        drawn = -(points**2).sum(1) / 2
        excess = log_likelihood(x) - drawn
        weight = np.exp(excess - excess.max(1, keepdims=True))
        weight /= weight.sum(1, keepdims=True)
        count = (1 / (weight**2).sum(1))[:, None, None]  # that the weights are worth
        moment = np.einsum("nq,nqi,nqj->nij", weight, x, x)
        found = (count * moment + KNOWN * found) / (count + KNOWN)
    return found


def unclear(linear: Linear, own: np.ndarray) -> np.ndarray:
    """Which modes need sampling: pairs of particle and mode, ``[p, 2]``; ``own`` are poses."""
    return np.argwhere(own & (linear.score[:, : own.shape[1]] < CLEAR))


def with_moments(
    linear: Linear,
    pairs: np.ndarray,
    scores: Scores,
    amplitude: np.ndarray,
    box: int,
) -> Linear:
    """The same with the curvatures of some modes from samples.

    Args:
        linear: with the curvatures at the maxima.
        pairs: the particle and mode of each, ``[p, 2]``.
        scores: of poses that many steps away from those modes, ``[p, q, 6]``, in standard
            deviations of whitened noise.
        amplitude: of all modes, ``[n, m]``.
        box: edge of the particle box.
    """
    if linear.bend is None or not len(pairs):
        return linear
    at = pairs[:, 0], pairs[:, 1]
    steps = linear.steps(amplitude, box)[at]
    slope = (amplitude * np.sqrt(linear.normal[..., 6, 6]))[at][:, None]

    def log_likelihood(x: np.ndarray) -> np.ndarray:
        away = np.einsum("pqi,pij->pqj", x, steps)
        return slope * scores(away) + moved_prior(away, box)

    found = second_moments(log_likelihood, np.linalg.inv(linear.bend[at]))
    return linear.with_bend(at, np.linalg.inv(found))
