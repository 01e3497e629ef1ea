"""Which class particles go to, which of them are averaged, and with what weight."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """What the options that keep and weigh particles resolve to."""

    keep: float = 1.0  # best-scoring fraction, or standard deviations
    in_sigma: bool = False  # keep what scores above mean - keep * sigma of its group
    by_score: bool = False  # weight by score over best score of the group
    keep_known: float = 1.0  # fraction of the group whose poses are known best
    by_uncertainty: bool = False  # weight by the share of the signal that the average keeps
    prior_weight: np.ndarray | None = None  # [n], known before any alignment

    @property
    def needs_uncertainty(self) -> bool:
        """Whether the errors of the poses must be known."""
        return self.by_uncertainty or self.keep_known < 1


def assign(score: np.ndarray, round_: int, anneal: int, seed: int) -> np.ndarray:
    """Class of every particle: that of its best score, or at first one drawn by the scores.

    In round ``r`` of the first ``anneal`` ones, class ``c`` is drawn with a probability
    proportional to ``exp(score_c / T)``. ``T`` falls linearly from the spread of the scores
    between the classes to zero, so that particles leave the classes of a first chance.

    Args:
        score: ``[n, c]``.
        round_: from 0.
        anneal: rounds until classes are those of the best scores.
        seed: of the draws.
    """
    if round_ >= anneal or score.shape[1] < 2:
        return np.argmax(score, 1)
    spread = np.std(score - score.mean(1, keepdims=True))
    noise = np.random.default_rng([seed, round_]).gumbel(size=score.shape)
    return np.argmax(score + (1 - round_ / anneal) * spread * noise, 1)


def select(
    group: np.ndarray,
    score: np.ndarray,
    selection: Selection,
    transfer: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Particles to average and their weights.

    Args:
        group: ``[n]``, class (or class and half) of every particle; negative: in none.
        score: ``[n]`` in its class, larger is better.
        selection: the rules.
        transfer: ``[n]``, share of the signal that averaging keeps (see
            :meth:`sptjax.io.PoseTable.transfer`); for rules about uncertainty.

    Returns:
        ``used`` bool ``[n]`` and ``weight`` float32 ``[n]``, zero where not used.
    """
    used = np.zeros(len(group), bool)
    weight = np.zeros(len(group), np.float32)
    for g in np.unique(group[group >= 0]):
        rows = np.flatnonzero(group == g)
        own = score[rows]
        kept = _kept(own, selection)
        if transfer is not None and selection.keep_known < 1:
            known = _best(transfer[rows], selection.keep_known)
            both = np.intersect1d(kept, known)
            kept = both if len(both) else known[:1]
        kept = rows[kept]
        used[kept] = True
        weight[kept] = _by_score(score[kept], own.max()) if selection.by_score else 1.0
    if transfer is not None and selection.by_uncertainty:
        weight *= transfer
    if selection.prior_weight is not None:
        weight *= selection.prior_weight
    return used, weight


def _kept(score: np.ndarray, selection: Selection) -> np.ndarray:
    """Indices into the group; never empty, so that no class vanishes."""
    if not selection.in_sigma:
        return _best(score, selection.keep)
    limit = score.mean() - selection.keep * score.std()
    return _best(score, (score >= limit).mean())


def _best(value: np.ndarray, fraction: float) -> np.ndarray:
    """Indices of the largest values, at least one."""
    count = int(fraction * len(value) + 1e-9)
    return np.argsort(-value, kind="stable")[: max(1, count)]


def _by_score(score: np.ndarray, best: float) -> np.ndarray:
    """Score over the best one; what scores zero or less has no weight."""
    return np.clip(score / best, 0.0, 1.0) if best > 0 else np.zeros_like(score)


def tilt_axis_weights(x: np.ndarray, axis: float, least: float) -> np.ndarray:
    """Weight by distance from the tilt axis (EMAN2 ``--weighbytiltaxis=axis,least``).

    Args:
        x: ``[n]``, position of every particle in the tomogram, voxels.
        axis: position of the tilt axis; the tomogram reaches from 0 to ``2 axis``.
        least: weight at its edges; the weight on the axis is 1.
    """
    away = np.abs(np.clip(x, 0, 2 * axis) - axis) / axis
    return (1 - (1 - least) * away).astype(np.float32)
