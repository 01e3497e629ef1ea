"""What a search looks at follows from the spectral information and the expected score."""

import itertools

import numpy as np
import pytest

from sptjax import fourier
from sptjax.align import plan_search

BOX = 32
FALLING = np.exp(-np.arange(15) / 4.0) * np.arange(15) ** 2  # shells 0 ... 14


def plan(score, **options):
    given = {"box": BOX, "radius_vox": 10.0, "max_shift_vox": 4.0, "expected_score": score}
    return plan_search(FALLING, **given | options)


def test_fainter_particles_keep_more_candidates_through_the_bands():
    """And never look at a narrower band first."""
    plans = [plan(score) for score in (60.0, 30.0, 13.0, 10.0, 6.0)]
    for clear, faint in itertools.pairwise(plans):
        assert faint.candidates >= clear.candidates
        assert faint.coarse_k >= clear.coarse_k
    assert plans[0].candidates == 12
    assert plans[-1].candidates == 400
    for one in plans:
        kept = [one.candidates, *(stage.keep for stage in one.stages)]
        assert kept == sorted(kept, reverse=True)
        bands = [one.coarse_k, *(stage.kmax for stage in one.stages)]
        assert bands == sorted(bands)
        assert kept[-1] == 1


@pytest.mark.parametrize("keep", [1, 6, 32])
def test_as_many_poses_as_asked_for(keep):
    for score in (60.0, 6.0):
        found = plan(score, keep=keep)
        assert found.stages[-1].keep == keep
        assert all(stage.keep >= keep for stage in found.stages)
        assert found.candidates >= (2 * keep if keep > 1 else 1)


def test_the_band_is_the_widest_that_the_work_allows():
    """Multiplications and additions of the product: rotations, shifts and twice the band."""

    def operations(found):
        turns = 8 * np.pi**2 / np.radians(found.delta_deg) ** 3
        return 4 * turns * len(found.shifts()) * fourier.half_ball_size(found.coarse_k)

    free = plan(6.0, work=1e15)
    bound = operations(free) / 20
    narrow = plan(6.0, work=bound)
    assert operations(narrow) <= bound
    assert narrow.coarse_k < free.coarse_k
    assert plan(6.0, work=bound, group_order=8).coarse_k > narrow.coarse_k


def test_spacings_follow_the_band():
    """The phase at the particle's edge and the band's end turns by 1.2 over half a step."""
    found = plan(6.0)
    phase = 2 * np.pi * found.coarse_k * 10.0 / BOX * np.radians(found.delta_deg) / 2
    assert phase == pytest.approx(1.2) or found.delta_deg in (5.0, 18.0)
    assert found.shift_step_vox == pytest.approx(BOX / (2.67 * found.coarse_k))
