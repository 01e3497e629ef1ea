"""Rotations against EMAN2's answers, SciPy in float64, group axioms and real tables."""

import json

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sptjax import rotation
from sptjax._errors import InputError
from sptjax._types import Pose
from sptjax.rotation import Convention

EMAN_CONVENTIONS = [c for c in Convention if c not in (Convention.RELION, Convention.DYNAMO)]
QUICK = hypothesis.settings(max_examples=40, deadline=None, derandomize=True)

rotation_vectors = hnp.arrays(
    np.float32, 3, elements=st.floats(-1.75, 1.75, width=32, allow_subnormal=False)
)


@pytest.fixture(scope="module")
def eman2(golden):
    return json.loads((golden / "transforms.json").read_text())


def answers(eman2, convention):
    if convention is Convention.EMAN:
        # EMAN2's imagic read-back is its eman read-back under other names
        return np.array([[e["imagic"][k] for k in Convention.IMAGIC.value] for e in eman2])
    return np.array([[e[convention.name.lower()][k] for k in convention.value] for e in eman2])


def matrices(eman2, key="matrix"):
    return np.array([e[key] for e in eman2]).reshape(-1, 3, 4)


def random_rotations(rng, n):
    return Rotation.random(n, rng=rng).as_matrix()


def f32(x):
    return jnp.asarray(x, jnp.float32)


exp, log, angle_deg = map(jax.jit, (rotation.exp, rotation.log, rotation.angle_deg))
multiply, rotate = map(jax.jit, (rotation.multiply, rotation.rotate))
compose, invert, apply = map(jax.jit, (rotation.compose, rotation.invert, rotation.apply))
to_quaternion, from_quaternion = map(jax.jit, (rotation.to_quaternion, rotation.from_quaternion))


def test_eman_angles_and_shift_give_eman2s_matrix_and_inverse(eman2):
    angles = f32([e["eman"] for e in eman2])
    pose = Pose(rotation.from_euler(angles, Convention.EMAN), f32([e["t"] for e in eman2]))
    assert len(eman2) == 40
    np.testing.assert_allclose(rotation.pose_to_matrix34(pose), matrices(eman2), atol=1e-5)
    inverse = rotation.pose_to_matrix34(invert(pose))
    np.testing.assert_allclose(inverse, matrices(eman2, "inverse"), atol=1e-5)


def eman2_is_wrong(eman2, convention):
    """Rows whose xyz numbers do not give back EMAN2's own matrix (it fails at alt = 180)."""
    if convention is not Convention.XYZ:
        return np.zeros(len(eman2), bool)
    angles = answers(eman2, convention)
    scipy = Rotation.from_euler("XYZ", angles, degrees=True).inv().as_matrix()
    return np.abs(scipy - matrices(eman2)[:, :, :3]).max((1, 2)) > 0.1


@pytest.mark.parametrize("convention", EMAN_CONVENTIONS, ids=lambda c: c.name)
def test_reads_eman2s_numbers(eman2, convention):
    good = ~eman2_is_wrong(eman2, convention)
    assert good.sum() >= 38
    got = rotation.from_euler(f32(answers(eman2, convention)), convention)
    # EMAN2 reads omega with an arc cosine, good to about 1e-3 degree
    atol = 2e-5 if convention in (Convention.SPIN, Convention.SPINVEC) else 1e-5
    np.testing.assert_allclose(got[good], matrices(eman2)[good, :, :3], atol=atol)


@pytest.mark.parametrize("convention", EMAN_CONVENTIONS, ids=lambda c: c.name)
def test_writes_eman2s_numbers(eman2, convention):
    expected = answers(eman2, convention)
    got = np.asarray(rotation.to_euler(f32(matrices(eman2)[:, :, :3]), convention), np.float64)
    good = ~eman2_is_wrong(eman2, convention)
    if "n1" in convention.value or "v1" in convention.value or "e0" in convention.value:
        part = slice(1 if "n1" in convention.value else 0, None)
        half_turn = np.abs([e["spin"]["omega"] - 180 for e in eman2]) < 1e-3
        sign = np.sign((got[:, part] * expected[:, part]).sum(1))
        assert (sign[~half_turn] > 0).all()
        got[:, part] *= sign[:, None]  # at half a turn the axis has no sign
    elif convention is Convention.XYZ:  # EMAN2 forgets to wrap
        got = expected + (got - expected + 180) % 360 - 180
    else:  # EMAN2 also snaps to the pole anything within 0.014 degree of it
        exact = np.array([e["eman"][1] for e in eman2])
        good &= (expected[:, 1] != np.round(exact / 180) * 180) | (exact % 180 == 0)
    assert good.sum() >= 38
    degrees = np.abs(expected).max(0) > 4
    error = np.abs(got - expected)[good]
    assert (error <= np.where(degrees, 1e-3, 2e-5)).all()
    assert (np.median(error, axis=0) <= np.where(degrees, 3e-5, 1e-6)).all()


