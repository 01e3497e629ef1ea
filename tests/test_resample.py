"""Fourier slicing and rigid transforms against Gaussian blobs, whose transforms are known."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.score import transform as direct_sums

from sptjax import fourier, resample, rotation
from sptjax._types import Pose

# relative error of rotated slices that the module states (with room for the random rotation)
ERRORS = {1: 1.5e-2, 2: 2e-3, 3: 1e-3}


class Blobs:
    """Gaussian blobs centred within 0.2 n; density and transform in closed form.

    The particle ends at 0.35 n: interpolation errors grow towards the border of the box.
    """

    def __init__(self, box, seed=0, count=12, width=1.4):
        rng = np.random.default_rng(seed)
        direction = rng.normal(size=(count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        self.box, self.width = box, width
        self.places = direction * rng.uniform(0, 0.2 * box, (count, 1))
        self.heights = rng.uniform(0.5, 1.5, count)

    def moved(self, turn, shift):
        other = Blobs(self.box, width=self.width)
        other.heights = self.heights
        other.places = self.places @ np.asarray(turn, np.float64).T + np.asarray(shift)
        return other

    def density(self):
        axis = np.arange(self.box) - self.box // 2
        x, y, z = (
            np.exp(-0.5 * ((axis - self.places[:, i, None]) / self.width) ** 2) for i in range(3)
        )
        return np.einsum("b,bz,by,bx->zyx", self.heights, z, y, x, optimize=True)

    def transform(self, points):
        """At frequencies (kx, ky, kz), cycles per box, origin at the centre voxel."""
        k = 2 * np.pi / self.box * np.asarray(points, np.float64)
        fall = (2 * np.pi) ** 1.5 * self.width**3 * np.exp(-0.5 * self.width**2 * (k * k).sum(1))
        return fall * (np.exp(-1j * k @ self.places.T) @ self.heights)


@eqx.filter_jit
def sliced(volume, vectors, turn, kmax, order):
    return resample.sample(resample.slice_table(volume, kmax, order), vectors @ turn.T)


@eqx.filter_jit
def moved(volume, pose, order=3):
    return resample.transform(volume, pose, order)


def norm_error(got, want):
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("box", [24, 25])
def test_slices_of_blobs_have_the_stated_error(box, order):
    blobs = Blobs(box)
    vectors = fourier.half_ball(box / 2)
    volume = jnp.asarray(blobs.density(), jnp.float32)
    for turn in rotation.random(jax.random.key(1), 4):
        wave = jnp.asarray(vectors, jnp.float32)
        real, imag = sliced(volume, wave, turn, box / 2, order)
        want = blobs.transform(vectors @ np.asarray(turn).T)
        got = np.asarray(real) + 1j * np.asarray(imag)
        assert norm_error(got, want) < ERRORS[order]


def test_every_frequency_up_to_nyquist_is_that_of_the_volume(rng):
    """White noise in the middle of the box, so that the last shells carry as much as any."""
    box = 16
    noise = np.zeros((box,) * 3, np.float32)
    noise[4:12, 4:12, 4:12] = rng.normal(size=(8, 8, 8))
    vectors = fourier.half_ball(box / 2)
    turn = rotation.random(jax.random.key(2), 1)[0]
    real, imag = sliced(jnp.asarray(noise), jnp.asarray(vectors, jnp.float32), turn, box / 2, 3)
    want = direct_sums(noise, vectors @ np.asarray(turn, np.float64).T)
    error = np.abs(np.asarray(real) + 1j * np.asarray(imag) - want) / np.abs(want).mean()
    assert error.max() < 5e-3
    shell = np.rint(np.linalg.norm(vectors, axis=1)).astype(int)
    assert error[shell == 8].mean() < 2 * error[shell == 4].mean()


def test_a_table_cut_to_a_band_gives_the_same_slices():
    blobs = Blobs(24)
    vectors = jnp.asarray(fourier.half_ball(5), jnp.float32)
    turn = rotation.random(jax.random.key(3), 1)[0]
    volume = jnp.asarray(blobs.density(), jnp.float32)
    narrow = sliced(volume, vectors, turn, 5, 2)
    wide = sliced(volume, vectors, turn, 12, 2)
    np.testing.assert_allclose(narrow, wide, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize(("pad", "error"), [(2.0, 0.14), (4.0, 0.075), (8.0, 0.037)])
def test_the_nearest_sample_of_a_fine_table(pad, error):
    """The error halves when the table is twice as fine."""
    blobs = Blobs(24)
    vectors = fourier.half_ball(6)
    table = resample.slice_table(jnp.asarray(blobs.density(), jnp.float32), 6, 0, pad)
    for turn in rotation.random(jax.random.key(1), 4):
        real, imag = resample.sample(table, jnp.asarray(vectors, jnp.float32) @ turn.T)
        want = blobs.transform(vectors @ np.asarray(turn).T)
        got = np.asarray(real) + 1j * np.asarray(imag)
        assert norm_error(got, want) < error


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_spline_weights_and_their_derivatives(order):
    """Taps of a B-spline: the convolution of boxes, one more than its order."""
    fine = 200  # samples a knot
    box = np.ones(fine) / fine
    spline = np.ones(fine)
    for _ in range(order):
        spline = np.convolve(spline, box)
    place = (np.arange(len(spline)) - (len(spline) - 1) / 2) / fine
    fraction = np.linspace(0.05, 0.95, 7) if order % 2 else np.linspace(-0.45, 0.45, 7)
    taps = resample._bspline(jnp.asarray(fraction, jnp.float32), order)
    assert len(taps) == order + 1
    for offset, weight, derivative in taps:
        x = fraction - offset
        np.testing.assert_allclose(weight, np.interp(x, place, spline), atol=1e-2 / max(order, 1))
        slope = np.interp(x, place, np.gradient(spline, place))
        np.testing.assert_allclose(derivative, slope, atol=3e-2)


@pytest.mark.parametrize("order", [1, 2])
def test_gradient_of_a_slice(order):
    box, kmax = 24, 8
    table = resample.slice_table(jnp.asarray(Blobs(box).density(), jnp.float32), kmax, order)
    points = np.random.default_rng(4).uniform(-4.5, 4.5, (200, 3))
    # between the knots of the spline, so that a difference quotient stays within one piece
    half = 0.5 if order == 2 else 0.0
    points = (np.floor(points * table.pad + half) - half + 0.5) / table.pad
    points += np.random.default_rng(5).uniform(-0.15, 0.15, points.shape)
    axes = tuple(jnp.asarray(p, jnp.float32) for p in points.T)
    value, gradient = jax.jit(lambda a: resample.sample_with_gradient(table, a))(axes)
    plain = jax.jit(lambda a: jnp.stack(resample.sample_axes(table, a)))
    np.testing.assert_allclose(value, plain(axes), rtol=1e-4, atol=1e-2)
    scale = np.abs(np.asarray(gradient)).max()
    for i in range(3):
        tangent = tuple(jnp.full_like(a, float(i == j)) for j, a in enumerate(axes))
        automatic = jax.jvp(plain, (axes,), (tangent,))[1]
        np.testing.assert_allclose(gradient[i], automatic, atol=1e-5 * scale)
        # within a piece the function is a polynomial of degree 1 or 2 along each axis: the
        # central difference is exact
        step = tuple(0.05 * t for t in tangent)
        after = plain(tuple(a + s for a, s in zip(axes, step)))
        before = plain(tuple(a - s for a, s in zip(axes, step)))
        difference = (np.asarray(after) - np.asarray(before)) / 0.1
        np.testing.assert_allclose(gradient[i], difference, atol=2e-3 * scale)


# ---------------------------------------------------------------- rigid transforms


@pytest.mark.parametrize("box", [24, 25])
def test_transform_sends_a_blob_at_x_to_rx_plus_t(box):
    blobs = Blobs(box)
    shift = np.array([1.3, -0.6, 2.2])
    volume = jnp.asarray(blobs.density(), jnp.float32)
    for turn in rotation.random(jax.random.key(6), 2):
        pose = Pose(turn, jnp.asarray(shift, jnp.float32))
        want = blobs.moved(turn, shift).density()
        assert norm_error(np.asarray(moved(volume, pose)), want) < 1e-3


def test_quarter_turn_and_whole_shift_move_voxels():
    """No interpolation error at all: voxel (x, y, z) lands on (-y + 2, x - 1, z + 3)."""
    box = 24
    volume = Blobs(box).density().astype(np.float32)
    quarter = jnp.asarray([[0, -1, 0], [1, 0, 0], [0, 0, 1]], jnp.float32)
    got = moved(jnp.asarray(volume), Pose(quarter, jnp.asarray([2.0, -1.0, 3.0], jnp.float32)))
    x, y, z = np.meshgrid(*[np.arange(-6, 7)] * 3, indexing="ij")
    c = box // 2
    want = volume[z + c, y + c, x + c]
    np.testing.assert_allclose(np.asarray(got)[z + 3 + c, x - 1 + c, -y + 2 + c], want, atol=2e-3)


def test_transform_undoes_its_inverse():
    volume = jnp.asarray(Blobs(24).density(), jnp.float32)
    for i, turn in enumerate(rotation.random(jax.random.key(7), 2)):
        pose = Pose(turn, jnp.asarray([0.4 + i, -1.7, 0.9], jnp.float32))
        back = moved(moved(volume, pose), rotation.invert(pose))
        assert norm_error(np.asarray(back), np.asarray(volume)) < 1e-3


def test_two_transforms_are_the_composed_one():
    volume = jnp.asarray(Blobs(24).density(), jnp.float32)
    turns = rotation.random(jax.random.key(8), 2)
    a = Pose(turns[0], jnp.asarray([1.0, 0.5, -0.7], jnp.float32))
    b = Pose(turns[1], jnp.asarray([-0.3, 1.2, 0.8], jnp.float32))
    twice, once = moved(moved(volume, b), a), moved(volume, rotation.compose(a, b))
    assert norm_error(np.asarray(twice), np.asarray(once)) < 1e-3


def test_unknown_spline_order_is_refused():
    with pytest.raises(ValueError, match="order 4"):
        sliced(jnp.zeros((8, 8, 8)), jnp.ones((1, 3)), jnp.eye(3), 3, 4)
