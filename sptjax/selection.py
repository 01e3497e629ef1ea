"""Which class particles go to, which of them are averaged, and with what weight."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """What ``--keep``, ``--keepsig``, ``--weighbyscore`` and ``--weighbytiltaxis`` resolve to."""

    keep: float = 1.0  # best-scoring fraction, or standard deviations
    in_sigma: bool = False  # keep what scores above mean - keep * sigma of its group
    by_score: bool = False  # weight by score over best score of the group
    prior_weight: np.ndarray | None = None  # [n], known before any alignment


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
    group: np.ndarray, score: np.ndarray, selection: Selection
) -> tuple[np.ndarray, np.ndarray]:
    """Particles to average and their weights.

    Args:
        group: ``[n]``, class (or class and half) of every particle; negative: in none.
        score: ``[n]`` in its class, larger is better.
        selection: the rules.

    Returns:
        ``used`` bool ``[n]`` and ``weight`` float32 ``[n]``, zero where not used.
    """
    used = np.zeros(len(group), bool)
    weight = np.zeros(len(group), np.float32)
    for g in np.unique(group[group >= 0]):
        rows = np.flatnonzero(group == g)
        own = score[rows]
        kept = rows[_kept(own, selection)]
        used[kept] = True
        weight[kept] = _by_score(score[kept], own.max()) if selection.by_score else 1.0
    if selection.prior_weight is not None:
        weight *= selection.prior_weight
    return used, weight


def _kept(score: np.ndarray, selection: Selection) -> np.ndarray:
    """Indices into the group; never empty, so that no class vanishes."""
    best_first = np.argsort(-score, kind="stable")
    if selection.in_sigma:
        limit = score.mean() - selection.keep * score.std()
        count = int((score >= limit).sum())
    else:
        count = int(selection.keep * len(score) + 1e-9)
    return best_first[: max(1, count)]


def _by_score(score: np.ndarray, best: float) -> np.ndarray:
    """Score over the best one; what scores zero or less has no weight."""
    return np.clip(score / best, 0.0, 1.0) if best > 0 else np.zeros_like(score)


def tilt_axis_weights(x: np.ndarray, axis: float, least: float) -> np.ndarray:
    """Weight by distance from the tilt axis (EMAN2 ``--weighbytiltaxis=axis,least``).

    Args:
        x: position of every particle in the tomogram, voxels.
        axis: position of the tilt axis; the tomogram reaches from 0 to ``2 axis``.
        least: weight at its edges; the weight on the axis is 1.
    """
    away = np.abs(np.clip(x, 0, 2 * axis) - axis) / axis
    return (1 - (1 - least) * away).astype(np.float32)
