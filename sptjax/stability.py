"""How far runs with different seeds agree about the classes of the particles.

Classes of two runs are matched one to one so that most particles are in matching ones. The
adjusted Rand index counts pairs of particles that both runs put together or apart, and is 1 for
equal partitions, 0 on average for independent ones (Hubert & Arabie 1985, J. Classif. 2:193).
"""

import dataclasses

import numpy as np
from scipy.optimize import linear_sum_assignment

from ._errors import InputError


def contingency(a: np.ndarray, b: np.ndarray, count: int) -> np.ndarray:
    """Particles in class ``i`` of ``a`` and ``j`` of ``b``, int ``[count, count]``.

    Particles of a negative class in either are left out.
    """
    a, b = np.asarray(a), np.asarray(b)
    table = np.zeros((count, count), int)
    both = (a >= 0) & (b >= 0)
    np.add.at(table, (a[both], b[both]), 1)
    return table


def renamed(classes: np.ndarray, like: np.ndarray, count: int) -> np.ndarray:
    """Classes under the names that agree best with other classes of the same particles.

    Negative classes keep their number.

    Args:
        classes: int ``[n]``.
        like: int ``[n]``, whose names are taken over.
        count: of classes.
    """
    names = linear_sum_assignment(-contingency(classes, like, count))[1]
    return np.where(classes >= 0, names[np.maximum(classes, 0)], classes)


def adjusted_rand(a: np.ndarray, b: np.ndarray) -> float:
    """Adjusted Rand index of two partitions; 1 also where both are a single class.

    Args:
        a: ``[n]``, class of every particle; negative: left out.
        b: ``[n]``, likewise.

    Raises:
        InputError: the two differ in length.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        raise InputError(f"{len(a)} and {len(b)} classes: the particles must be the same")
    table = contingency(a, b, int(max(a.max(initial=0), b.max(initial=0))) + 1)
    together, first, second, all_pairs = (
        float((x * (x - 1) // 2).sum())
        for x in (table, table.sum(1), table.sum(0), np.array([table.sum()]))
    )
    expected = first * second / max(all_pairs, 1.0)
    most = (first + second) / 2
    return 1.0 if most == expected else (together - expected) / (most - expected)


@dataclasses.dataclass(frozen=True)
class Stability:
    """Result of :func:`compare`."""

    runs: np.ndarray  # int [s, n], classes under common names; negative: in none
    rand: np.ndarray  # [s, s], adjusted Rand index of every pair
    consensus: np.ndarray  # int [n], class in most runs, the first of equals; -1: in none
    particle: np.ndarray  # [n], share of the runs in which a particle is in that class
    group: np.ndarray  # [c], mean of it over the particles of a class; NaN if empty

    @property
    def mean_rand(self) -> float:
        """Mean over the pairs of runs; 1 for a single run."""
        pairs = np.triu_indices(len(self.rand), 1)
        return float(self.rand[pairs].mean()) if len(pairs[0]) else 1.0


def compare(runs: list[np.ndarray], count: int) -> Stability:
    """Bring the classes of all runs under the names of the most typical one, and compare.

    Args:
        runs: class of every particle, run by run.
        count: classes.
    """
    rand = np.array([[adjusted_rand(a, b) for b in runs] for a in runs])
    typical = runs[int(np.argmax(rand.sum(1)))]
    named = np.stack([renamed(run, typical, count) for run in runs])
    votes = np.stack([(named == c).sum(0) for c in range(count)], 1)
    member = votes.sum(1) > 0
    consensus = np.where(member, votes.argmax(1), -1)
    particle = np.where(member, votes.max(1) / len(runs), 0.0)
    group = [particle[consensus == c] for c in range(count)]
    share = np.array([own.mean() if len(own) else np.nan for own in group])
    return Stability(named, rand, consensus, particle, share)
