"""When a refinement from copies of one map follows the classes that it finds."""

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sptjax import classify, symmetry
from sptjax.align import AlignmentSettings, Found
from sptjax.refinement import SETTLED_DEG, RefineSettings, _may_part
from sptjax.state import initial_state

N = 10
SETTINGS = RefineSettings(AlignmentSettings(), (symmetry.parse("c1"),) * 2, 10.0)
SURE = classify.BEYOND_DOUBT
LIKELY = (classify.CLEARLY + classify.BEYOND_DOUBT) / 2


def split(ratio):
    return classify.Split(np.full((N, 2), 0.5), ratio, 1.0)


def state_and_found(round_, turn_deg):
    """Particles of which the best pose turned by so much since the round before."""
    start = Found.empty(N, 2)
    start.rotation[:] = Rotation.random(N, random_state=1).as_matrix()[:, None]
    start.score[:, 1] = 1.0
    state = initial_state(
        np.zeros((2, 8, 8, 8), np.float32), N, gold_standard=False, expected_score=9.0, start=start
    )
    turn = Rotation.from_rotvec([[0, np.radians(turn_deg), 0]]).as_matrix()
    found = dataclasses.replace(start, rotation=(turn @ start.rotation).astype(np.float32))
    found.rotation[:, 0] = np.eye(3)  # worse against the other copy
    return dataclasses.replace(state, round=round_), found


@pytest.mark.parametrize(
    ("ratio", "round_", "turn_deg", "iterations", "parted"),
    [
        (classify.CLEARLY * 0.99, 5, 0.0, 6, False),  # no clearer than chance
        (SURE * 1.01, -1, 90.0, None, True),  # beyond doubt, at once
        (LIKELY, -1, 0.0, None, False),  # no round before to compare poses with
        (LIKELY, 3, SETTLED_DEG * 1.1, None, False),  # poses still move
        (LIKELY, 3, SETTLED_DEG * 0.9, None, True),
        (LIKELY, 0, 90.0, 6, False),  # second of six rounds
        (LIKELY, 2, 90.0, 6, True),  # fourth of six
        (LIKELY, -1, 90.0, 1, True),  # the only one
    ],
)
def test_classes_part_when_poses_have_settled(ratio, round_, turn_deg, iterations, parted):
    state, found = state_and_found(round_, turn_deg)
    settings = dataclasses.replace(SETTINGS, iterations=iterations)
    assert _may_part(split(ratio), state, found, settings) is parted
