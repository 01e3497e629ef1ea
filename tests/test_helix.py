"""Helices: EMAN2's operators, averages, asymmetric unit and what a search may use of them."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from sptjax import average, fourier, halves, orientations, rotation, symmetry
from sptjax._errors import InputError
from sptjax._types import Pose
from sptjax.align import SearchPlan, Stage, prepare
from sptjax.processors._geometry import ApplySymmetry

BOX = 24
SCREW = "h8:1:27.7:4.2"


def helix_of(name):
    helix = symmetry.parse(name).helix
    assert helix is not None
    return helix


def operators(daz, tz, count):
    """Steps 0, 1, -1, 2, ... of a helix by SciPy; EMAN2's azimuth is left-handed."""
    steps = [(k + 1) // 2 * (1 if k % 2 else -1) for k in range(count)]
    return [(Rotation.from_euler("z", -daz * j, degrees=True), (0, 0, tz * j)) for j in steps]


def blobs(points, sigma=1.6):
    axis = np.arange(BOX) - BOX // 2
    height = np.linspace(0.5, 1.5, len(points))
    g = [np.exp(-((axis - points[:, i : i + 1]) ** 2) / (2 * sigma**2)) for i in range(3)]
    return np.einsum("b,bz,by,bx->zyx", height, g[2], g[1], g[0], optimize=True)


def some_points(rng):
    return rng.uniform(-1, 1, (12, 3)) * np.array([5.0, 5.0, 3.0])


def banded(volume, kmax=9):
    keep = np.linalg.norm(fourier.half_grid(BOX), axis=-1) <= kmax
    return np.fft.irfftn(np.fft.rfftn(volume) * keep, (BOX,) * 3, axes=(0, 1, 2))


def distance(a, b):
    return np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(b)


def test_operators_are_eman2s_in_its_order(golden):
    expected = json.loads((golden / "symmetries.json").read_text())[SCREW]["ops"]
    ours = symmetry.parse(SCREW)
    got = rotation.pose_to_matrix34(Pose(ours.operators, ours.shifts))
    np.testing.assert_allclose(np.asarray(got).reshape(-1, 12), expected, atol=2e-6)
    assert len(ours) == 8


def test_names():
    assert symmetry.parse(" H8,1,27.70,4.2 ").name == SCREW
    tilted = symmetry.parse("h5:1:-166.7:6.8:12.5")
    assert tilted.name == "h5:1:-166.7:6.8:12.5"
    assert helix_of(tilted.name).max_tilt_deg == 12.5
    np.testing.assert_allclose(symmetry.parse("c4").shifts, np.zeros((4, 3)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("h8:2:27.7:4.2", "nstart 2"),
        ("h0:1:27.7:4.2", "nsym"),
        ("h8:1:27.7", "cannot be read"),
        ("h8:1,27.7:4.2", "cannot be read"),
        ("h8:1:27.7:nan", "cannot be read"),
        ("h8:1:27.7:4.2:0", "maxtilt"),
        ("h8:1:27.7:4.2:91", "maxtilt"),
    ],
)
def test_bad_helices_are_refused_with_the_reason(name, words):
    with pytest.raises(InputError, match=words):
        symmetry.parse(name)


def test_copies_turn_and_move_points_as_the_operators_do(rng):
    turn = Rotation.random(rng=rng)
    shift = rng.normal(size=3)
    pose = Pose(jnp.asarray(turn.as_matrix(), jnp.float32), jnp.asarray(shift, jnp.float32))
    points = rng.normal(size=(5, 3)) * 6
    got = symmetry.copies(pose, symmetry.parse("h5:1:40:1.7"))
    assert got.rotation.shape == (5, 3, 3)
    for k, (step, rise) in enumerate(operators(40, 1.7, 5)):
        one = Pose(got.rotation[k], got.shift[k])
        expected = step.apply(turn.apply(points) + shift) + rise
        np.testing.assert_allclose(
            rotation.apply(one, jnp.asarray(points, jnp.float32)), expected, atol=1e-5
        )


@pytest.mark.parametrize(("daz", "tz", "count"), [(40, 1.7, 5), (90, 2.5, 3)])
def test_symmetrised_average_is_the_mean_of_the_operators(rng, daz, tz, count):
    """Planted points moved by SciPy; the second helix maps the grid onto itself but for shifts."""
    points = some_points(rng)
    volume = jnp.asarray(blobs(points), jnp.float32)[None]
    group = symmetry.parse(f"h{count}:1:{daz}:{tz}")
    once = average.add(
        average.empty(BOX), volume, Pose(jnp.eye(3)[None], jnp.zeros((1, 3))), jnp.zeros(1, int)
    )
    sums = average.symmetrise(once, group.operators, group.shifts)
    expected = np.mean([blobs(s.apply(points) + r) for s, r in operators(daz, tz, count)], 0)
    assert distance(banded(average.finish(sums)[0]), banded(expected)) < 0.01
    unmoved = average.symmetrise(once, group.operators)
    assert distance(banded(average.finish(unmoved)[0]), banded(expected)) > 0.2


def test_symmetrised_wedged_sums_are_those_of_particles_added_once_per_operator(rng):
    points = some_points(rng)
    turns = Rotation.random(3, rng=rng)
    axis = np.arange(BOX) - BOX // 2
    z, _, x = np.meshgrid(axis, axis, axis, indexing="ij")
    wedge = (np.abs(z) <= 1.7 * np.abs(x) + 1e-6).astype(np.float32)
    particles = jnp.asarray(np.stack([blobs(t.inv().apply(points)) for t in turns]), jnp.float32)
    particles = average.apply_sampling(particles, jnp.asarray(wedge))
    poses = Pose(jnp.asarray(turns.as_matrix(), jnp.float32), jnp.zeros((3, 3)))
    group = symmetry.parse("h3:1:90:1.7")
    orbit = symmetry.copies(poses, group)

    def added(sums, pose):
        groups = jnp.zeros(3, jnp.int32)
        return average.add(sums, particles, pose, groups, sampling=jnp.asarray(wedge))

    once, each = added(average.empty(BOX), poses), average.empty(BOX)
    for k in range(3):
        each = added(each, Pose(orbit.rotation[:, k], orbit.shift[:, k]))
    ours = average.symmetrise(once, group.operators, group.shifts)
    inner = np.linalg.norm(fourier.half_grid(BOX), axis=-1) < BOX // 2
    assert distance(ours.numerator[0, inner], each.numerator[0, inner]) < 1e-4
    assert distance(ours.weight[0, inner], each.weight[0, inner]) < 1e-5


def test_applysym_moves_along_the_screw(rng):
    volume = blobs(some_points(rng)).astype(np.float32)
    expected = np.zeros(volume.shape)
    for step, rise in operators(40, 1.7, 3):
        back = step.as_matrix().T[::-1, ::-1]  # (z, y, x)
        centre = np.full(3, BOX // 2)
        offset = centre - back @ (centre + np.array(rise)[::-1])
        expected += ndimage.affine_transform(volume, back, offset, order=1) / 3
    apply = ApplySymmetry(sym="h3:1:40:1.7")
    inner = slice(2, -2)
    got = np.asarray(apply(jnp.asarray(volume), 1.0))
    np.testing.assert_allclose(got[inner, inner, inner], expected[inner, inner, inner], atol=1e-4)


def twist_deg(quaternions):
    """Turn about z of rotations (scalar last), -180 to 180."""
    twice = 2 * np.degrees(np.arctan2(quaternions[:, 2], quaternions[:, 3]))
    return (twice + 180) % 360 - 180


@pytest.mark.parametrize("daz", [27.7, -166.7, 360 / 7])
def test_uniform_orientations_cover_one_step_of_the_helix(rng, daz):
    helix = symmetry.parse(f"h3:1:{daz}:1.0")
    found = orientations.uniform(20, helix)
    turns = np.asarray(found.rotations, float)
    quaternions = Rotation.from_matrix(turns).as_quat()
    assert np.abs(twist_deg(quaternions)).max() <= abs(daz) / 2 + 1e-3
    whole = len(orientations.uniform(20))
    assert abs(len(found) / whole - abs(daz) / 360) < 0.1 * abs(daz) / 360 + 0.005
    assert helix.redundancy == pytest.approx(360 / abs(daz))
    steps = Rotation.from_euler("z", daz * np.arange(-9, 10)[:, None], degrees=True)
    for r in Rotation.random(60, rng=rng):
        equivalent = (steps * r).as_quat()
        nearest = np.abs(equivalent @ quaternions.T).max()
        assert np.degrees(2 * np.arccos(min(nearest, 1))) <= 1.02 * found.covering_deg
    assert found.covering_deg < 1.2 * 20


def test_largest_tilt_keeps_the_axis_near_the_particles_plane(rng):
    found = orientations.uniform(15, symmetry.parse("h3:1:60:1:10"))
    along = np.asarray(found.rotations, float)[:, 2, 2]  # cosine between both z axes
    assert np.abs(along).max() <= np.sin(np.radians(10)) + 1e-6
    free = len(orientations.uniform(15, symmetry.parse("h3:1:60:1")))
    assert len(found) / free == pytest.approx(np.sin(np.radians(10)), rel=0.15)
    assert found.covering_deg < 1.2 * 15


def test_eman_rings_of_a_helix():
    found = orientations.eman(15, 90, symmetry.parse("h3:1:-40:1:30"))
    euler = np.asarray(rotation.to_euler(rotation.transpose(found.rotations), EMAN))
    assert sorted(set(np.rint(euler[:, 1]))) == [60, 75, 90, 105, 120]
    assert euler[:, 0].min() > -1e-3
    assert euler[:, 0].max() < 40
    ring = np.unique(np.rint(euler[np.abs(euler[:, 1] - 90) < 1][:, 0]))
    np.testing.assert_array_equal(ring, [0, 19])  # 40 / 2.1 apart, as EMAN2 where few fit
    full = orientations.eman(15, 90, symmetry.parse("h3:1:0:1"))
    assert len(full) == len(orientations.eman(15, 90))


EMAN = rotation.Convention.EMAN


@pytest.mark.parametrize(("daz", "tz"), [(27.7, 4.2), (-166.7, 6.8), (22.03, 0.1)])
def test_half_a_pitch_of_shift_holds_an_equivalent_of_every_pose(rng, daz, tz):
    helix = helix_of(f"h3:1:{daz}:{tz}")
    steps = np.arange(-9, 10)
    for _ in range(200):
        az, z = rng.uniform(-180, 180), rng.uniform(-tz / 2, tz / 2)
        turned = (az - steps * daz + 180) % 360 - 180
        one_step = np.abs(turned) <= abs(daz) / 2 + 1e-9
        assert np.abs(z - steps * tz)[one_step].min() <= helix.half_pitch_vox + 1e-9
    assert helix.half_pitch_vox < abs(180 / daz * tz) + tz + 1e-9


def test_search_uses_the_helix_only_as_far_as_its_shifts_reach():
    helix = symmetry.parse(SCREW)
    assert symmetry.within_reach(helix, 27.4) is helix
    near = symmetry.within_reach(symmetry.parse(f"{SCREW}:20"), 10)
    assert near.redundancy == 1
    assert helix_of(near.name).max_tilt_deg == 20
    d7 = symmetry.parse("d7")
    assert symmetry.within_reach(d7, 0) is d7
    assert d7.redundancy == 14
    plan = SearchPlan(16, 4, 30.0, 2.0, 2.0, 4, (Stage(4, 1, 1),), 10.0)
    volume = jnp.ones((1, 16, 16, 16))
    search = prepare(volume, plan, helix)
    assert len(search.rotations) == len(orientations.uniform(30.0))
    assert len(search.operators) == 1
    flat = prepare(volume, plan, symmetry.parse("h8:1:90:0.5"))
    assert len(flat.rotations) == len(orientations.uniform(30.0, symmetry.parse("c4")))


def test_halves_of_a_helix_move_along_and_about_its_axis_only(monkeypatch):
    turn = Rotation.from_euler("zx", [4, 3], degrees=True)
    free = Pose(jnp.asarray(turn.as_matrix(), jnp.float32), jnp.asarray([0.5, -0.7, 0.8]))
    monkeypatch.setattr(halves, "half_pose", lambda *_: free)
    monkeypatch.setattr(halves.resample, "transform", lambda volume, _: volume)
    volume = jnp.ones((4, 4, 4))
    _, pose = halves.align_halves(volume, volume, symmetry.parse(SCREW))
    np.testing.assert_allclose(pose.rotation[2], [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(pose.shift, [0, 0, 0.8])
    assert float(pose.rotation[1, 0]) == pytest.approx(np.sin(np.radians(4)), abs=2e-3)
