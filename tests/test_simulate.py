"""Simulated particles against slow projections, planted answers and counted noise."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import projection as oracle
from scipy import ndimage
from script_runs import load

from sptjax import io, resample, rotation, simulate
from sptjax._errors import InputError
from sptjax._types import Pose
from sptjax.tilt_series import ctf_1d, ctf_2d, half_region

BOX = 32
APIX = 12.0
KEY = jax.random.key(7)
NO_CTF = simulate.TiltSeries(defocus_um=0.0)


@pytest.fixture(scope="module")
def maps():
    """Smooth enough for the splines of the oracle to be close to exact."""
    states = [ndimage.gaussian_filter(simulate.phantom(BOX, s), 0.8) for s in (0, 1, 2)]
    return jnp.asarray(np.stack(states))


@pytest.fixture(scope="module")
def poses():
    return first_poses(jax.random.key(11), 8, 3.0)


def first_poses(key, number, max_shift_vox):
    """The first of 20: one compilation serves all tests."""
    poses = simulate.random_poses(key, 20, max_shift_vox)
    return Pose(np.asarray(poses.rotation)[:number], np.asarray(poses.shift)[:number])


def spectrum(volumes):
    axes = (-3, -2, -1)
    return np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(volumes, axes), axes=axes), axes)


def radius(box):
    k = np.arange(box) - box // 2
    return np.sqrt((k[:, None, None] ** 2 + k[:, None] ** 2 + k**2).astype(float))


def shell_correlation(a, b, region=None):
    """FSC and amplitude gain of ``a`` over ``b`` for shells 0 ... n/2 - 1."""
    box = a.shape[-1]
    region = np.ones((box,) * 3) if region is None else region
    shells = np.rint(radius(box)).astype(int).ravel()

    def total(values):
        return np.bincount(shells, (values * region).ravel())[: box // 2]

    f, g = spectrum(a), spectrum(b)
    cross = total((f * g.conj()).real)
    power = total(np.abs(g) ** 2)
    return cross / np.sqrt(total(np.abs(f) ** 2) * power), cross / power


def make(maps, classes, poses, geometry, apix=APIX, **options):
    """Particles by way of one compiled shape: batches of 4, room for the longest shift."""
    number = len(classes)
    rows = np.arange(max(4, number)) % number
    padded = Pose(np.asarray(poses.rotation)[rows], np.asarray(poses.shift)[rows])
    simulator = simulate.prepare(maps, apix, geometry, max_shift_vox=3.0, **options)
    batches = simulate.simulate_batches(simulator, np.asarray(classes)[rows], padded, KEY, 4)
    return np.concatenate(list(batches))[:number], simulator


def pose_at(poses, i):
    return Pose(jnp.asarray(np.asarray(poses.rotation)[i]), jnp.asarray(np.asarray(poses.shift)[i]))


# ---------------------------------------------------------------- projection


def test_projections_equal_sums_of_the_rotated_map(maps, poses):
    geometry = simulate.TiltSeries(-60, 40, 20)
    got = np.asarray(simulate.projections(maps[0], pose_at(poses, 0), geometry))
    want = oracle.projections(maps[0], poses.rotation[0], poses.shift[0], geometry.angles_deg)
    # the oracle's cubic spline in real space smooths finer detail: it sets the tolerance
    assert np.abs(got - want).max() < 0.03 * want.max()
    for g, w in zip(got, want):
        assert np.corrcoef(g.ravel(), w.ravel())[0, 1] > 0.999


def test_full_series_restores_the_rotated_map(maps, poses):
    geometry = simulate.TiltSeries(-90, 90, 2, defocus_um=0.0)
    assert len(geometry.angles_deg) == 90  # -90 and 90 are one image
    pose = Pose(poses.rotation[:3], poses.shift[:3])
    particles, _ = make(maps, np.arange(3), pose, geometry)
    for i in range(3):
        truth = oracle.particle(maps[i], poses.rotation[i], poses.shift[i])
        fsc, gain = shell_correlation(particles[i], truth)
        cut = int(0.6 * BOX / 2)
        assert fsc[: cut + 1].min() > 0.99
        np.testing.assert_allclose(gain[: cut - 1], 1, atol=0.05)  # density keeps its scale


def test_sampled_frequencies_survive_and_the_wedge_is_empty(maps, poses):
    pose = Pose(poses.rotation[:1], poses.shift[:1])
    particle = make(maps, [0], pose, NO_CTF)[0][0]
    truth = oracle.particle(maps[0], poses.rotation[0], poses.shift[0])
    region = simulate.sampled_region(BOX, NO_CTF)
    fsc, _ = shell_correlation(particle, truth, region)
    assert fsc[1:10].min() > 0.97
    band = (radius(BOX) > 4) & (radius(BOX) < 12)
    ratio = [
        np.mean(np.abs(spectrum(v))[band & (region == 0)] ** 2)
        / np.mean(np.abs(spectrum(v))[band & (region == 1)] ** 2)
        for v in (particle, truth)
    ]
    assert ratio[0] < 0.1
    assert ratio[1] > 0.4  # the molecule itself is not empty there


def test_planted_pose_brings_the_particle_back(maps, poses):
    pose = pose_at(poses, 2)
    one = Pose(pose.rotation[None], pose.shift[None])
    geometry = simulate.TiltSeries(defocus_um=3.0)
    particle = jnp.asarray(make(maps, [0], one, geometry)[0][0])

    move = jax.jit(resample.transform)

    def match(p):
        back = np.asarray(move(particle, p))
        return np.corrcoef(back.ravel(), np.asarray(maps[0]).ravel())[0, 1]

    right = match(pose)
    assert right > 0.5  # density stays positive in spite of CTF and wedge
    wrong = [match(pose_at(poses, i)) for i in (0, 1, 3, 4, 5)]
    wrong.append(match(Pose(pose.rotation, pose.shift + jnp.asarray([3.0, 0, 0], jnp.float32))))
    assert max(wrong) < 0.8 * right


# ---------------------------------------------------------------- CTF and geometry


def test_ctf_zeros_sit_where_the_formula_puts_them():
    geometry = simulate.TiltSeries(defocus_um=2.5, amplitude_contrast=0.1)
    wavelength = 0.0196875  # angstrom, 300 kV (Williams & Carter, table 1.2: 0.00197 nm)
    n = np.arange(1, 9)
    phase = np.pi * n - np.arcsin(0.1)
    # pi L D g^2 - pi/2 L^3 Cs g^4 = phase, a quadratic in g^2
    a, b = 0.5 * np.pi * wavelength**3 * 2.7e7, np.pi * wavelength * 2.5e4
    zeros = np.sqrt((b - np.sqrt(b * b - 4 * a * phase)) / (2 * a))
    assert np.abs(ctf_1d(zeros, geometry)).max() < 2e-3
    assert ctf_1d(np.zeros(1), geometry)[0] == pytest.approx(-0.1)  # dark at low frequency
    middle = ctf_1d((zeros[1:] + zeros[:-1]) / 2, geometry)
    assert (np.sign(middle) == (-1.0) ** np.arange(7)).all()
    image = ctf_2d(16, 5.0, geometry)
    assert image[8, 8] == pytest.approx(-0.1)
    assert image[8, 11] == pytest.approx(ctf_1d(3 / 80, geometry))
    assert image[11, 4] == pytest.approx(ctf_1d(5 / 80, geometry))


def test_flipped_particles_carry_the_modulus_of_the_ctf(maps):
    geometry = simulate.TiltSeries(-90, 90, 2, defocus_um=1.2)
    pose = Pose(np.eye(3, dtype=np.float32)[None], np.zeros((1, 3), np.float32))
    particle = make(maps, [0], pose, geometry, apix=6.0)[0][0]
    modulus = np.abs(ctf_1d(radius(BOX) / (BOX * 6.0), geometry))
    want = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(spectrum(maps[0]) * modulus)).real)
    fsc, gain = shell_correlation(particle, want)
    assert fsc[1:14].min() > 0.98
    np.testing.assert_allclose(gain[1:14], 1, atol=0.1)


def test_sampled_region_is_the_wedge_of_a_y_tilt():
    region = simulate.sampled_region(16, simulate.TiltSeries(-60, 60, 3))
    k = np.arange(16) - 8
    kz, _, kx = np.meshgrid(k, k, k, indexing="ij")
    np.testing.assert_array_equal(region, np.abs(kz) <= np.abs(kx) * np.tan(np.pi / 3) + 1e-9)
    lopsided = simulate.sampled_region(17, simulate.TiltSeries(-20, 70, 3))
    np.testing.assert_array_equal(lopsided, lopsided[::-1, ::-1, ::-1])
    assert lopsided[8 + 5, 8, 8 + 5] == 1  # +45 degrees: kz = kx
    assert lopsided[8 - 5, 8, 8 + 5] == 0
    assert simulate.sampled_region(16, simulate.TiltSeries(-90, 90, 3)).all()
    half = half_region(16, simulate.TiltSeries(-60, 60, 3))
    assert half.shape == (16, 16, 9)
    assert half[0, 0, 3] == 1
    assert half[3, 0, 0] == 0


# ---------------------------------------------------------------- noise


def test_projection_snr_is_the_one_asked_for(maps):
    geometry = simulate.TiltSeries(snr=0.04, defocus_um=0.0)
    sigma = simulate.prepare(maps[:1], APIX, geometry).noise_sigma
    poses = first_poses(jax.random.key(5), 12, 0.0)
    coarse = simulate.TiltSeries(step_deg=30, defocus_um=0.0)
    variance = [
        oracle.projections(maps[0], r, np.zeros(3), coarse.angles_deg).var(axis=(1, 2)).mean()
        for r in poses.rotation
    ]
    spread = np.std(variance) / np.sqrt(len(variance)) / np.mean(variance)
    assert np.mean(variance) / sigma**2 == pytest.approx(0.04, rel=0.03 + 4 * spread)
    with_ctf = simulate.TiltSeries(snr=0.04, defocus_um=3.0)
    assert simulate.prepare(maps[:1], APIX, with_ctf).noise_sigma == sigma


def noise_power(maps, geometry, number, **options):
    """Mean power of pure-noise particles, in units of the image noise variance times n^2."""
    pose = Pose(np.tile(np.eye(3, dtype=np.float32), (number, 1, 1)), np.zeros((number, 3), "f4"))
    noise, simulator = make(maps, np.zeros(number, int), pose, geometry, **options)
    scale = (simulator.noise_sigma * BOX) ** 2
    return (np.abs(spectrum(noise)) ** 2).mean(0) / scale, noise


def test_premultiplied_noise_power_is_the_weight(maps):
    geometry = simulate.TiltSeries(snr=1e-8, defocus_um=0.0)
    power, _ = noise_power(maps, geometry, 40, premultiply=True)
    weight = simulate.sampling_weights(BOX, APIX, geometry)
    assert weight[BOX // 2, BOX // 2, BOX // 2] == pytest.approx(41, rel=0.1)  # all tilts meet
    inside = (weight > 0) & (radius(BOX) < BOX // 2)
    ratio = power[inside] / weight[inside]
    # 40 exponential variables per voxel, Friedel pairs equal
    assert ratio.mean() == pytest.approx(1, abs=0.03)
    assert ratio.std() == pytest.approx(1 / np.sqrt(40), rel=0.15)
    wedge = simulate.sampled_region(BOX, geometry) == 0
    assert power[wedge].max() < 1e-6
    assert (weight[wedge] == 0).all()


def test_flipped_noise_follows_the_ramp_and_the_wedge(maps):
    """After the ramp the noise power grows with distance from the tilt axis and is not radial."""
    geometry = simulate.TiltSeries(snr=1e-8, defocus_um=3.0)
    power, noise = noise_power(maps, geometry, 24)
    c = BOX // 2
    along_x = [power[c, :, c + k].mean() for k in (2, 4, 8, 14)]
    # step * (k/n) ramp on the density of planes n / (step k): linear in k
    np.testing.assert_allclose(along_x, np.radians(3) * np.array([2, 4, 8, 14]), rtol=0.25)
    shell = (radius(BOX) > 11) & (radius(BOX) < 14)
    k = np.arange(BOX) - c
    kz, ky, kx = np.meshgrid(k, k, k, indexing="ij")
    near_axis = power[shell & (np.hypot(kx, kz) < 3)].mean()
    far = power[shell & (np.abs(ky) < 3) & (np.abs(kz) < np.abs(kx))].mean()
    wedge = power[shell & (np.abs(kz) > 2.5 * np.abs(kx)) & (np.abs(ky) < 3)].mean()
    assert near_axis < 0.4 * far
    assert wedge < 0.15 * far
    # the corners of the box are as noisy as its middle
    variance = noise.var(axis=0)
    corners = variance[np.ix_(*[[0, 1, 2, 3, -4, -3, -2, -1]] * 3)].mean()
    assert corners == pytest.approx(variance[8:24, 8:24, 8:24].mean(), rel=0.1)


def test_particle_depends_on_key_and_index_alone(maps, poses):
    geometry = simulate.TiltSeries(-40, 40, 20, snr=0.1)
    simulator = simulate.prepare(maps, APIX, geometry, max_shift_vox=3)
    classes = np.array([0, 1, 2, 0, 1, 2, 0, 1])

    def all_in(size, number=8):
        some = Pose(poses.rotation[:number], poses.shift[:number])
        batches = simulate.simulate_batches(simulator, classes[:number], some, KEY, size)
        return np.concatenate(list(batches))

    whole = all_in(8)
    assert whole.shape == (8, BOX, BOX, BOX)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(all_in(3), whole)
    np.testing.assert_array_equal(all_in(3, 5), whole[:5])
    assert np.abs(np.corrcoef(whole.reshape(8, -1)) - np.eye(8)).max() < 0.9
    more = simulate.random_poses(jax.random.key(11), 20, 3.0)
    np.testing.assert_array_equal(more.rotation[:8], poses.rotation)
    np.testing.assert_array_equal(more.shift[:8], poses.shift)


# ---------------------------------------------------------------- premultiplied particles


def test_weighted_mean_of_premultiplied_particles_restores_the_map(maps):
    """Sum of P over sum of W, rotated to the reference, is the map without any CTF."""
    geometry = simulate.TiltSeries(defocus_um=3.0)
    number = 20
    poses = first_poses(jax.random.key(2), number, 1.0)
    classes = np.zeros(number, int)
    data, _ = make(maps, classes, poses, geometry, premultiply=True)
    weights = simulate.sampling_weights(BOX, APIX, geometry)
    move = jax.jit(resample.transform)
    total = np.sum([move(jnp.asarray(data[i]), pose_at(poses, i)) for i in range(number)], axis=0)
    turned = sum(oracle.particle(weights, r.T, np.zeros(3)) for r in np.asarray(poses.rotation))
    restored = spectrum(total) / np.maximum(turned, 0.01 * turned.max())
    restored = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(restored)).real)
    fsc, gain = shell_correlation(restored, np.asarray(maps[0]))
    assert fsc[1:13].min() > 0.97
    np.testing.assert_allclose(gain[2:13], 1, atol=0.2)
    _, raw = shell_correlation(total, np.asarray(maps[0]))
    assert raw[12] / raw[3] > 2  # while the plain sum is far from flat


# ---------------------------------------------------------------- white noise and wedge


def test_white_particles_have_the_snr_and_the_wedge(maps, poses):
    geometry = simulate.TiltSeries(snr=0.1)
    classes = jnp.asarray([0, 1])
    two = Pose(poses.rotation[:2], poses.shift[:2])
    quiet = simulate.TiltSeries()
    clean = np.asarray(simulate.white_wedge_particles(maps[:2], classes, two, quiet, KEY))
    noisy = np.asarray(simulate.white_wedge_particles(maps[:2], classes, two, geometry, KEY))
    region = simulate.sampled_region(BOX, geometry)
    for i in range(2):
        truth = oracle.particle(maps[i], poses.rotation[i], poses.shift[i])
        fsc, _ = shell_correlation(clean[i], truth, region)
        assert fsc[1:12].min() > 0.99
        power = np.abs(spectrum(noisy[i])) ** 2
        assert power[region == 0].mean() < 1e-6 * power[region == 1].mean()
    kept = region.mean()
    asked = float(maps[:2].var(axis=(1, 2, 3)).mean()) / 0.1
    assert (noisy - clean).var() == pytest.approx(asked * kept, rel=0.03)


# ---------------------------------------------------------------- phantom, poses, misuse


def test_phantom_states_are_compact_and_different():
    states = [simulate.phantom(48, s) for s in (0, 1, 2)]
    outside = radius(48) > 0.42 * 48
    for v in states:
        assert v.dtype == np.float32
        assert 0.5 < v.max() <= 1.01
        assert v.min() == 0
        assert v[outside].max() < 0.02
        assert np.ptp(np.sort(radius(48)[v > 0.2])[[0, -1]]) < 0.36 * 48
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.corrcoef(states[i].ravel(), states[j].ravel())[0, 1] < 0.95
    # the same object at any sampling: equal low frequencies, equal density
    fsc, gain = shell_correlation(simulate.fit_map(states[0], 1.0, 24, 2.0), simulate.phantom(24))
    assert fsc[:8].min() > 0.99
    np.testing.assert_allclose(gain[:6], 1, atol=0.1)
    # no two-fold axis or mirror along the coordinate axes
    for axes in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2)):
        flipped = np.roll(np.flip(states[0], axes), 1, axes)
        assert np.corrcoef(flipped.ravel(), states[0].ravel())[0, 1] < 0.8


def test_random_poses_are_uniform():
    poses = simulate.random_poses(jax.random.key(0), 4000, 5.0)
    turns, shifts = np.asarray(poses.rotation), np.asarray(poses.shift)
    eye = turns @ turns.transpose(0, 2, 1)
    np.testing.assert_allclose(eye, np.broadcast_to(np.eye(3), eye.shape), atol=1e-5)
    assert np.abs(turns.mean(0)).max() < 4 / np.sqrt(3 * 4000)
    trace = np.clip((np.trace(turns, axis1=1, axis2=2) - 1) / 2, -1, 1)
    angle = np.arccos(trace)
    below = (angle < np.pi / 2).mean()  # density (1 - cos w) / pi
    assert below == pytest.approx((np.pi / 2 - 1) / np.pi, abs=0.03)
    length = np.linalg.norm(shifts, axis=1)
    assert length.max() <= 5
    assert (length < 2.5).mean() == pytest.approx(1 / 8, abs=0.025)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"min_deg": 10, "max_deg": -10}, "tilt range"),
        ({"max_deg": 100}, "tilt range"),
        ({"step_deg": 0}, "tilt step"),
        ({"snr": 0.0}, "signal-to-noise"),
        ({"defocus_um": -1}, "underfocus"),
    ],
)
def test_impossible_series_are_refused(values, words):
    with pytest.raises(InputError, match=words):
        simulate.TiltSeries(**values)


def test_misuse_is_named(maps, poses):
    with pytest.raises(InputError, match="even"):
        simulate.prepare(maps[:, 1:, 1:, 1:], APIX, NO_CTF)
    with pytest.raises(InputError, match="voxel size"):
        simulate.prepare(maps, 0.0, NO_CTF)
    with pytest.raises(InputError, match="state 3"):
        simulate.phantom(16, 3)
    simulator = simulate.prepare(maps[:2], APIX, simulate.TiltSeries(-30, 30, 30))
    with pytest.raises(InputError, match="particle 3 is of class 2"):
        next(simulate.simulate_batches(simulator, [0, 1, 0, 2, 0, 0, 0, 0], poses, KEY))
    with pytest.raises(InputError, match="3 classes but 8 poses"):
        next(simulate.simulate_batches(simulator, [0, 1, 0], poses, KEY))


# ---------------------------------------------------------------- the script


def test_script_writes_particles_and_truth(tmp_path):
    script = load("simulate")

    geometry = simulate.TiltSeries(-40, 40, 20, snr=10.0)
    options = {
        "maps": [],
        "map_apix": None,
        "nptcl": 5,
        "box": 16,
        "apix": 20.0,
        "geometry": geometry,
    }
    options |= {"max_shift_vox": 2.0, "seed": 3, "premultiplied": True}
    script.run(output=tmp_path / "p.hdf", **options)
    matrices, _ = io.read_alignments(tmp_path / "p_truth.json", 5)
    classes = json.loads((tmp_path / "p_truth_ext.json").read_text())
    assert len(classes) > 0
    labels = np.asarray(io.read_extras(tmp_path / "p_truth.json", 5)["class"])
    poses = rotation.pose_from_matrix34(matrices)
    with io.open_stack(tmp_path / "p.hdf") as stack:
        assert stack.apix == pytest.approx(20.0)
        written = stack.read(np.arange(5))
    with io.open_stack(tmp_path / "p_maps.hdf") as stack:
        maps = stack.read(np.arange(2))
    weights, _, _ = io.read_volume(tmp_path / "p_weights.hdf")
    np.testing.assert_allclose(weights, simulate.sampling_weights(16, 20.0, geometry), rtol=1e-6)
    # the truth in the files is the truth: without noise it gives the same signal
    quiet = simulate.TiltSeries(-40, 40, 20)
    clean = simulate.simulate(maps, labels, poses, 20.0, quiet, KEY, premultiply=True)
    for i in range(5):
        match = [np.vdot(written[i], c) / np.linalg.norm(c) for c in clean]
        assert int(np.argmax(match)) == i


def test_maps_of_another_voxel_size_are_fitted():
    fine = simulate.phantom(64)
    fitted = simulate.fit_map(fine + 2.0, 5.0, 32, 10.0)
    fsc, gain = shell_correlation(fitted, simulate.phantom(32))
    assert fsc[:10].min() > 0.99
    np.testing.assert_allclose(gain[:10], 1, atol=0.05)
    odd = simulate.fit_map(simulate.phantom(41), 7.0, 48, 9.3)  # grown box, awkward ratio
    grid = np.stack(np.meshgrid(*[np.arange(48) - 24] * 3, indexing="ij"), -1) * 9.3 / 7.0
    want = oracle.particle(simulate.phantom(41), np.eye(3), np.zeros(3))
    want = ndimage.map_coordinates(want, np.moveaxis(grid + 20, -1, 0), order=3)
    assert np.corrcoef(odd.ravel(), want.ravel())[0, 1] > 0.99
