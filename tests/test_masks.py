"""Masks against their formulas, and the automask on planted molecules."""

import numpy as np
import pytest

from sptjax import masks
from sptjax._errors import InputError


def distance(box):
    axis = np.arange(box) - box // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    return np.sqrt(x**2 + y**2 + z**2)


@pytest.mark.parametrize("box", [15, 16])
def test_sharp_sphere_holds_the_voxels_within_the_radius(box):
    np.testing.assert_array_equal(masks.sphere(box, 5.0), distance(box) <= 5.0)


def test_soft_edge_is_half_a_cosine():
    mask = np.asarray(masks.sphere(32, 8.0, 4.0))
    line = mask[16, 16, 16:]
    np.testing.assert_allclose(line[:9], 1)
    expected = [0.5 * (1 + np.cos(np.pi * s / 4)) for s in range(1, 5)]
    np.testing.assert_allclose(line[9:13], expected, atol=1e-6)
    np.testing.assert_array_equal(line[13:], 0)
    np.testing.assert_array_equal(mask[1:, 1:, 1:], mask[:0:-1, :0:-1, :0:-1])


@pytest.mark.parametrize("arguments", [(-1.0, 0.0), (3.0, -2.0)])
def test_negative_sizes_are_refused(arguments):
    with pytest.raises(InputError, match="radius and soft edge"):
        masks.sphere(16, *arguments)


def planted(rng, noise):
    """A shell-shaped molecule of radius 9, a speck of dust away from it, white noise."""
    box = 40
    r = distance(box)
    molecule = (r < 9) & (r > 4)
    density = molecule.astype(np.float32)
    density[3:5, 3:5, 3:5] = 1.5
    noisy = density + noise * rng.normal(size=density.shape)
    return noisy.astype(np.float32), r


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_automask_finds_the_molecule_and_nothing_else(rng, noise):
    volume, r = planted(rng, noise)
    mask = np.asarray(
        masks.automask(volume, smooth_vox=1.5, dilate_vox=2.0, soft_edge_vox=3.0), np.float64
    )
    assert mask.min() == 0
    assert mask.max() == 1
    assert mask[r < 9].min() > 0.9  # the cavity is part of the molecule
    assert mask[r > 18].max() == 0  # neither noise nor dust
    # the volume is that of a sphere that reaches at most a few voxels beyond the molecule
    radius = (mask.sum() * 3 / (4 * np.pi)) ** (1 / 3)
    assert 10 < radius < 15


def test_automask_does_not_depend_on_scale_or_level(rng):
    volume, _ = planted(rng, 0.5)
    first = masks.automask(volume)
    np.testing.assert_allclose(masks.automask(100 * volume - 3000), first, atol=1e-5)


@pytest.mark.parametrize("value", [2.0, np.nan])
def test_automask_refuses_maps_without_a_molecule(value):
    with pytest.raises(InputError, match="automask"):
        masks.automask(np.full((8, 8, 8), value, np.float32))
