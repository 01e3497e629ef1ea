"""The wedge's grid against tilted planes, and its estimate against planted tilt ranges."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sptjax import io, phantom, simulate, wedge
from sptjax._errors import InputError
from sptjax.wedge import Wedge

RANGES = [(-60, 60), (-50, 50), (-40, 60), (-70, 70)]


def frequencies(box):
    k = np.arange(box) - box // 2
    kz, ky, kx = np.meshgrid(k, k, k, indexing="ij")
    return kx, ky, kz


def estimate(volumes, taper=True):
    total = wedge.accumulate_power(None, np.asarray(volumes), taper)
    return wedge.estimate(wedge.to_centred(total, volumes.shape[-1]))


def tomogram_boxes(rng, box, pieces, tilts, colour):
    """Noise of a power spectrum, tilts missing in the tomogram, cut into particles."""
    size = box * pieces
    kx, ky, kz = (np.fft.ifftshift(k / size) for k in frequencies(size))
    gain = np.sqrt(colour(np.sqrt(kx**2 + ky**2 + kz**2)))
    if tilts is not None:
        angle = np.degrees(np.arctan(kz / np.where(kx == 0, 1e-9, kx)))
        gain = gain * ((angle >= tilts[0]) & (angle <= tilts[1]))
    noise = np.fft.ifftn(np.fft.fftn(rng.normal(size=(size,) * 3)) * gain).real
    split = noise.reshape(pieces, box, pieces, box, pieces, box).transpose(0, 2, 4, 1, 3, 5)
    return split.reshape(-1, box, box, box).astype(np.float32)


def white(k):
    return np.ones_like(k)


def smooth(k):
    return np.exp(-((k / 0.15) ** 2))


def red(k):
    return 1 / (1e-5 + k**4)


def ctf(k):
    return np.sin(0.1 + 200 * k * k) ** 2


def assert_range(found, low, high, tolerance=2.0, axis="y"):
    assert found.wedge is not None, f"no wedge: {found.contrast:.2f}, {found.explained:.2f}"
    assert found.wedge.axis == axis
    assert abs(found.wedge.min_deg - low) < tolerance
    assert abs(found.wedge.max_deg - high) < tolerance


# ---------------------------------------------------------------- option value


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("none", None),
        ("-60,60", Wedge(-60, 60)),
        (" -50.5 , 61 , X", Wedge(-50.5, 61, "x")),
        ("-90,90,y", Wedge(-90, 90)),
    ],
)
def test_option_value(text, want):
    assert wedge.parse(text) == want


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("60", "--wedge=60: expected none, MIN,MAX or MIN,MAX,AXIS"),
        ("", "--wedge=: expected none"),
        ("a,60", "--wedge=a,60: expected none"),
        ("-60,60,y,3", "--wedge=-60,60,y,3: expected none"),
        ("60,-60", "--wedge=60,-60: tilt range 60 to -60 degrees: the first must be below"),
        ("-100,60", "--wedge=-100,60: tilt range -100 to 60 degrees"),
        ("nan,60", "--wedge=nan,60: tilt range nan to 60 degrees"),
        ("-60,60,z", "--wedge=-60,60,z: tilt axis 'z' is neither x nor y (the beam is along z)"),
    ],
)
def test_wrong_option_value(text, message):
    with pytest.raises(InputError, match="^" + re.escape(message)):
        wedge.parse(text)


def test_description():
    want = "tilts -60 to 45.5 degrees about x, 59% of Fourier space sampled"
    assert Wedge(-60, 45.5, "x").describe() == want


# ---------------------------------------------------------------- region


def test_region_of_60_degrees_is_the_textbook_wedge():
    kx, _, kz = frequencies(24)
    want = np.abs(kz) <= np.abs(kx) * np.tan(np.pi / 3)
    np.testing.assert_array_equal(wedge.region(24, Wedge(-60, 60)), want)


@pytest.mark.parametrize("axis", ["y", "x"])
@pytest.mark.parametrize(("low", "high"), [(-60, 60), (-50, 60), (-20, 75), (10, 80), (-90, 90)])
def test_region_by_definition_and_by_volume(low, high, axis):
    box = 65
    region = wedge.region(box, Wedge(low, high, axis))
    grid = region.transpose(0, 2, 1) if axis == "x" else region  # [kz, along, across]
    centre = box // 2
    for p in range(-10, 11):
        for q in range(1, 11):
            tilt = np.degrees(np.arctan2(p, q))  # its plane holds the frequencies m (q, any, p)
            for m in (-3, -1, 1, 2):
                assert (grid[centre + m * p, :, centre + m * q] == (low <= tilt <= high)).all()
    kx, ky, kz = frequencies(box)
    ball = np.sqrt(kx**2 + ky**2 + kz**2) < 32
    assert abs(region[ball].mean() - (high - low) / 180) < 0.015


@pytest.mark.parametrize("axis", ["y", "x"])
def test_central_slices_of_all_tilts_lie_in_the_region(axis):
    box, across = 32, np.arange(-15, 16)
    near = wedge.region(box, Wedge(-50, 61, axis), soft_vox=1.0) > 0  # slices miss the lattice
    grid = near.transpose(0, 2, 1) if axis == "x" else near
    for tilt in np.radians(np.arange(-50, 61.1, 3)):
        x, z = np.rint(across * np.cos(tilt)), np.rint(across * np.sin(tilt))
        assert grid[z.astype(int) + box // 2, :, x.astype(int) + box // 2].all()
    opposite = np.radians(-61)
    x, z = np.rint(across * np.cos(opposite)), np.rint(across * np.sin(opposite))
    assert not grid[z.astype(int) + box // 2, :, x.astype(int) + box // 2].all()


@given(
    low=st.floats(-90, 80),
    span=st.floats(1, 180),
    axis=st.sampled_from("xy"),
    box=st.sampled_from([8, 9, 16]),
    soft=st.sampled_from([0.0, 2.5]),
)
@settings(max_examples=40, deadline=None)
def test_region_is_symmetric_between_friedel_mates(low, span, axis, box, soft):
    region = wedge.region(box, Wedge(low, min(low + span, 90), axis), soft)
    values = np.fft.ifftshift(region)
    mate = -np.arange(box) % box
    np.testing.assert_array_equal(values, values[mate][:, mate][:, :, mate])
    # a filter by the region therefore leaves a real volume real
    assert np.abs(np.fft.ifftn(values).imag).max() < 1e-7
    assert region[box // 2, box // 2, box // 2] == 1


def test_lopsided_range_samples_the_side_of_its_tilts():
    region = wedge.region(33, Wedge(-20, 70))
    assert region[16 + 10, 16, 16 + 8] == 1  # 51 degrees
    assert region[16 - 10, 16, 16 + 8] == 0  # -51 degrees
    assert region[16 + 10, 16, 16 - 8] == 0  # its Friedel mate
    mirrored = wedge.region(33, Wedge(-70, 20))
    np.testing.assert_array_equal(region[::-1], mirrored)
    np.testing.assert_array_equal(region.transpose(0, 2, 1), wedge.region(33, Wedge(-20, 70, "x")))


def test_soft_edge_falls_with_the_distance_from_the_sampled_range():
    sharp = wedge.region(48, Wedge(-45, 45))
    soft = wedge.region(48, Wedge(-45, 45), 4.0)
    assert (soft[sharp == 1] == 1).all()
    kx, _, kz = frequencies(48)
    distance = (np.abs(kz) - np.abs(kx)) / np.sqrt(2)
    want = np.where(distance <= 0, 1, 0.5 + 0.5 * np.cos(np.pi * np.minimum(distance / 4, 1)))
    inner = (slice(1, None),) * 3
    np.testing.assert_allclose(soft[inner], want[inner], atol=1e-6)
    with pytest.raises(InputError, match="negative"):
        wedge.region(16, Wedge(-60, 60), -1)


# ---------------------------------------------------------------- power


@pytest.mark.parametrize("box", [16, 17])
def test_accumulated_power_is_that_of_the_full_transform(rng, box):
    volumes = rng.normal(size=(5, box, box, box)).astype(np.float32)
    total = wedge.accumulate_power(None, volumes[:3], taper=False)
    total = wedge.accumulate_power(total, volumes[3:], taper=False)
    want = np.fft.fftshift((np.abs(np.fft.fftn(volumes, axes=(1, 2, 3))) ** 2).sum(0))
    np.testing.assert_allclose(wedge.to_centred(total, box), want, rtol=2e-4)


def test_a_broken_particle_adds_no_power(rng):
    volumes = rng.normal(size=(3, 16, 16, 16)).astype(np.float32)
    want = wedge.accumulate_power(None, volumes[[0, 2]])
    volumes[1, 3, 4, 5] = np.nan
    np.testing.assert_allclose(wedge.accumulate_power(None, volumes), want, rtol=1e-5)


def test_wrong_volumes_are_refused():
    total = wedge.accumulate_power(None, np.ones((1, 16, 16, 16)))
    with pytest.raises(InputError, match="box 8 do not fit a power sum"):
        wedge.accumulate_power(total, np.ones((1, 8, 8, 8)))
    with pytest.raises(InputError, match="not a batch of cubes"):
        wedge.accumulate_power(None, np.ones((16, 16, 16)))


# ---------------------------------------------------------------- estimate


@pytest.mark.parametrize("colour", [white, smooth, red, ctf])
@pytest.mark.parametrize("tilts", RANGES)
def test_range_is_found_in_boxes_cut_from_a_tomogram(rng, tilts, colour):
    particles = tomogram_boxes(rng, 32, 2, tilts, colour)
    assert_range(estimate(particles), *tilts)
    assert_range(estimate(particles[:1]), *tilts)  # even one particle of pure noise


@pytest.mark.parametrize("colour", [white, smooth, red, ctf])
def test_full_sampling_is_no_wedge(rng, colour):
    particles = tomogram_boxes(rng, 32, 2, None, colour)
    for number in (1, 8):
        found = estimate(particles[:number])
        assert found.wedge is None
        assert found.contrast < 0.8 * wedge.MIN_CONTRAST
        assert found.explained < 0.5 * wedge.MIN_EXPLAINED


def test_no_wedge_in_white_noise_of_any_size(rng):
    """The thresholds are far from the extremes of 24 stacks of noise."""
    contrast, explained = 0.0, 0.0
    for trial in range(24):
        box = (24, 32)[trial % 2]
        found = estimate(rng.normal(size=(1 + trial // 12, box, box, box)).astype(np.float32))
        assert found.wedge is None
        contrast, explained = max(contrast, found.contrast), max(explained, found.explained)
    assert contrast < 0.8 * wedge.MIN_CONTRAST
    assert explained < 0.5 * wedge.MIN_EXPLAINED


@pytest.mark.parametrize("box", [48, 64])
def test_larger_boxes(rng, box):
    assert_range(estimate(tomogram_boxes(rng, box, 2, (-40, 60), ctf)), -40, 60, 1.0)


def test_tilt_axis_x_is_told_from_y(rng):
    turned = tomogram_boxes(rng, 32, 2, (-50, 60), red).transpose(0, 1, 3, 2)
    assert_range(estimate(turned), -50, 60, axis="x")


def test_profile_shows_the_two_levels(rng):
    found = estimate(tomogram_boxes(rng, 32, 2, (-40, 60), white))
    inside = (found.angles_deg > -34) & (found.angles_deg < 54)
    outside = (found.angles_deg < -50) | (found.angles_deg > 70)
    assert abs(found.power[inside].mean() - 1) < 0.1
    assert found.power[outside].mean() < 0.05
    assert found.contrast > 0.9


@pytest.fixture(scope="module")
def particle_map():
    return jnp.asarray(phantom.phantom(32, 0))[None]


@pytest.mark.parametrize("snr", [None, 10.0, 0.1, 0.01])
@pytest.mark.parametrize("tilts", [(-60, 60), (-40, 60), (-90, 90)])
def test_range_is_found_in_benchmark_particles(particle_map, tilts, snr):
    """The wedge is imposed in the Fourier space of the box: its edge is sharp."""
    geometry = simulate.TiltSeries(*tilts, snr=snr)
    poses = simulate.random_poses(jax.random.key(1), 10, 2.0)
    classes = jnp.zeros(10, jnp.int32)
    key = jax.random.key(2)
    particles = simulate.white_wedge_particles(particle_map, classes, poses, geometry, key)
    if tilts == (-90, 90):
        assert estimate(particles).wedge is None
    else:
        assert_range(estimate(particles), *tilts)
        assert_range(estimate(particles, taper=False), *tilts)


@pytest.mark.parametrize("premultiply", [False, True])
def test_range_is_found_in_simulated_tilt_series(particle_map, premultiply):
    """Ramp-filtered; or premultiplied by the CTF without ramp, ended sharply at the last tilt."""
    geometry = simulate.TiltSeries(-45, 60, 3.0, snr=0.1)
    poses = simulate.random_poses(jax.random.key(1), 8, 2.0)
    classes = np.zeros(8, int)
    key = jax.random.key(2)
    particles = simulate.simulate(
        np.asarray(particle_map), classes, poses, 12.0, geometry, key, premultiply=premultiply
    )
    reach = 0 if premultiply else 1.5  # half a step past the last tilt
    assert_range(estimate(particles), -45 - reach, 60 + reach)


def test_full_series_without_ramp_is_not_taken_for_a_wedge_about_x(particle_map):
    """Its power falls as 1/k from the tilt axis, which looks like a wedge about the other axis."""
    geometry = simulate.TiltSeries(-90, 90, 5.0, snr=0.1)
    poses = simulate.random_poses(jax.random.key(1), 8, 2.0)
    classes = np.zeros(8, int)
    particles = simulate.simulate(
        np.asarray(particle_map),
        classes,
        poses,
        12.0,
        geometry,
        jax.random.key(2),
        premultiply=True,
    )
    assert estimate(particles).wedge is None


def test_power_that_cannot_be_used_is_refused():
    with pytest.raises(InputError, match="not a cube"):
        wedge.estimate(np.ones((16, 16, 8)))
    with pytest.raises(InputError, match="boxes of 8 voxels are too small"):
        wedge.estimate(np.ones((8, 8, 8)))
    with pytest.raises(InputError, match="empty or not finite"):
        wedge.estimate(np.zeros((16, 16, 16)))


# ---------------------------------------------------------------- real particles

# first and last tilt, from the tables of the data set; the other two series are irregular, with
# gaps of 10 degrees and more at one end
REGULAR = {1: (-60.5, 54.2), 3: (-61.2, 51.5)}


@pytest.fixture(scope="module")
def ribosomes(shared_data):
    folder = shared_data / "real_ribosomes"
    with io.open_stack(folder / "particles.hdf") as stack:
        particles = stack.read(np.arange(40))
    with io.open_stack(folder / "weights.hdf") as stack:
        weights = stack.read(np.arange(40))
    return np.asarray(particles), np.asarray(weights)


@pytest.mark.parametrize("series", REGULAR)
def test_real_range_agrees_with_the_published_tilts(ribosomes, series):
    rows = slice(10 * series, 10 * series + 10)
    found = estimate(ribosomes[0][rows])
    assert_range(found, *REGULAR[series], tolerance=3.0)
    assert_range(estimate(ribosomes[0][rows][:1]), *REGULAR[series], tolerance=4.0)
    # the other hand of the beam is told apart
    first, last = REGULAR[series]
    assert_range(estimate(ribosomes[0][rows, ::-1]), -last, -first, 3.0)


@pytest.mark.parametrize("series", range(4))
def test_real_region_covers_the_published_weights(ribosomes, series):
    weights = ribosomes[1][10 * series]
    found = estimate(ribosomes[0][10 * series : 10 * series + 10])
    assert found.wedge is not None
    assert found.wedge.axis == "y"
    region = wedge.region(32, found.wedge)
    kx, ky, kz = frequencies(32)
    ball = np.sqrt(kx**2 + ky**2 + kz**2) < 14
    assert (weights * region).sum() > 0.92 * weights.sum()
    assert (weights[ball & (region == 1)] > 0).mean() > 0.99
    # and the particles' range is that of the weights
    truth = wedge.estimate(weights).wedge
    assert truth is not None
    assert_range(found, truth.min_deg, truth.max_deg, tolerance=5.0)
