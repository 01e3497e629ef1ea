"""From products to covariances of poses and probabilities of modes (NumPy, float64).

With ``H``, ``G`` and ``t`` of :class:`._products.Products`, all ``7 x 7`` or ``7``, the amplitude
last: the amplitude that fits is ``t_7 / H_77``, the score ``s = t_7 / sqrt(G_77)`` counts standard
deviations of the noise, and at unit amplitude a score of ``nu = H_77 / sqrt(G_77)`` is expected.

*Covariance.* Profiling the amplitude out leaves ``A = H_66 - H_67 H_76 / H_77``, the information
about the pose at unit amplitude, and likewise ``G' = Q G Q^T`` with ``Q = [1, -H_67 / H_77]``. The
pose that maximises the score has the covariance ``A^-1 G' A^-1 / a^2`` (the sandwich of White 1982,
Econometrica 50:1), which is the inverse of the Fisher information where ``G = H``.

*Curvature.* That information is what a pose is expected to have. At a score of ten the noise bends
the score by a fifth itself, and the particle at hand has more or less information than expected:
``-a' S''``, with the second derivatives ``S''`` of ``t_7 / sqrt(H_77)`` and ``a' = a sqrt(H_77)``
(Efron & Hinkley 1978, Biometrika 65:457). They are taken between a standard deviation ahead and
back along six directions, so that they also see what is not quadratic. Where that is not enough,
at low scores, they come from samples (:mod:`._sampled`).

*Modes.* Amplitudes of a class are normal, ``a ~ N(a0, tau^2)``. Then the score at the right pose
is ``N(a0 nu, 1 + tau^2 nu^2)``, that of noise alone ``N(0, 1)``, and their ratio ``L(s)`` is the
evidence for a pose. Its integral over a mode, ``L`` times the volume of the mode (Laplace), divides
among the listed modes what probability they have together.

*Lists.* Whether a list holds the right pose, ``L`` does not say: wrong poses score better than
noise alone, because a particle resembles itself in many orientations. So the lists themselves tell
what chance does (empirical Bayes; local false discovery rate: Efron 2010, Large-scale inference,
ch. 5). Scores of wrong poses are taken for events whose rate falls exponentially: reckoned from the
third best, at ``t``, it is ``2 r exp(-r (s - t))`` per unit of score, and ``r`` is that of the
distances from the second to the fourth best. (Where the best one is wrong too, these lie deeper,
where they are closer; but tails of noise also fall faster further up, which about makes up for it.)
Where several poses score better than chance does, a particle is nearly symmetric: chance ends at
``REACH``. A list whose best scores are ``s_1`` and ``s_2`` holds the right pose with the odds
``1 - q`` to ``q``, times the sum of ``f(s_j)`` over that rate at ``s_j``; ``f`` is the density of
right scores, and ``q``, the share of lists without the right pose, is fitted with all the rest.
"""

import dataclasses

import numpy as np
from scipy.stats import norm

from ..distributed import ALONE, Hosts

POSE = slice(0, 6)
FITTED = 6.0  # what fitting six parameters adds to the square of a score
ROUNDS = 20
MISSED = 0.1  # share of lists without the right pose, at first
ABOVE = 2  # scores above the one from which chance is reckoned
REACH = 8.0  # of chance: the best of 10^8 to 10^11 noise scores is 6 to 7
RATE = 3.0  # of chance per unit of score, where nothing is known; counts as one distance
LEAST_TURN, LEAST_MOVE = 1.0, 0.25  # prior: radians, and of the box; matters where all is flat
LEAST_BEND = 0.25  # of the curvature that is expected; less is no maximum that a fit would trust


@dataclasses.dataclass(frozen=True)
class Amplitudes:
    """Amplitudes of one class: mean and standard deviation."""

    mean: float
    sigma: float


