"""Merging rules against a plain walk of the list, and the classification of planted particles."""

import itertools

import numpy as np
import pytest
from generate_setting import fsc_in_frame, mean_fsc, planted, spread_deg

from sptjax import generate
from sptjax._errors import InputError
from sptjax.generate import HacSettings, Rules, clusters, exclusive
from sptjax.generate._maps import raw_maps
from sptjax.generate._merging import merges


def walked(scores, members, best, share, most):
    """The rules of EMAN2, word by word, on its scores (smaller is better)."""
    listed = sorted((-value, pair) for pair, value in scores.items())
    limit, seen, merged = -best * share, [], []
    for score, (a, b) in listed:
        if a not in seen and b not in seen and score < limit:
            if not (most and members[a] > most and members[b] > most):
                merged.append((a, b))
        seen += [a, b]
    return merged


@pytest.mark.parametrize("share", [0.0, 0.6, 0.95])
@pytest.mark.parametrize("most", [0, 1, 3])
def test_merges_are_those_of_the_walk(rng, share, most):
    for _ in range(30):
        members = dict(enumerate(rng.integers(1, 6, 9).tolist()))
        pairs = list(itertools.combinations(range(9), 2))
        scores = dict(zip(pairs, rng.normal(1, 1, len(pairs)).tolist()))
        best = max(scores.values()) * rng.choice([1.0, 1.3])
        got = merges(scores, members, best, Rules(share, most))
        assert got == walked(scores, members, best, share, most)


def test_only_mutually_first_pairs_merge():
    scores = {(0, 1): 9.0, (1, 2): 8.0, (2, 3): 7.0, (3, 4): 6.0, (4, 5): 5.0, (0, 5): -1.0}
    one = dict.fromkeys(range(6), 1)
    # 2 prefers 1, which is taken, so that 2 and 3 do not merge; nor do 4 and 5
    assert merges(scores, one, 9.0, Rules()) == [(0, 1)]
    scores[2, 3] = 8.5
    assert merges(scores, one, 9.0, Rules()) == [(0, 1), (2, 3)]
    assert merges(scores, one, 9.0, Rules(least_share=0.95)) == [(0, 1)]


def test_clusters_fill_along_the_ranking():
    scores = {(0, 3): 9.0, (1, 3): 8.0, (2, 4): 7.0, (0, 1): 6.0}
    assert clusters(scores, 6, 2) == [[0, 1, 3], [2, 4, 5]]
    assert clusters(scores, 6, 4) == [[0, 3], [1, 2], [4, 5], []]


def test_exclusive_sets_are_chosen_from_large_to_small():
    sets = [frozenset(s) for s in ({0, 1}, {2, 3}, {0, 1, 2}, {4, 5}, {6})]
    assert exclusive(sets, 2) == [2, 3]
    assert exclusive(sets, 1) == [2, 3, 4]
    assert exclusive(sets, 3) == [2]


@pytest.fixture(scope="module")
def grown():
    *_, material = planted()
    return generate.classify_ascending(material, np.arange(6), HacSettings(search_vox=2.0))


@pytest.mark.long
def test_every_round_merges_what_the_rules_say(grown):
    assert len(grown.rounds[0].pairs) == 15
    assert grown.rounds[0].living == tuple(range(6))
    best = -np.inf
    for done in grown.rounds:
        scores = dict(zip(done.pairs, done.score.tolist()))
        best = max(best, done.score.max())
        members = {i: len(grown.nodes[i]) for i in done.living}
        parents = [grown.nodes[i].parents for i in done.made]
        assert parents == walked(scores, members, best, 0.0, 0)
        # every living pair has a score, whenever it was aligned
        assert {frozenset(p) for p in done.pairs} == {
            frozenset(p) for p in itertools.combinations(done.living, 2)
        }
    assert grown.stopped == "one object is left"
    assert sorted(grown.living[0].members.tolist()) == list(range(6))


@pytest.mark.long
def test_the_largest_average_shows_the_planted_map(grown):
    truth, poses, _, material = planted()
    result = generate.hac_reference(grown)
    known = type(poses)(poses.rotation[result.indices], poses.shift[result.indices])
    assert np.median(spread_deg(result.rotation, known)) < 6
    at_random = raw_maps(
        material, np.arange(6), np.broadcast_to(np.eye(3), (6, 3, 3)), np.zeros((6, 3)),
        np.zeros(6, int), 1,
    )[0]  # fmt: skip
    score = fsc_in_frame(result, truth, poses, result.indices)
    assert score > 0.7
    assert score > mean_fsc(at_random, truth) + 0.3


def test_too_few_too_many_and_nothing_that_merges():
    *_, material = planted()
    with pytest.raises(InputError, match="at least 3 particles"):
        generate.classify_ascending(material, np.arange(2), HacSettings())
    with pytest.raises(InputError, match="--force"):
        generate.classify_ascending(material, np.zeros(2001, int), HacSettings())
    strict = HacSettings(search_vox=2.0, rules=Rules(least_share=1.0))
    alone = generate.classify_ascending(material, np.arange(3), strict)
    assert alone.stopped == "no pair scores high enough to merge"
    with pytest.raises(InputError, match="merged no pair"):
        generate.hac_reference(alone)
