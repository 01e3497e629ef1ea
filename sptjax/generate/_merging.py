"""Rules of hierarchical ascendant classification: who merges in a round, clusters, exclusive sets.

Pure bookkeeping on scores (larger is better); no volumes.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Rules:
    """When a pair may merge.

    Attributes:
        least_share: of the best score so far (``minscore``); 0: the score must be positive.
        most_members: two objects that both have more do not merge (``maxmergenum``); 0: any.
    """

    least_share: float = 0.0
    most_members: int = 0


def ranked(scores: Mapping[Pair, float]) -> list[Pair]:
    """Pairs from the best score to the worst; equal scores in the order of their numbers."""
    return sorted(scores, key=lambda pair: (-scores[pair], pair))


def merges(
    scores: Mapping[Pair, float], members: Mapping[int, int], best_ever: float, rules: Rules
) -> list[Pair]:
    """The pairs that merge in a round.

    Walking the pairs from the best, a pair merges if neither of its objects was seen before, so
    that only mutually first pairs merge, several of them in a round (EMAN2 ``e2spt_hac.py``).

    Args:
        scores: of all pairs of living objects.
        members: particles in every object.
        best_ever: the best score of all rounds so far.
        rules: when a pair may merge.
    """
    seen: set[int] = set()
    chosen = []
    for pair in ranked(scores):
        fresh = seen.isdisjoint(pair)
        seen.update(pair)
        large = rules.most_members and all(members[i] > rules.most_members for i in pair)
        if fresh and scores[pair] > best_ever * rules.least_share and not large:
            chosen.append(pair)
    return chosen


def clusters(scores: Mapping[Pair, float], count: int, number: int) -> list[list[int]]:
    """Particles in ``number`` clusters, filled one after the other along the ranking.

    EMAN2's ``--clusters``: unassigned members of the pairs, best first, fill the first cluster
    to ``round(count / number)``, then the next; those left over go to the last.

    Args:
        scores: of the pairs of the first round.
        count: particles.
        number: clusters.
    """
    size = max(round(count / number), 1)
    order = list(dict.fromkeys(i for pair in ranked(scores) for i in pair))
    order += [i for i in range(count) if i not in set(order)]
    cuts = [min(size * c, count) for c in range(number)] + [count]
    return [sorted(order[a:b]) for a, b in itertools.pairwise(cuts)]


def exclusive(sets: Sequence[frozenset[int]], least: int) -> list[int]:
    """Indices of mutually exclusive sets of at least so many members, chosen from large to small.

    Args:
        sets: members of every average, oldest first; among equal sizes the older is chosen.
        least: smallest size.
    """
    taken: set[int] = set()
    chosen = []
    for i in sorted(range(len(sets)), key=lambda i: (-len(sets[i]), i)):
        if len(sets[i]) >= least and taken.isdisjoint(sets[i]):
            chosen.append(i)
            taken |= sets[i]
    return chosen


def score_matrix(scores: Mapping[Pair, float], count: int) -> np.ndarray:
    """Symmetric float32 ``[n, n]``: the score of every pair, NaN where there is none.

    Args:
        scores: by pairs of indices.
        count: of objects, n.
    """
    table = np.full((count, count), np.nan, np.float32)
    for (a, b), score in scores.items():
        table[a, b] = table[b, a] = score
    return table