@dataclasses.dataclass(frozen=True)
class Linear:
    """Particles linearised at poses, ``[n, m]`` in front."""

    normal: np.ndarray  # [n, m, 7, 7]
    spread: np.ndarray  # [n, m, 7, 7]
    along: np.ndarray  # [n, m, 7]
    bend: np.ndarray | None = None  # [n, m, 6, 6], curvature of the score over what is expected

    @property
    def score(self) -> np.ndarray:
        """In standard deviations of the noise, ``[n, m]``."""
        return self.along[..., 6] / np.sqrt(self.spread[..., 6, 6])

    @property
    def unit_score(self) -> np.ndarray:
        """Score that an amplitude of one makes, ``[n, m]``."""
        return self.normal[..., 6, 6] / np.sqrt(self.spread[..., 6, 6])

    def profiled(self) -> tuple[np.ndarray, np.ndarray]:
        """``A`` and ``G'`` of the module docstring, ``[n, m, 6, 6]``."""
        cross = self.normal[..., POSE, 6]
        ratio = cross / self.normal[..., 6:, 6]
        information = self.normal[..., POSE, POSE] - ratio[..., :, None] * cross[..., None, :]
        own = -ratio[..., :, None] * self.spread[..., None, 6, POSE]
        noise = self.spread[..., POSE, POSE] + own + own.swapaxes(-1, -2)
        noise = noise + ratio[..., :, None] * ratio[..., None, :] * self.spread[..., 6:, 6:]
        return information, noise

    def covariance(self, amplitude: np.ndarray, box: int) -> np.ndarray:
        """Of poses at given amplitudes ``[n, m]``; radians and voxels, ``[n, m, 6, 6]``."""
        information, noise = self.profiled()
        square = amplitude[..., None, None] ** 2
        prior = _prior(box)
        expected = np.linalg.inv(square * information + prior)
        here = expected
        if self.bend is not None:
            root = np.linalg.cholesky(expected)
            here = root @ np.linalg.inv(self.bend) @ root.swapaxes(-1, -2)
        found = here @ (square * noise + prior) @ expected
        return (found + found.swapaxes(-1, -2)) / 2

    def steps(self, amplitude: np.ndarray, box: int) -> np.ndarray:
        """Six steps of a standard deviation, columns of a root of the covariance; as rows."""
        information, _ = self.profiled()
        square = amplitude[..., None, None] ** 2
        expected = np.linalg.inv(square * information + _prior(box))
        return np.linalg.cholesky(expected).swapaxes(-1, -2)

    def bent(
        self, slopes: np.ndarray, steps: np.ndarray, amplitude: np.ndarray, box: int
    ) -> "Linear":
        """With curvatures from the slopes of the score along the first ``b`` modes' steps.

        Args:
            slopes: ``[n, b, 6, 6]``.
            steps: of all modes.
            amplitude: likewise, with which the steps were made.
            box: edge of the particle box.
        """
        known = slopes.shape[1]
        steps, amplitude = steps[:, :known], amplitude[:, :known]
        scale = (amplitude * np.sqrt(self.normal[:, :known, 6, 6]))[..., None, None]
        whole = -scale * slopes @ steps.swapaxes(-1, -2)
        whole = whole + steps @ _prior(box) @ steps.swapaxes(-1, -2)
        value, vector = np.linalg.eigh((whole + whole.swapaxes(-1, -2)) / 2)
        value = np.maximum(value, LEAST_BEND)
        bend = np.broadcast_to(np.eye(6), self.normal[..., POSE, POSE].shape).copy()
        bend[:, :known] = (vector * value[..., None, :]) @ vector.swapaxes(-1, -2)
        return dataclasses.replace(self, bend=bend)

    def with_bend(self, at: tuple[np.ndarray, np.ndarray], bend: np.ndarray) -> "Linear":
        """With other curvatures ``[p, 6, 6]`` of some particles and modes."""
        assert self.bend is not None, "curvatures at the maxima come first"
        whole = self.bend.copy()
        whole[at] = bend
        return dataclasses.replace(self, bend=whole)


def amplitudes(
    score: np.ndarray, unit: np.ndarray, share: np.ndarray, hosts: Hosts = ALONE
) -> Amplitudes:
    """Mean and spread of the amplitudes of particles that are right with given probabilities.

    Args:
        score: ``[n]``.
        unit: score of unit amplitude there.
        share: probability that a pose is right.
        hosts: the processes that share the particles.
    """
    own = np.sqrt(np.maximum(score**2 - FITTED, 0))
    sums = [share * unit**2, share * own * unit, share * (own**2 - 1)]
    total, product, square = hosts.total(np.array([x.sum() for x in sums]))
    total = max(total, 1e-30)
    mean = product / total
    # sum of share * ((own - mean unit)^2 - 1)
    excess = (square - mean * product) / total
    return Amplitudes(float(mean), float(np.sqrt(max(excess, 0.0))))


