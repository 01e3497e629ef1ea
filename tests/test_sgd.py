"""Maps by stochastic gradient descent from random poses, against what was planted."""

import functools

import jax
import numpy as np
import pytest
from alignment_setting import APIX, BOX, Volumes, volumes_of
from generate_setting import fsc_in_frame, planted, sampling, spread_deg

from sptjax import generate, simulate
from sptjax._errors import InputError
from sptjax._types import Pose

COUNT = 24


@functools.cache
def descended():
    """Two seeds on particles of one kind, with wedges."""
    truth, poses, _, material = planted(COUNT, 0.8)
    settings = generate.SgdSettings(steps=14, batch=12, levels=1, search_vox=2.0, seeds=2)
    return truth, poses, generate.generate_sgd(material, np.arange(COUNT), settings)


def test_the_planted_map_is_found_from_random_poses():
    truth, poses, found = descended()
    one = found.maps[0]
    assert np.array_equal(np.sort(one.indices), np.arange(COUNT))
    known = Pose(poses.rotation[one.indices], poses.shift[one.indices])
    assert np.median(spread_deg(one.rotation, known)) < 5
    assert fsc_in_frame(one, truth, poses, one.indices) > 0.9
    assert found.score.argmax() == found.best


def test_runs_are_in_one_frame_and_compared():
    """Agreement by definition, from the rotations; halves of different runs share no particle."""
    _, _, found = descended()
    turns = [run[0].rotation for run in found.runs]
    trace = np.einsum("nij,nij->n", turns[0], turns[1])
    angle = np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))
    other = 1 - found.best
    assert found.agreement[other] == pytest.approx(np.mean(angle < 15))
    assert found.agreement[found.best] == 1
    assert found.converged == (np.mean(angle < 15) > 0.5)
    assert found.fsc.shape == (2, BOX // 2 + 1)
    if found.converged:
        a, b = (run[0].map for run in found.runs)
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.9
        assert found.fsc[other, 1:6].min() > 0.8


@pytest.mark.slow
def test_noise_alone_does_not_converge():
    """Two runs on noise place the particles differently, and their halves do not agree."""
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(COUNT, BOX, BOX, BOX)).astype(np.float32)
    material = generate.prepare(Volumes(noise), sampling(), APIX)
    settings = generate.SgdSettings(steps=4, batch=12, levels=1, search_vox=1.0, seeds=2)
    found = generate.generate_sgd(material, np.arange(COUNT), settings)
    assert not found.converged
    assert np.delete(found.agreement, found.best).max() < 0.2


@pytest.mark.slow
def test_several_maps_divide_the_particles():
    maps = np.stack([simulate.phantom(BOX, 0), simulate.phantom(BOX, 1)])
    labels = np.arange(COUNT) % 2
    poses = simulate.random_poses(jax.random.key(3), COUNT, 1.0)
    geometry = simulate.TiltSeries(-60, 60, snr=1.5)
    volumes = np.asarray(volumes_of(maps, labels, poses, geometry, 4))
    material = generate.prepare(Volumes(volumes), sampling(geometry), APIX)
    settings = generate.SgdSettings(
        maps=2, steps=14, batch=12, levels=1, search_vox=2.0, seeds=1, seed=1
    )
    found = generate.generate_sgd(material, np.arange(COUNT), settings)
    classes = np.full(COUNT, -1)
    for c, one in enumerate(found.maps):
        classes[one.indices] = c
    assert (classes >= 0).all()
    assert len(found.maps) == 2
    assert max(np.mean(classes == labels), np.mean(classes != labels)) > 0.9


def test_too_few_particles_are_refused():
    _, _, _, material = planted(COUNT, 0.8)
    with pytest.raises(InputError, match="2 maps by sgd need at least 4 particles, not 3"):
        generate.generate_sgd(material, np.arange(3), generate.SgdSettings(maps=2))
