"""The comparators in the search: planted poses, and the score that is reported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from alignment_setting import APIX, BOX, C1, errors, planted
from oracles import score as oracle

from sptjax import options, simulate
from sptjax.align import AlignmentSettings, RotateTranslate3D, align_particles
from sptjax.comparators import CCC, COMPARATORS, CCCTomoThresh, Matched, ball_score

COUNT, EXPECTED, STEP = 4, 20.0, 24
MAPS = np.stack([np.asarray(simulate.phantom(BOX, state)) for state in (0, 2)])
POSES = simulate.random_poses(jax.random.key(8), COUNT, 2.5)
CLASSES = np.arange(COUNT) % 2
POLISHED = RotateTranslate3D(search=3, delta=STEP, dphi=STEP)
GRID = RotateTranslate3D(search=3, delta=STEP, dphi=STEP, refine=False)


@pytest.fixture(scope="module")
def view():
    return planted(MAPS, CLASSES, POSES, simulate.TiltSeries(-60, 60, snr=0.5))


def run(view, **settings):
    return align_particles(
        view.particles, np.arange(COUNT), MAPS, (C1, C1), AlignmentSettings(**settings),
        expected_score=EXPECTED,
    )  # fmt: skip


def by_definition(view, comparator, found, i, c):
    """The comparator on the exact transform of the map at the pose that was found."""
    loaded, turn = view.particles, found.rotation[i, c]
    place = -turn.T @ found.shift[i, c]
    model = jnp.asarray(oracle.model(MAPS[c], loaded.vectors, turn, place), jnp.complex64)
    noise = loaded.noise if isinstance(comparator, Matched) else np.ones_like(loaded.noise)
    data, seen = loaded.read(np.array([i]))[0][0] / noise, loaded.mean_sampling / noise
    vectors = jnp.asarray(loaded.vectors)
    value = jax.jit(ball_score, static_argnums=(0, 5, 6))(
        comparator, jnp.asarray(data), model, jnp.asarray(seen), vectors, BOX, APIX
    )
    return float(value)


def own(found):
    return found.score[np.arange(COUNT), CLASSES], found.score[np.arange(COUNT), 1 - CLASSES]


TEXTS = [*COMPARATORS, "ccc.tomo.thresh:compat=1"]


@pytest.mark.parametrize("text", TEXTS)
def test_planted_poses_are_found_and_scored_by_definition(view, text):
    comparator = options.bind(options.parse(text), COMPARATORS, "--aligncmp")
    found = run(view, aligner=POLISHED, comparator=comparator, apix=APIX)
    for c in range(2):
        angle, distance = errors(found, POSES, c)
        assert angle[CLASSES == c].max() < 5
        assert distance[CLASSES == c].max() < 0.4
    for i, c in np.ndindex(COUNT, 2):
        want = by_definition(view, comparator, found, i, c)
        # the search slices linearly, 1 % of the amplitudes, and its band holds nearly all
        error = 0.02 if text == "matched" else 3e-3
        assert found.score[i, c] == pytest.approx(want, rel=error)
    if text not in {"dot", "sqeuclidean"}:  # these depend on the scale of the reference
        right, wrong = own(found)
        assert (right > wrong).all()  # scores of different references compare


def test_what_is_no_correlation_ranks_what_the_search_proposes(view):
    """Where two poses differ, the comparator prefers its own choice to the correlation's."""
    plain = run(view, aligner=GRID, comparator=CCCTomoThresh(), apix=APIX)
    ranked = run(view, aligner=GRID, comparator=CCC(), apix=APIX)
    differ = 0
    for i, c in np.ndindex(COUNT, 2):
        one, other = (by_definition(view, CCC(), found, i, c) for found in (ranked, plain))
        assert one >= other - 1e-3
        differ += one > other + 1e-3
    assert differ > 0