def evidence(
    score: np.ndarray, unit: np.ndarray, known: Amplitudes
) -> tuple[np.ndarray, np.ndarray]:
    """Logarithm of ``L(s)``, and its derivative by ``s``."""
    mean, variance = known.mean * unit, 1 + (known.sigma * unit) ** 2
    away = score - mean
    value = score**2 / 2 - away**2 / (2 * variance) - np.log(variance) / 2
    return value, score - away / variance


def shrunk(score: np.ndarray, unit: np.ndarray, known: Amplitudes) -> np.ndarray:
    """Amplitudes of particles, drawn towards the mean of their class by what is not known."""
    own = np.sqrt(np.maximum(score**2 - FITTED, 0)) / unit
    weight = (known.sigma * unit) ** 2
    return (known.mean + weight * own) / (1 + weight)


def log_mass(linear: Linear, known: Amplitudes, box: int) -> np.ndarray:
    """Logarithm of the integral of ``L`` over every mode, ``[n, m]``; radians^3 voxels^3."""
    score, unit = linear.score, linear.unit_score
    value, slope = evidence(score, unit, known)
    slope = np.maximum(slope, 1e-3)
    information, _ = linear.profiled()
    curvature = (slope * score.clip(1e-3))[..., None, None] * (
        information / linear.normal[..., 6:, 6:]
    )
    size = np.linalg.slogdet(curvature + _prior(box))[1]
    if linear.bend is not None:
        size = size + np.linalg.slogdet(linear.bend)[1]
    return value + 3 * np.log(2 * np.pi) - size / 2


def _prior(box: int) -> np.ndarray:
    """Information about any pose."""
    return np.diag([LEAST_TURN**-2] * 3 + [(LEAST_MOVE * box) ** -2] * 3)


def moved_prior(step: np.ndarray, box: int) -> np.ndarray:
    """Logarithm of the prior of poses ``[..., 6]`` over that of the pose they are steps from."""
    return -np.einsum("...i,ij,...j->...", step, _prior(box), step) / 2


@dataclasses.dataclass(frozen=True)
class Lists:
    """Modes of every particle in its best class, by falling score.

    Attributes:
        score: ``[n, m]``, minus infinity where there is none.
        unit: score of unit amplitude, ``[n, m]``.
        mean: amplitude of the class, ``[n]``.
        sigma: its standard deviation, ``[n]``.
    """

    score: np.ndarray
    unit: np.ndarray
    mean: np.ndarray
    sigma: np.ndarray

    @classmethod
    def of(
        cls,
        classes: list[Linear],
        listed: list[np.ndarray],
        known: list[Amplitudes],
        mass: list[np.ndarray],
    ) -> "Lists":
        """From the modes of all classes and the logarithms of their integrals."""
        every = np.arange(len(mass[0]))
        own = np.stack([x.max(1) for x in mass]).argmax(0)
        score = np.stack([np.where(y, x.score, -np.inf) for x, y in zip(classes, listed)])
        order = np.argsort(-score[own, every], axis=1)
        score, unit = (
            np.take_along_axis(x[own, every], order, 1)
            for x in (score, np.stack([x.unit_score for x in classes]))
        )
        mean, sigma = (np.array(x)[own] for x in zip(*((k.mean, k.sigma) for k in known)))
        return cls(score, unit, mean, sigma)

    @property
    def above(self) -> int:
        """How many of the best scores lie above the one from which chance is reckoned."""
        return min(ABOVE, self.score.shape[1] - 1)

    def log_right(self) -> np.ndarray:
        """Logarithm of the density of scores of the right pose at the best scores, ``[n, k]``."""
        score, unit = self._best(), self.unit[:, : self.above]
        own = np.sqrt(np.maximum(score**2 - FITTED, 0.25))
        mean, sigma = (x[:, None] * unit for x in (self.mean, self.sigma))
        density = norm.logpdf(own, mean, np.sqrt(1 + sigma**2))
        return density + np.log(score.clip(0.5) / own)

    def log_chance(self, rate: float, hosts: Hosts = ALONE) -> np.ndarray:
        """Logarithm of the density of scores of wrong poses at the best scores, ``[n, k]``.

        Args:
            rate: see :meth:`chance_rate`.
            hosts: the processes that share the particles.
        """
        base = self.score[:, self.above]
        some = np.isfinite(base)
        total, count = hosts.total(np.array([base[some].sum(), some.sum()]))
        base = np.minimum(np.where(some, base, total / max(count, 1)), REACH)
        return np.log(self.above * rate) - rate * (self._best() - base[:, None])

    def odds(self, missed: float, hosts: Hosts = ALONE) -> np.ndarray:
        """Odds that each of the best poses is right, to that none of them is, ``[n, k]``.

        Args:
            missed: share of lists without the right pose.
            hosts: the processes that share the particles.
        """
        chance = self.log_chance(self.chance_rate(hosts), hosts)
        ratio = self.log_right() - chance + np.log(1 / missed - 1)
        return np.where(np.isfinite(self.score[:, : self.above]), np.exp(ratio.clip(-99, 99)), 0)

    def chance_rate(self, hosts: Hosts = ALONE) -> float:
        """How fast scores of wrong poses become rare, per unit of score."""
        sums, last = np.array([1.0, 1 / RATE]), 1 + self.above
        if last < self.score.shape[1]:
            some = np.isfinite(self.score[:, last]) & (self.score[:, 1] < REACH)
            part = self.score[some, 1 : last + 1]
            distance = (part - part[:, -1:]).sum()
            sums += hosts.total(np.array([self.above * len(part), distance]))
        return sums[0] / max(sums[1], 1e-6)

    def _best(self) -> np.ndarray:
        """The scores above, zero where there is none."""
        best = self.score[:, : self.above]
        return np.where(np.isfinite(best), best, 0)