def test_a_pose_survives_eman2s_matrix(eman2):
    flat = matrices(eman2).reshape(-1, 12)
    pose = rotation.pose_from_matrix34(flat)
    np.testing.assert_allclose(rotation.pose_to_matrix34(pose), matrices(eman2), atol=2e-6)
    rounded = np.array([[float(f"{v:.6g}") for v in row] for row in flat])
    r = np.asarray(rotation.pose_from_matrix34(rounded).rotation, np.float64)
    np.testing.assert_allclose(r @ r.transpose(0, 2, 1), np.tile(np.eye(3), (40, 1, 1)), atol=3e-7)


def test_conventions_agree_with_scipy(rng):
    a = rng.uniform(-180, 180, (50, 3))
    a[:, 1] = np.abs(a[:, 1])
    scipy = {
        Convention.EMAN: Rotation.from_euler("ZXZ", a, degrees=True).inv(),
        Convention.SPIDER: Rotation.from_euler("ZYZ", a, degrees=True).inv(),
        Convention.XYZ: Rotation.from_euler("XYZ", a, degrees=True).inv(),
        Convention.RELION: Rotation.from_euler("ZYZ", a, degrees=True),
        Convention.DYNAMO: Rotation.from_euler("zxz", a, degrees=True),
    }
    for convention, expected in scipy.items():
        got = rotation.from_euler(f32(a), convention)
        np.testing.assert_allclose(got, expected.as_matrix(), atol=2e-6)


def test_senses_of_turn():
    """An az of 30 sends x to (cos 30, -sin 30, 0); Dynamo and exp turn the other way."""
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    x = f32([1, 0, 0])
    eman = rotation.from_euler(f32([30, 0, 0]), Convention.EMAN)
    np.testing.assert_allclose(rotate(eman, x), [c, -s, 0], atol=1e-6)
    dynamo = rotation.from_euler(f32([30, 0, 0]), Convention.DYNAMO)
    np.testing.assert_allclose(rotate(dynamo, x), [c, s, 0], atol=1e-6)
    turned = rotate(exp(f32([0, 0, np.pi / 6])), x)
    np.testing.assert_allclose(turned, [c, s, 0], atol=1e-6)
    quaternion = from_quaternion(f32([np.cos(np.pi / 12), 0, 0, np.sin(np.pi / 12)]))
    np.testing.assert_allclose(rotate(quaternion, x), [c, s, 0], atol=1e-6)


@pytest.mark.parametrize("convention", list(Convention), ids=lambda c: c.name)
def test_round_trip_everywhere_and_at_the_poles(rng, convention):
    z = Rotation.from_euler("z", rng.uniform(-180, 180, (20, 1)), degrees=True)
    flip = Rotation.from_euler("x", 180, degrees=True)
    gimbal = Rotation.from_euler("y", 90, degrees=True)
    nudge = Rotation.from_rotvec(rng.normal(size=(20, 3)) * np.logspace(-8, -2, 20)[:, None])
    cases = [z, z * flip, z * gimbal, z * nudge, z * flip * nudge, z * gimbal * nudge]
    r = np.concatenate([random_rotations(rng, 100), *[c.as_matrix() for c in cases]])
    r = np.concatenate(
        [r, np.eye(3)[None], np.diag([1.0, -1, -1])[None], np.diag([-1.0, -1, 1])[None]]
    )
    numbers = rotation.to_euler(f32(r), convention)
    assert np.isfinite(numbers).all()
    np.testing.assert_allclose(rotation.from_euler(numbers, convention), r, atol=3e-6)


