"""The gradients of notebook 06 find what was planted, on small data."""

import jax.numpy as jnp
import numpy as np
import pytest
from notebook_runs import check_figures, run

from sptjax import resolution


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Names and figures after a run of the notebook in a box of 24."""
    folder = tmp_path_factory.mktemp("figures")
    return run("06_gradients", folder, BOX=24, COUNT=16, STEPS=60)


def test_the_tilt_range(examples):
    names, _ = examples
    np.testing.assert_allclose(names["tilt_range"], [-48, 63], atol=3)


def test_the_poses(examples):
    """Every particle ends within a degree, from 12 degrees away; the library finds the same."""
    names, _ = examples
    errors = names["errors_deg"]
    assert errors["start"].min() > 10
    assert errors["Levenberg-Marquardt"].max() < 1
    assert errors["sptjax"].max() < 1
    by_optimistix, by_library = names["poses"].values()
    position = np.asarray(names["planted"].shift)  # t = -R s
    for turns, centre in (by_optimistix, by_library):
        moved = -np.einsum("nij,nj->ni", turns, centre)
        assert np.linalg.norm(moved - position, axis=1).max() < 0.3
    assert np.median(np.abs(by_optimistix[0] - by_library[0])) < 2e-3


def test_the_map(examples):
    """The learned map is the average of the particles, and like the truth; its start was not."""
    names, _ = examples
    inner = slice(1, names["KMAX"] - 2)  # the outermost shells are learned last
    start, learned = names["curves"]["start"], names["curves"]["learned by gradient"]
    assert learned[inner].min() > 0.9
    assert start[4:].max() < 0.2
    same = np.asarray(resolution.fsc(names["learned"], jnp.asarray(names["averaged"])))
    assert same[inner].min() > 0.97
    assert names["losses"][-1] < 1.2 * names["losses"][0] < 0  # log-likelihood ratios grow


def test_the_figures(examples):
    check_figures("06_gradients", examples[1])