@dataclasses.dataclass(frozen=True)
class Posterior:
    """Result of :func:`posterior`."""

    inside: list[np.ndarray]  # probability of the modes of each class, [n, m]
    amplitudes: list[Amplitudes]  # of each class
    sizes: np.ndarray  # share of the particles in each class


def _all_amplitudes(
    classes: list[Linear], inside: list[np.ndarray], hosts: Hosts
) -> list[Amplitudes]:
    """Of every class; of all together for one that has less than a particle."""
    flat = [(x.score.ravel(), x.unit_score.ravel(), y.ravel()) for x, y in zip(classes, inside)]
    scores, units, shares = (np.concatenate(x) for x in zip(*flat))
    common = amplitudes(scores, units, shares, hosts)
    own = [hosts.total(np.array(share.sum())) >= 1 for _, _, share in flat]
    return [amplitudes(*x, hosts) if enough else common for x, enough in zip(flat, own)]


def posterior(
    classes: list[Linear],
    listed: list[np.ndarray],
    searched: bool,
    box: int,
    hosts: Hosts = ALONE,
) -> Posterior:
    """Probabilities of the modes of all classes, with the amplitudes and sizes of these.

    Amplitudes, sizes, probabilities and what chance lists are fitted in turn
    (expectation-maximisation).

    Args:
        classes: modes against every reference, ``[n, m]``.
        listed: which of them are poses of their own.
        searched: whether a search made the lists; if not, they hold the right pose.
        box: edge of the particle box.
        hosts: the processes that share the particles.
    """
    sizes = np.full(len(classes), 1 / len(classes))
    first = [np.where(own, x.score, 0).clip(0) ** 2 / 2 for x, own in zip(classes, listed)]
    total = np.logaddexp.reduce(np.concatenate(first, 1), axis=1)
    inside = [np.exp(x - total[:, None]) for x in first]
    known, missed = [Amplitudes(0.0, 0.0)] * len(classes), MISSED
    count = float(hosts.total(np.array(len(total))))
    by_chance = searched and listed[0].shape[1] > 1
    for _ in range(ROUNDS):
        known = _all_amplitudes(classes, inside, hosts)
        parts = [
            np.where(own, log_mass(x, amplitude, box), -np.inf) + np.log(max(size, 1e-12))
            for x, own, amplitude, size in zip(classes, listed, known, sizes)
        ]
        total = np.logaddexp.reduce(np.concatenate(parts, 1), axis=1)
        alive = np.isfinite(total)
        if by_chance:
            odds = Lists.of(classes, listed, known, parts).odds(missed, hosts).sum(1)
            total = total + np.log1p(1 / odds.clip(1e-40))
        inside = [np.exp(part - np.where(alive, total, 0)[:, None]) for part in parts]
        sizes = hosts.total(np.array([own.sum() for own in inside]))
        # one particle in a hundred, or half of one, may always have been missed
        missed = np.clip(1 - sizes.sum() / count, min(0.01, 0.5 / count), 0.99)
        sizes = sizes / sizes.sum()
    return Posterior(inside, known, sizes)