def test_read_back_ranges_and_poles(rng):
    r = f32(random_rotations(rng, 300))
    for convention in (Convention.EMAN, Convention.RELION, Convention.DYNAMO):
        angles = np.asarray(rotation.to_euler(r, convention))
        outer, middle = angles[:, ::2], angles[:, 1]
        assert ((outer > -180) & (outer <= 180)).all()
        assert ((middle >= 0) & (middle <= 180)).all()
    spider = np.asarray(rotation.to_euler(r, Convention.SPIDER))[:, ::2]
    assert ((spider >= 0) & (spider < 360)).all()
    for alt in (0.0, 180.0):
        pole = rotation.from_euler(f32([0, alt, 50]), Convention.EMAN)
        np.testing.assert_allclose(
            rotation.to_euler(pole, Convention.EMAN), [0, alt, 50], atol=2e-5
        )
        for convention in (Convention.SPIDER, Convention.RELION, Convention.DYNAMO):
            angles = rotation.to_euler(pole, convention)
            assert float(angles[0]) == 0
            assert float(angles[1]) == pytest.approx(alt)


def test_relion_is_the_inverse_in_spider_angles(eman2):
    inverse = f32(matrices(eman2, "inverse")[:, :, :3])
    pose = rotation.pose_from_matrix34(matrices(eman2))
    relion, _ = rotation.pose_to_relion(pose)
    spider = rotation.to_euler(inverse, Convention.SPIDER)
    difference = (np.asarray(relion) - np.asarray(spider) + 180) % 360 - 180
    assert np.abs(difference).max() < 2e-3


def test_relion_and_dynamo_poses_round_trip_and_place_the_reference_centre(rng):
    pose = Pose(f32(random_rotations(rng, 30)), f32(rng.uniform(-9, 9, (30, 3))))
    inverse = invert(pose)
    centre = inverse.shift  # where the reference's centre lies in the particle
    angles, origin = rotation.pose_to_relion(pose)
    np.testing.assert_allclose(origin, -centre, atol=1e-5)  # RELION: coordinate minus origin
    back = rotation.pose_from_relion(angles, origin)
    np.testing.assert_allclose(back.rotation, pose.rotation, atol=3e-6)
    np.testing.assert_allclose(back.shift, pose.shift, atol=2e-5)
    angles, shift = rotation.pose_to_dynamo(pose)
    np.testing.assert_allclose(shift, centre, atol=1e-5)  # Dynamo: crop position plus shift
    back = rotation.pose_from_dynamo(angles, shift)
    np.testing.assert_allclose(back.rotation, pose.rotation, atol=3e-6)
    np.testing.assert_allclose(back.shift, pose.shift, atol=2e-5)


def test_relion_table_and_published_poses_of_real_ribosomes(shared_data):
    folder = shared_data / "real_ribosomes"
    star = next((folder / "relion5").glob("*box-32_angpix-12.star")).read_text()
    rows = [line.split() for line in star.splitlines() if line.strip().startswith("Unt_")]
    angles = f32([[float(v) for v in row[5:8]] for row in rows])
    poses = json.loads((folder / "poses.json").read_text())
    expected = [json.loads(poses[k][0]["matrix"]) for k in sorted(poses)]
    got = rotation.pose_to_matrix34(rotation.pose_from_relion(angles, jnp.zeros((40, 3))))
    np.testing.assert_allclose(got.reshape(40, 12), expected, atol=1e-5)


def test_dynamo_table_of_real_filaments(shared_data):
    """The reference's z axis follows the filament; shifts make the path of centres smooth."""
    text = (shared_data / "quirks" / "dynamo_aligned.tbl").read_text()
    table = np.array(
        [[complex(v.replace("i", "j")).real for v in line.split()] for line in text.splitlines()]
    )
    pose = rotation.pose_from_dynamo(f32(table[:, 6:9]), f32(table[:, 3:6]))
    centre = np.asarray(invert(pose).shift)
    axis = np.asarray(pose.rotation)[:, 2]  # R' z: the reference's z axis in the tomogram

    def path(positions):
        tangent = positions[2:] - positions[:-2]
        tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
        bend = positions[2:] - 2 * positions[1:-1] + positions[:-2]
        across = bend - (bend * tangent).sum(1, keepdims=True) * tangent
        cosine = np.abs((tangent * axis[1:-1]).sum(1)).clip(0, 1)
        return np.median(np.linalg.norm(across, axis=1)), np.degrees(np.arccos(np.median(cosine)))

    cropped = table[:, 23:26]
    roughness, angle = path(cropped + centre)
    assert angle < 5  # the opposite sense of turn gives 15 and 82 degrees on the two filaments
    assert roughness < 0.4 * path(cropped)[0]
    assert path(cropped - centre)[0] > path(cropped)[0]


