"""Centring of averages: a planted offset comes back, as far as the symmetry leaves it free."""

import jax.numpy as jnp
import numpy as np
import pytest

from sptjax import symmetry
from sptjax.centring import Autocentre, centre_shift
from sptjax.processors import PROCESSORS

BOX, APIX = 24, 5.0
OFF = np.array([3.0, -1.0, 2.0])  # x, y, z


def blob(offset):
    axis = np.arange(BOX) - BOX // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    square = (x - offset[0]) ** 2 + (y - offset[1]) ** 2 + (z - offset[2]) ** 2
    return np.exp(-square / 8).astype(np.float32)


def shift(settings, name="c1", volume=None):
    volume = blob(OFF) if volume is None else volume
    return centre_shift(jnp.asarray(volume), APIX, symmetry.parse(name), settings)


MASS = PROCESSORS["xform.centerofmass"]()


@pytest.mark.parametrize("name", ["xform.centerofmass", "xform.centeracf"])
def test_a_planted_offset_comes_back(name):
    assert shift(Autocentre(PROCESSORS[name]())) == pytest.approx(-OFF)


def test_filters_before_centring_find_the_same_offset():
    mass = PROCESSORS["xform.centerofmass"](threshold=0.3, int_shift_only=False)
    assert shift(Autocentre(mass, preprocess=True)) == pytest.approx(-OFF, abs=0.6)


@pytest.mark.parametrize(
    ("name", "free"),
    [("c3", [0, 0, 1]), ("h8:1:27.7:4.2", [0, 0, 1]), ("d2", [0, 0, 0]), ("oct", [0, 0, 0])],
)
def test_only_directions_that_the_symmetry_leaves_free(name, free):
    assert shift(Autocentre(MASS), name) == pytest.approx(-OFF * np.array(free))


def test_a_mask_hides_what_lies_outside():
    volume = blob([0, 0, 0]) + 3 * blob([9, 9, 9])
    mask = PROCESSORS["mask.sharp"](outer_radius=6)
    assert np.abs(shift(Autocentre(MASS), volume=volume)).max() >= 4
    assert np.abs(shift(Autocentre(MASS, mask=mask), volume=volume)).max() == 0


def test_an_automatic_mask_hides_scattered_noise(rng):
    volume = blob([0, 0, 0])
    volume[20:, 20:, 20:] += 0.15
    masked = shift(Autocentre(MASS, automask=True), volume=volume)
    assert np.abs(masked).max() < np.abs(shift(Autocentre(MASS), volume=volume)).max()


def test_a_constant_average_stays():
    assert shift(Autocentre(MASS), volume=np.zeros((BOX,) * 3, np.float32)).tolist() == [0, 0, 0]
