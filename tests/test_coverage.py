"""What particles have seen, against slow sums and against geometry."""

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from sptjax import coverage, symmetry, wedge
from sptjax._errors import InputError
from sptjax.averaging import Assigned
from sptjax.particles import Sampling

BOX = 16
C1 = symmetry.parse("c1")


def assigned(turns, classes=None, weights=None):
    n = len(turns)
    return Assigned(
        np.arange(n),
        np.asarray(turns, np.float32),
        np.zeros((n, 3), np.float32),
        np.zeros(n, int) if classes is None else np.asarray(classes),
        np.ones(n, np.float32) if weights is None else np.asarray(weights, np.float32),
    )


def region(box=BOX):
    return wedge.region(box, wedge.parse("-60,60"))


def inside(edge):
    axis = np.arange(edge) - edge // 2
    return sum(a**2 for a in np.meshgrid(axis, axis, axis)) <= (edge // 2 - 1) ** 2


class Grids:
    """One grid per particle."""

    box = BOX

    def __init__(self, grids):
        self.grids = grids

    def __len__(self):
        return len(self.grids)

    def read(self, indices):
        return self.grids[indices]


# ---------------------------------------------------------------- Fourier space


def slow(turns, grids, weights):
    """The definition, particle by particle and frequency by frequency."""
    axis = np.arange(BOX) - BOX // 2
    total = np.zeros((BOX,) * 3)
    for turn, grid, weight in zip(turns, grids, weights):
        for i, j, k in np.argwhere(inside(BOX)):
            place = turn.T @ np.array([axis[k], axis[j], axis[i]])  # x, y, z of the particle
            at = (place[::-1] + BOX // 2)[:, None]
            total[i, j, k] += weight * map_coordinates(grid, at, order=1)[0]
    return total / sum(weights)


def test_sampling_is_that_of_the_definition(rng):
    turns = Rotation.random(3, random_state=2).as_matrix()
    grids = rng.uniform(0, 1, (3, BOX, BOX, BOX)).astype(np.float32)
    grids[:, 0, 0, 0] = 1.0  # the largest of each
    weights = [1.0, 0.5, 2.0]
    found = coverage.sampled(
        assigned(turns, weights=weights), Sampling(None, Grids(grids)), (C1,), BOX, batch=2
    )
    np.testing.assert_allclose(found[0], slow(turns, grids, weights), atol=2e-5)


def test_weights_of_a_ctf_count_as_shares_of_the_largest(rng):
    turns = Rotation.random(4, random_state=3).as_matrix()
    grid = rng.uniform(0, 1, (BOX,) * 3).astype(np.float32)
    one = coverage.sampled(assigned(turns), Sampling(grid / grid.max()), (C1,), BOX)
    other = coverage.sampled(assigned(turns), Sampling(37 * grid), (C1,), BOX)
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_unturned_particles_leave_the_wedge_open():
    """A tilt range of 60 degrees leaves out a third of Fourier space."""
    box = 32
    found = coverage.sampled(assigned([np.eye(3)] * 5), Sampling(region(box)), (C1,), box)
    np.testing.assert_allclose(found[0][inside(box)], region(box)[inside(box)], atol=1e-6)
    assert coverage.unsampled_share(found[0]) == pytest.approx(1 / 3, abs=0.02)


def test_a_quarter_turn_about_the_axis_closes_it():
    quarter = Rotation.from_euler("y", 90, degrees=True).as_matrix()
    turns = [np.eye(3), quarter]
    found = coverage.sampled(assigned(turns), Sampling(region()), (C1,), BOX)
    assert coverage.unsampled_share(found[0]) == 0
    apart = coverage.sampled(assigned(turns, [0, 1]), Sampling(region()), (C1, C1), BOX)
    np.testing.assert_allclose(found[0], apart.mean(0), atol=1e-6)
    assert coverage.unsampled_share(apart[0]) > 0.3


def test_symmetry_turns_what_was_seen():
    lying = Rotation.from_euler("x", 90, degrees=True).as_matrix()
    four = symmetry.parse("c4")
    alone = coverage.sampled(assigned([lying]), Sampling(region()), (C1,), BOX)[0]
    found = coverage.sampled(assigned([lying]), Sampling(region()), (four,), BOX)[0]
    copies = np.mean([np.rot90(alone[1:, 1:, 1:], k, (1, 2)) for k in range(4)], 0)
    within = inside(BOX)[1:, 1:, 1:]
    np.testing.assert_allclose(found[1:, 1:, 1:][within], copies[within], atol=1e-5)


def test_large_boxes_are_thinned_out():
    found = coverage.sampled(assigned([np.eye(3)]), Sampling(region(64)), (C1,), 64)
    assert found.shape == (1, 32, 32, 32)
    assert coverage.unsampled_share(found[0]) == pytest.approx(1 / 3, abs=0.02)


def test_a_class_without_particles_saw_nothing():
    found = coverage.sampled(assigned([np.eye(3)], [1]), Sampling(region()), (C1, C1), BOX)
    assert not found[0].any()
    assert found[1].any()


def test_shells_have_their_mean_and_least():
    axis = np.arange(BOX) - BOX // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    mean, least = coverage.shell_statistics(np.rint(radius) + (x > 0))
    assert len(mean) == len(least) == BOX // 2
    np.testing.assert_array_equal(least, np.arange(BOX // 2))
    assert ((mean[2:] > least[2:] + 0.3) & (mean[2:] < least[2:] + 0.5)).all()


# ---------------------------------------------------------------- directions


def test_even_views_have_density_one_and_no_gap():
    n = 5000
    z = 1 - (2 * np.arange(n) + 1) / n
    turn = np.arange(n) * 2.399963
    ring = np.sqrt(1 - z**2)
    found = coverage.views(np.stack([ring * np.cos(turn), ring * np.sin(turn), z], 1))
    np.testing.assert_allclose(found.density, 1, atol=0.05)
    assert found.unseen == 0
    assert found.largest_gap_deg < 3
    assert found.unseen_at_random < 1e-6


def test_one_view_leaves_all_but_its_cap():
    found = coverage.views(np.array([[0, 3.0, 0]]))
    cap = (1 - np.cos(np.radians(15))) / 2
    assert found.unseen == pytest.approx(1 - cap, abs=0.002)
    assert found.unseen_at_random == pytest.approx(1 - cap)
    assert found.largest_gap_deg == pytest.approx(180, abs=3)
    row, column = np.unravel_index(found.density.argmax(), found.density.shape)
    assert found.latitude_deg[row] == pytest.approx(0, abs=3)
    assert found.longitude_deg[column] == pytest.approx(90, abs=3)
    here = (found.latitude_deg == 0)[:, None] & (found.longitude_deg == 0)[None, :]
    assert found.distance_deg[here] == pytest.approx(90)


def test_many_views_are_counted_at_points(rng):
    """Twice the views of a set have its density, though they are then summed otherwise."""
    directions = rng.normal((1, 0, 0), 1, (4000, 3))
    one, two = coverage.views(directions), coverage.views(np.concatenate([directions] * 2))
    np.testing.assert_allclose(two.density, one.density, rtol=0.03, atol=0.02)
    assert two.unseen == one.unseen


def test_density_is_a_density(rng):
    """Its mean over the sphere is one, whatever the views."""
    found = coverage.views(rng.normal((2, 0, 0), 1, (30, 3)))
    area = np.cos(np.radians(found.latitude_deg))[:, None] * np.ones((1, 72))
    mean = (found.density[:, :-1] * area).sum() / area.sum()
    assert mean == pytest.approx(1, abs=0.02)


def test_random_views_leave_what_chance_says(rng):
    found = [coverage.views(rng.normal(size=(100, 3))) for _ in range(12)]
    assert np.mean([f.unseen for f in found]) == pytest.approx(found[0].unseen_at_random, abs=0.03)


@pytest.mark.parametrize("bad", [np.zeros((2, 3)), np.ones(3), np.ones((4, 2))])
def test_no_directions_are_refused(bad):
    with pytest.raises(InputError):
        coverage.views(bad)