@QUICK
@hypothesis.given(rotation_vectors, rotation_vectors, rotation_vectors)
def test_group_axioms(u, v, w):
    a, b, c = exp(f32(np.stack([u, v, w])))
    ab = multiply(a, b)
    np.testing.assert_allclose(multiply(ab, rotation.transpose(ab)), np.eye(3), atol=2e-6)
    assert float(jnp.linalg.det(ab)) == pytest.approx(1, abs=3e-6)
    np.testing.assert_allclose(multiply(ab, c), multiply(a, multiply(b, c)), atol=2e-6)


@QUICK
@hypothesis.given(rotation_vectors, rotation_vectors)
def test_pose_axioms(u, v):
    a = Pose(exp(f32(u)), f32(3 * v))
    b = Pose(exp(f32(v)), f32(-5 * u))
    point = f32([1.5, -2, 4])
    together = apply(compose(a, b), point)
    np.testing.assert_allclose(together, apply(a, apply(b, point)), atol=2e-5)
    unit = rotation.pose_to_matrix34(compose(a, invert(a)))
    np.testing.assert_allclose(unit, np.eye(3, 4), atol=1e-5)


@QUICK
@hypothesis.given(rotation_vectors, st.sampled_from([1e-7, 1e-4, 1e-2, 0.1, 1.0]))
def test_exp_log(v, scale):
    v = v * np.float32(scale)
    hypothesis.assume(np.linalg.norm(v) < 3.1)
    np.testing.assert_allclose(
        exp(f32(v)), Rotation.from_rotvec(v.astype(np.float64)).as_matrix(), atol=5e-7
    )
    atol = 2e-6 * np.linalg.norm(v) + 2e-7
    np.testing.assert_allclose(log(exp(f32(v))), v, atol=atol)


