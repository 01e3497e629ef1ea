"""Agreement of partitions: by counting pairs, and cases known by hand."""

import itertools

import numpy as np
import pytest

from sptjax import stability
from sptjax._errors import InputError


def pair_counting(a, b):
    """Adjusted Rand index by its definition, over all pairs of particles."""
    same = [(a[i] == a[j], b[i] == b[j]) for i, j in itertools.combinations(range(len(a)), 2)]
    both = sum(x and y for x, y in same)
    first, second = sum(x for x, _ in same), sum(y for _, y in same)
    expected = first * second / len(same)
    return (both - expected) / ((first + second) / 2 - expected)


def test_the_index_counts_pairs(rng):
    for _ in range(20):
        a, b = rng.integers(0, 4, 30), rng.integers(0, 3, 30)
        assert stability.adjusted_rand(a, b) == pytest.approx(pair_counting(a, b), abs=1e-12)
    known = stability.adjusted_rand(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2]))
    assert known == pytest.approx(4 / 7)


def test_names_do_not_matter_and_chance_is_zero(rng):
    a = rng.integers(0, 3, 60)
    assert stability.adjusted_rand(a, np.array([2, 0, 1])[a]) == 1
    assert stability.adjusted_rand(np.zeros(9, int), np.zeros(9, int)) == 1
    drawn = [stability.adjusted_rand(a, rng.permutation(a)) for _ in range(200)]
    assert abs(np.mean(drawn)) < 0.01
    with pytest.raises(InputError, match="60 and 3 classes"):
        stability.adjusted_rand(a, a[:3])


def test_particles_in_no_class_are_left_out(rng):
    a, b = rng.integers(0, 3, 40), rng.integers(0, 3, 40)
    out = np.arange(40) % 5 == 0
    wanted = stability.adjusted_rand(a[~out], b[~out])
    assert stability.adjusted_rand(np.where(out, -1, a), b) == wanted
    assert (stability.renamed(np.where(out, -1, a), b, 3)[out] == -1).all()


def test_runs_get_common_names_and_doubtful_particles_are_seen():
    truth = np.repeat([0, 1, 2], 10)
    runs = [truth, np.array([1, 2, 0])[truth], np.array([2, 0, 1])[truth]]
    runs[1][:2] = runs[1][29]  # two particles of class 0 go elsewhere in one run of three
    found = stability.compare(runs, 3)
    names = found.consensus[[0, 10, 20]]
    assert sorted(names) == [0, 1, 2]
    assert np.array_equal(found.consensus, names[truth])
    assert found.particle[:2] == pytest.approx(2 / 3)
    assert (found.particle[2:] == 1).all()
    assert found.group[names[0]] == pytest.approx((8 + 4 / 3) / 10)
    assert found.group[names[1]] == 1
    assert found.rand[0, 2] == 1 > found.rand[0, 1] > 0.7
    assert found.mean_rand == pytest.approx((1 + 2 * found.rand[0, 1]) / 3)


def test_empty_classes_and_excluded_particles():
    found = stability.compare([np.array([0, 0, 1, -1]), np.array([0, 0, 1, -1])], 3)
    assert found.consensus.tolist() == [0, 0, 1, -1]
    assert found.particle.tolist() == [1, 1, 1, 0]
    assert np.isnan(found.group[2])
