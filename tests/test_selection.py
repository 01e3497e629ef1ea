"""Which particles are averaged: the rules of keep, keepsig and the weights, by hand."""

import numpy as np
import pytest

from sptjax.selection import Selection, select, tilt_axis_weights

GROUP = np.array([0, 0, 0, 0, 1, 1, -1, 1])
SCORE = np.array([5.0, 1.0, 3.0, 4.0, 2.0, 8.0, 9.0, -1.0], np.float32)


def kept(selection):
    used, weight = select(GROUP, SCORE, selection)
    assert np.array_equal(weight > 0, used) or selection.by_score
    return np.flatnonzero(used).tolist()


def test_everything_in_a_class_is_kept_by_default():
    assert kept(Selection()) == [0, 1, 2, 3, 4, 5, 7]


def test_the_best_fraction_of_every_group():
    assert kept(Selection(keep=0.5)) == [0, 3, 5]
    assert kept(Selection(keep=0.75)) == [0, 2, 3, 4, 5]
    assert kept(Selection(keep=0.01)) == [0, 5]  # never none


def test_standard_deviations_below_the_mean():
    mean, sigma = SCORE[:4].mean(), SCORE[:4].std()
    assert (SCORE[:4] >= mean - sigma).tolist() == [True, False, True, True]
    assert kept(Selection(keep=1.0, in_sigma=True)) == [0, 2, 3, 4, 5]
    assert kept(Selection(keep=0.0, in_sigma=True)) == [0, 3, 5]
    assert kept(Selection(keep=-1.0, in_sigma=True)) == [0, 5]


def test_weight_by_score_is_relative_to_the_best_of_the_group():
    used, weight = select(GROUP, SCORE, Selection(by_score=True))
    np.testing.assert_allclose(weight, [1, 0.2, 0.6, 0.8, 0.25, 1, 0, 0], rtol=1e-6)
    assert used[7]  # kept, but without weight: its score is negative


def test_a_prior_weight_multiplies():
    prior = np.linspace(0.1, 0.8, 8).astype(np.float32)
    _, weight = select(GROUP, SCORE, Selection(keep=0.5, by_score=True, prior_weight=prior))
    expected = np.zeros(8)
    expected[[0, 3, 5]] = np.array([1, 0.8, 1]) * prior[[0, 3, 5]]
    np.testing.assert_allclose(weight, expected, rtol=1e-6)


def test_weights_fall_linearly_from_the_tilt_axis():
    x = np.array([2048, 0, 4096, 1024, 3072, 5000, -10.0])
    expected = [1, 0.5, 0.5, 0.75, 0.75, 0.5, 0.5]  # beyond the edges as at the edges
    assert tilt_axis_weights(x, 2048, 0.5) == pytest.approx(expected)