def test_log_near_pi(rng):
    axis = rng.normal(size=(200, 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    axis[:3] = np.eye(3)
    for gap in (0.0, 1e-6, 1e-4, 1e-2):
        w = axis * (np.pi - gap)
        r = Rotation.from_rotvec(w).as_matrix()
        got = np.asarray(log(f32(r)), np.float64)
        sign = np.sign((got * w).sum(1, keepdims=True))
        assert gap < 1e-5 or (sign > 0).all()
        np.testing.assert_allclose(got * sign, w, atol=4e-6)


def test_quaternions_agree_with_scipy(rng):
    r = Rotation.random(200, rng=rng)
    q = np.roll(r.as_quat(), 1, axis=1)  # SciPy puts the scalar last
    q *= np.sign(q[:, :1])
    np.testing.assert_allclose(to_quaternion(f32(r.as_matrix())), q, atol=3e-7)
    np.testing.assert_allclose(from_quaternion(f32(-3 * q)), r.as_matrix(), atol=1e-6)


@pytest.mark.parametrize("degrees", [0.0, 1e-3, 0.1, 5.0, 90.0, 175.0, 179.9, 179.999, 180.0])
def test_angle_is_accurate_at_both_ends(rng, degrees):
    a = Rotation.random(50, rng=rng)
    axis = rng.normal(size=(50, 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    b = a * Rotation.from_rotvec(axis * degrees, degrees=True)
    got = angle_deg(f32(a.as_matrix()), f32(b.as_matrix()))
    np.testing.assert_allclose(got, degrees, atol=3e-5)


def test_random_rotations_are_uniform():
    """The angle of a uniform rotation has the distribution (a - sin a) / pi."""
    r = rotation.random(jax.random.key(3), 4000)
    assert r.dtype == jnp.float32
    angle = np.sort(np.radians(angle_deg(jnp.broadcast_to(jnp.eye(3), r.shape), r)))
    expected = (angle - np.sin(angle)) / np.pi
    assert np.abs(expected - np.arange(0.5, 4000) / 4000).max() < 1.63 / np.sqrt(4000)
    assert np.abs(np.asarray(r).mean(0)).max() < 0.04


def test_gradients_match_finite_differences(rng):
    """Of a smooth function of exp, and of log after exp, also at the identity."""
    sizes = np.array([0.0, 1e-4, 0.09, 0.11, 1.0, 3.0])
    ws, weight = np.outer(sizes, [0.6, -0.48, 0.64]), rng.normal(size=(3, 3))

    def oracle(v):
        return (Rotation.from_rotvec(v).as_matrix() * weight).sum()

    step = 1e-5 * np.eye(3)
    expected = [[(oracle(w + e) - oracle(w - e)) / 2e-5 for e in step] for w in ws]
    gradient = jax.grad(lambda v: jnp.sum(rotation.exp(v) * f32(weight)))
    np.testing.assert_allclose(jax.jit(jax.vmap(gradient))(f32(ws)), expected, atol=2e-6)
    jacobian = jax.jacobian(lambda v: rotation.log(rotation.exp(v)))
    identities = np.tile(np.eye(3), (len(ws), 1, 1))
    np.testing.assert_allclose(jax.jit(jax.vmap(jacobian))(f32(ws)), identities, atol=5e-5)


def test_gradient_of_the_angle_is_finite_and_right():
    degrees = f32([0.0, 1e-2, 60.0, 179.99, 180.0])

    def angle(scale):
        turned = rotation.exp(jnp.deg2rad(scale) * f32([0.6, -0.48, 0.64]))
        return rotation.angle_deg(jnp.eye(3), turned)

    value, slope = jax.jit(jax.vmap(jax.value_and_grad(angle)))(degrees)
    np.testing.assert_allclose(value, degrees, atol=2e-5)
    np.testing.assert_allclose(slope[1:4], 1, atol=1e-3)
    assert np.isfinite(slope).all()


def test_second_derivatives_of_exp_at_zero():
    hessian = jax.jit(jax.hessian(lambda w: jnp.trace(exp(w))))(jnp.zeros(3))
    np.testing.assert_allclose(hessian, -2 * np.eye(3), atol=1e-6)  # trace = 3 - |w|^2 + ...


def test_leading_axes_broadcast(rng):
    one = Pose(f32(random_rotations(rng, 1)[0]), f32([1, 2, 3]))
    many = Pose(f32(random_rotations(rng, 4)), f32(rng.normal(size=(4, 3))))
    got = compose(one, many)
    alone = compose(one, Pose(many.rotation[2], many.shift[2]))
    np.testing.assert_allclose(got.shift[2], alone.shift, atol=1e-6)
    np.testing.assert_allclose(got.rotation[2], alone.rotation, atol=1e-6)
    assert apply(one, many.shift).shape == (4, 3)


def test_orthogonalize_finds_the_nearest_rotation(rng):
    r = random_rotations(rng, 10)
    noisy = r + rng.normal(scale=1e-3, size=r.shape)
    got = np.asarray(rotation.orthogonalize(noisy), np.float64)
    np.testing.assert_allclose(
        got @ got.transpose(0, 2, 1), np.tile(np.eye(3), (10, 1, 1)), atol=3e-7
    )
    nearest = np.linalg.norm(got - noisy, axis=(1, 2))
    assert (nearest <= np.linalg.norm(r - noisy, axis=(1, 2)) + 1e-6).all()


@pytest.mark.parametrize(
    ("matrix", "word"),
    [
        (np.eye(3, 4)[:2], "12 numbers"),
        (np.eye(3, 4) * np.nan, "NaN"),
        (np.eye(3, 4) * 2, "scales"),
        (np.diag([-1.0, 1, 1, 0])[:3], "mirror"),
    ],
)
def test_bad_pose_matrices_are_refused(matrix, word):
    with pytest.raises(InputError, match=word):
        rotation.pose_from_matrix34(matrix)


def test_singular_matrix_and_wrong_number_of_angles_are_refused():
    with pytest.raises(InputError, match="singular"):
        rotation.orthogonalize(np.zeros((3, 3)))
    with pytest.raises(InputError, match="takes 3 numbers"):
        rotation.from_euler(jnp.zeros(4), Convention.RELION)
