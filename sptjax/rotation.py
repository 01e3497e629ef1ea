"""Rotations and rigid poses; the only file that knows Euler conventions.

A rotation is a matrix ``[..., 3, 3]`` that acts on column vectors ``(x, y, z)``. Its
rotation vector ``w`` (radians) follows the right-hand rule: ``exp((0, 0, a))`` sends ``x``
towards ``y``. Quaternions are ``(w, x, y, z)``, scalar first, same sense.

Every convention below is read as the particle -> reference rotation of a
:class:`~sptjax._types.Pose`. Programs differ in three ways: the axes of the three turns,
their sense, and whether the angles describe particle -> reference (EMAN2's
``xform.align3d``) or reference -> particle (RELION, Dynamo). With the right-handed turns
``Rx, Ry, Rz``:

============ ====================== ====================================================
convention   numbers                particle -> reference rotation R
============ ====================== ====================================================
EMAN         az, alt, phi           Rz(-phi) Rx(-alt) Rz(-az); IMAGIC: alpha, beta, gamma
SPIDER       phi, theta, psi        Rz(-psi) Ry(-theta) Rz(-phi); MRC: phi, theta, omega
XYZ          xtilt, ytilt, ztilt    Rz(-ztilt) Ry(-ytilt) Rx(-xtilt), as EMAN2
QUATERNION   e0, e1, e2, e3         of the quaternion (e0, -e1, -e2, -e3), as EMAN2
SPIN         omega, n1, n2, n3      exp(-omega n), as EMAN2; SGIROT: q, n1, n2, n3
SPINVEC      v1, v2, v3             exp(-v), length of v in turns, as EMAN2
RELION       rot, tilt, psi         Rz(rot) Ry(tilt) Rz(psi), the inverse of SPIDER
DYNAMO       tdrot, tilt, narot     Rz(narot) Rx(tilt) Rz(tdrot)
============ ====================== ====================================================

Angles are in degrees. Products run at full float32 precision on every device.
"""

import enum
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from sptjax._errors import InputError
from sptjax._types import Matrices, Pose, Vectors

_HIGHEST = jax.lax.Precision.HIGHEST
_POLE = 1e-6  # sine of the middle angle below which the outer two are one rotation


class Convention(enum.Enum):
    """A way to write a rotation (module docstring); the value names its numbers in order."""

    EMAN = ("az", "alt", "phi")
    IMAGIC = ("alpha", "beta", "gamma")
    SPIDER = ("phi", "theta", "psi")
    MRC = ("phi", "theta", "omega")
    XYZ = ("xtilt", "ytilt", "ztilt")
    QUATERNION = ("e0", "e1", "e2", "e3")
    SPIN = ("omega", "n1", "n2", "n3")
    SGIROT = ("q", "n1", "n2", "n3")
    SPINVEC = ("v1", "v2", "v3")
    RELION = ("rot", "tilt", "psi")
    DYNAMO = ("tdrot", "tilt", "narot")


def multiply(a: Matrices, b: Matrices) -> Matrices:
    """Matrix product ``a b`` ("b first") at full float32 precision; leading axes broadcast."""
    return jnp.matmul(a, b, precision=_HIGHEST)


def transpose(rotation: Matrices) -> Matrices:
    """Inverse rotation."""
    return jnp.swapaxes(rotation, -1, -2)


def rotate(rotation: Matrices, vectors: Vectors) -> Vectors:
    """Apply ``R v``; leading axes broadcast. Shapes ``[..., 3, 3]`` and ``[..., 3]``.

    Args:
        rotation: ``R``.
        vectors: (x, y, z).
    """
    return jnp.matmul(rotation, vectors[..., None], precision=_HIGHEST)[..., 0]


def exp(w: Vectors) -> Matrices:
    """Rotation matrix of a rotation vector in radians (Rodrigues' formula).

    Value and derivatives are finite at zero.

    Args:
        w: (x, y, z), radians.
    """
    square = jnp.sum(w * w, axis=-1)[..., None, None]
    small = square < 1e-2
    theta = jnp.sqrt(jnp.where(small, 1.0, square))
    half = jnp.sin(0.5 * theta) / theta
    sine = jnp.where(small, 1 - square / 6 + square**2 / 120, jnp.sin(theta) / theta)
    cosine = jnp.where(small, 0.5 - square / 24 + square**2 / 720, 2 * half * half)
    k = _skew(w)
    return _identity_like(k) + sine * k + cosine * multiply(k, k)


def log(rotation: Matrices) -> Vectors:
    """Rotation vector in radians, length at most pi; inverse of :func:`exp`.

    Goes through the quaternion, so it keeps full precision near pi (at pi itself the sign
    of the axis is free). The gradient is finite at the identity.

    Args:
        rotation: orthogonal, determinant 1.
    """
    q = to_quaternion(rotation)
    w, v = q[..., :1], q[..., 1:]
    square = jnp.sum(v * v, axis=-1, keepdims=True)
    small = square < 1e-4
    length = jnp.sqrt(jnp.where(small, 1.0, square))
    far = 2 * jnp.arctan2(length, w) / length
    safe_w = jnp.where(small, w, 1.0)
    ratio = jnp.where(small, square, 0.0) / safe_w**2
    near = 2 / safe_w * (1 - ratio / 3 + ratio**2 / 5)
    return jnp.where(small, near, far) * v


def angle_deg(a: Matrices, b: Matrices) -> Float[Array, "..."]:
    """Geodesic angle between two rotations in degrees, 0 to 180.

    From ``atan2`` of the sine (antisymmetric part) and the cosine (trace) of ``a' b``, thus
    accurate at both ends, where the arc cosine of the trace loses half of the digits.
    The gradient is finite everywhere (0 where the angle is 0 or 180).
    """
    d = multiply(transpose(a), b)
    doubled = _axial(d)
    square = jnp.sum(doubled * doubled, axis=-1)
    flat = square == 0
    sine = jnp.where(flat, 0.0, jnp.sqrt(jnp.where(flat, 1.0, square)))
    cosine = jnp.trace(d, axis1=-2, axis2=-1) - 1
    return jnp.rad2deg(jnp.arctan2(sine, cosine))


def from_quaternion(q: Float[Array, "*batch 4"]) -> Matrices:
    """Rotation matrix of a quaternion ``(w, x, y, z)``, normalised here; ``q`` and ``-q`` agree."""
    q = q / _length(q)
    k = _skew(q[..., 1:])
    return _identity_like(k) + 2 * q[..., :1, None] * k + 2 * multiply(k, k)


def to_quaternion(rotation: Matrices) -> Float[Array, "*batch 4"]:
    """Unit quaternion ``(w, x, y, z)`` with ``w >= 0`` (Shepperd 1978).

    Sums of matrix elements give the 4x4 matrix ``4 q q'``; its row with the largest
    diagonal element is normalised, which never divides by a small number.

    Args:
        rotation: orthogonal, determinant 1.
    """
    trace = jnp.trace(rotation, axis1=-2, axis2=-1)[..., None, None]
    axial = _axial(rotation)
    block = rotation + transpose(rotation) + (1 - trace) * _identity_like(rotation)
    top = jnp.concatenate([1 + trace, axial[..., None, :]], axis=-1)
    rows = jnp.concatenate([top, jnp.concatenate([axial[..., None], block], axis=-1)], axis=-2)
    best = jnp.argmax(jnp.diagonal(rows, axis1=-2, axis2=-1), axis=-1)
    row = jnp.take_along_axis(rows, best[..., None, None], axis=-2)[..., 0, :]
    q = row / _length(row)
    return jnp.where(q[..., :1] < 0, -q, q)


def random(key: PRNGKeyArray, n: int) -> Float[Array, "n 3 3"]:
    """``n`` rotations drawn uniformly over SO(3). The key is consumed."""
    return from_quaternion(jax.random.normal(key, (n, 4), jnp.float32))


def orthogonalize(rotation: np.ndarray | Matrices) -> Matrices:
    """Nearest rotation (singular value decomposition, float64 on the host) as float32.

    Raises:
        InputError: a matrix is not finite, singular, or contains a mirror.
    """
    m = np.asarray(rotation, np.float64)
    if not np.isfinite(m).all():
        raise InputError("A rotation matrix holds NaN or infinity.")
    u, s, vt = np.linalg.svd(m)
    if (s[..., -1] < 1e-6).any():
        raise InputError("A rotation matrix is singular.")
    nearest = u @ vt
    if (np.linalg.det(nearest) < 0).any():
        raise InputError("A rotation matrix contains a mirror; only proper rotations are poses.")
    return jnp.asarray(nearest, jnp.float32)


def compose(a: Pose, b: Pose) -> Pose:
    """Pose "``a`` after ``b``": ``R = Ra Rb``, ``t = Ra tb + ta``; leading axes broadcast."""
    moved = rotate(a.rotation, b.shift)
    return Pose(multiply(a.rotation, b.rotation), moved + jnp.broadcast_to(a.shift, moved.shape))


def invert(pose: Pose) -> Pose:
    """Inverse pose: ``R'``, ``-R' t``."""
    back = transpose(pose.rotation)
    return Pose(back, -rotate(back, pose.shift))


def apply(pose: Pose, points: Vectors) -> Vectors:
    """Points ``R x + t``, in voxels from the centre; leading axes broadcast.

    Args:
        pose: particle to reference, shift in voxels.
        points: (x, y, z).
    """
    moved = rotate(pose.rotation, points)
    return moved + jnp.broadcast_to(pose.shift, moved.shape)


def pose_from_matrix34(matrix: np.ndarray | Float[Array, "..."]) -> Pose:
    """Pose of 3x4 matrices ``[R | t]``, shape ``[..., 3, 4]`` or the 12 numbers row by row.

    The rotation is orthogonalised, so rounded text is safe.

    Args:
        matrix: particle to reference, ``t`` in voxels.

    Raises:
        InputError: wrong shape, a value that is not finite, a mirror, or a scale other than 1.
    """
    m = np.asarray(matrix, np.float64)
    if m.shape[-1:] == (12,):
        m = m.reshape(*m.shape[:-1], 3, 4)
    if m.shape[-2:] != (3, 4):
        raise InputError(f"A pose needs 12 numbers or a 3x4 matrix, not shape {m.shape}.")
    if not np.isfinite(m).all():
        raise InputError("A pose matrix holds NaN or infinity.")
    scale = np.cbrt(np.abs(np.linalg.det(m[..., :3])))
    if (np.abs(scale - 1) > 1e-3).any():
        raise InputError("A pose matrix scales its volume; only rotation and shift are poses.")
    return Pose(orthogonalize(m[..., :3]), jnp.asarray(m[..., 3], jnp.float32))


def pose_to_matrix34(pose: Pose) -> Float[Array, "*batch 3 4"]:
    """3x4 matrices ``[R | t]`` (EMAN2's stored form of ``xform.align3d``).

    Args:
        pose: particle to reference, shift in voxels.
    """
    return jnp.concatenate([pose.rotation, pose.shift[..., None]], axis=-1)


def pose_from_relion(angles_deg: Vectors, origin_vox: Vectors) -> Pose:
    """Pose of RELION's ``rlnAngleRot/Tilt/Psi`` and ``rlnOriginX/Y/Z`` (in voxels).

    RELION adds the origin to the particle's coordinates to centre it, and its matrix ``A``
    takes the reference to that centred particle: ``x + origin = A x_ref``. Hence
    ``x_ref = A' x + A' origin``: ``R = A'`` and ``t = R origin``. The reference's centre
    lies at ``-origin`` in the particle, RELION's rule "coordinate minus origin". Divide
    ``rlnOriginXAngst`` by the voxel size first.

    Args:
        angles_deg: ``[..., 3]``, rot, tilt, psi.
        origin_vox: ``[..., 3]``, voxels.
    """
    rotation = from_euler(angles_deg, Convention.RELION)
    return Pose(rotation, rotate(rotation, origin_vox))


def pose_to_relion(pose: Pose) -> tuple[Vectors, Vectors]:
    """RELION's (rot, tilt, psi) in degrees and origin in voxels; see :func:`pose_from_relion`.

    Args:
        pose: particle to reference, shift in voxels.
    """
    return to_euler(pose.rotation, Convention.RELION), rotate(transpose(pose.rotation), pose.shift)


def pose_from_dynamo(angles_deg: Vectors, shift_vox: Vectors) -> Pose:
    """Pose of a Dynamo table's ``tdrot, tilt, narot`` and ``dx, dy, dz`` (voxels).

    Dynamo's angles turn the template, clockwise about z, the new x and the new z, until it
    lies as the particle does; the matrix of ``dynamo_euler2matrix`` is the inverse of that
    (Dynamo wiki, "Euler angles convention" and "Table convention"), so it is ``R``. The
    particle lies at cropping position + shift: ``x = R' x_ref + d``, thus ``t = -R d``.

    Args:
        angles_deg: ``[..., 3]``, tdrot, tilt, narot.
        shift_vox: ``[..., 3]``, voxels.
    """
    rotation = from_euler(angles_deg, Convention.DYNAMO)
    return Pose(rotation, -rotate(rotation, shift_vox))


def pose_to_dynamo(pose: Pose) -> tuple[Vectors, Vectors]:
    """Dynamo's (tdrot, tilt, narot) in degrees and shift in voxels; see :func:`pose_from_dynamo`.

    Args:
        pose: particle to reference, shift in voxels.
    """
    return to_euler(pose.rotation, Convention.DYNAMO), invert(pose).shift


@functools.partial(jax.jit, static_argnames="convention")
def from_euler(angles: Float[Array, "*batch p"], convention: Convention) -> Matrices:
    """Particle -> reference rotation from a convention's ``p`` numbers (module docstring).

    Unlike EMAN2, quaternions and axes are normalised.

    Args:
        angles: degrees; quaternions and axes have no unit.
        convention: its name.

    Raises:
        InputError: the last axis does not have the convention's number of entries.
    """
    names = convention.value
    angles = jnp.asarray(angles, jnp.float32)
    if angles.ndim == 0 or angles.shape[-1] != len(names):
        raise InputError(
            f"Convention {convention.name} takes {len(names)} numbers ({', '.join(names)}), "
            f"not an array of shape {angles.shape}."
        )
    return _CODECS[convention][0](angles)


@functools.partial(jax.jit, static_argnames="convention")
def to_euler(rotation: Matrices, convention: Convention) -> Float[Array, "*batch p"]:
    """A convention's numbers for a particle -> reference rotation.

    Ranges as EMAN2 reads them back: alt, tilt and theta in [0, 180]; SPIDER and MRC phi, psi
    in [0, 360); all other angles in (-180, 180]. At the poles (alt 0 or 180), where the outer
    angles are one rotation, the first (az, phi, rot, tdrot) is 0; a pole is anything within
    6e-5 degrees (EMAN2: 0.014). XYZ has ytilt in [-90, 90],
    xtilt 0 at +-90, and is wrapped (EMAN2 forgets to). Quaternions have e0 >= 0, spins omega
    in [0, 180].
    """
    return _CODECS[convention][1](rotation)


def _skew(w: Vectors) -> Matrices:
    """Matrix of the cross product, ``_skew(w) v = w x v``."""
    x, y, z = jnp.moveaxis(w, -1, 0)
    o = jnp.zeros_like(x)
    return jnp.stack([o, -z, y, z, o, -x, -y, x, o], axis=-1).reshape(*w.shape, 3)


def _axial(m: Matrices) -> Vectors:
    """Axis of a rotation times twice the sine of its angle."""
    d = m - transpose(m)
    return jnp.stack([d[..., 2, 1], d[..., 0, 2], d[..., 1, 0]], axis=-1)


def _identity_like(m: Matrices) -> Matrices:
    return jnp.broadcast_to(jnp.eye(3, dtype=m.dtype), m.shape)


def _length(v: Array) -> Array:
    return jnp.sqrt(jnp.sum(v * v, axis=-1, keepdims=True))


def _signed(degrees: Array) -> Array:
    """Wrap to (-180, 180], once; small angles keep their digits."""
    up = jnp.where(degrees <= -180, degrees + 360, degrees)
    return jnp.where(up > 180, up - 360, up)


def _turns(angles: Array, axes: str) -> Matrices:
    """Three left-handed turns in degrees about fixed axes, the first one first."""
    unit = jnp.stack([jnp.eye(3, dtype=jnp.float32)["xyz".index(axis)] for axis in axes])
    w = -jnp.deg2rad(angles)[..., None]
    first, second, third = jnp.moveaxis(exp(w * jnp.broadcast_to(unit, (*w.shape[:-1], 3))), -3, 0)
    return multiply(third, multiply(second, first))


def _to_eman(r: Matrices) -> Array:
    return jnp.stack(_read_zxz(r)[:3], axis=-1)


def _read_zxz(r: Matrices) -> tuple[Array, Array, Array, Array]:
    """EMAN's az, alt, phi in degrees, and whether alt is at a pole (see :func:`to_euler`)."""
    sine = jnp.hypot(r[..., 2, 0], r[..., 2, 1])
    pole = sine < _POLE
    az = jnp.where(pole, 0.0, jnp.arctan2(r[..., 2, 0], -r[..., 2, 1]))
    alt = jnp.where(pole, jnp.where(r[..., 2, 2] > 0, 0.0, jnp.pi), jnp.arctan2(sine, r[..., 2, 2]))
    c, s = jnp.cos(az), jnp.sin(az)  # phi from R Rz(az): exact even where alt is tiny, az noise
    phi = jnp.arctan2(-(r[..., 1, 0] * c + r[..., 1, 1] * s), r[..., 0, 0] * c + r[..., 0, 1] * s)
    return _signed(jnp.rad2deg(az)), jnp.rad2deg(alt), _signed(jnp.rad2deg(phi)), pole


def _read_zyz(r: Matrices) -> tuple[Array, Array, Array]:
    az, alt, phi, pole = _read_zxz(r)
    first = jnp.where(pole, 0.0, az - 90)
    third = jnp.where(pole, jnp.where(alt > 90, phi + 180, phi), phi + 90)
    return first, alt, third


def _to_spider(r: Matrices) -> Array:
    angles = jnp.stack(_read_zyz(r), axis=-1)
    up = jnp.where(angles < 0, angles + 360, angles)
    return jnp.where(up >= 360, 0.0, up)


def _to_relion(r: Matrices) -> Array:
    rot, tilt, psi = _read_zyz(transpose(r))
    return jnp.stack([_signed(rot), tilt, _signed(psi)], axis=-1)


def _to_dynamo(r: Matrices) -> Array:
    az, alt, phi, pole = _read_zxz(r)
    # eman(az, alt, phi) is eman(az + 180, -alt, phi + 180), whose negative has tilt >= 0
    tdrot = jnp.where(pole, 0.0, -az - 180)
    narot = jnp.where(pole, -phi, -phi - 180)
    return jnp.stack([_signed(tdrot), alt, _signed(narot)], axis=-1)


def _to_xyz(r: Matrices) -> Array:
    cosine = jnp.hypot(r[..., 2, 1], r[..., 2, 2])
    x = jnp.where(cosine < _POLE, 0.0, jnp.arctan2(-r[..., 2, 1], r[..., 2, 2]))
    y = jnp.arctan2(r[..., 2, 0], cosine)
    c, s = jnp.cos(x), jnp.sin(x)
    z = jnp.arctan2(r[..., 0, 1] * c + r[..., 0, 2] * s, r[..., 1, 1] * c + r[..., 1, 2] * s)
    return _signed(jnp.rad2deg(jnp.stack([x, y, z], axis=-1)))


def _from_spin(numbers: Array) -> Matrices:
    axis = numbers[..., 1:]
    length = _length(axis)
    unit = axis / jnp.where(length > 0, length, 1.0)
    return exp(-jnp.deg2rad(numbers[..., :1]) * unit)


def _to_spin(r: Matrices) -> Array:
    v = -log(r)
    omega = _length(v)
    along_z = jnp.broadcast_to(jnp.asarray([0.0, 0.0, 1.0], jnp.float32), v.shape)
    axis = jnp.where(omega > 0, v / jnp.where(omega > 0, omega, 1.0), along_z)
    return jnp.concatenate([jnp.rad2deg(omega), axis], axis=-1)


# numbers -> particle-to-reference matrix, and back
_CODECS = {
    Convention.EMAN: (lambda a: _turns(a, "zxz"), _to_eman),
    Convention.IMAGIC: (lambda a: _turns(a, "zxz"), _to_eman),
    Convention.SPIDER: (lambda a: _turns(a, "zyz"), _to_spider),
    Convention.MRC: (lambda a: _turns(a, "zyz"), _to_spider),
    Convention.XYZ: (lambda a: _turns(a, "xyz"), _to_xyz),
    Convention.QUATERNION: (
        lambda e: transpose(from_quaternion(e)),
        lambda r: to_quaternion(transpose(r)),
    ),
    Convention.SPIN: (_from_spin, _to_spin),
    Convention.SGIROT: (_from_spin, _to_spin),
    Convention.SPINVEC: (lambda v: exp(-2 * jnp.pi * v), lambda r: log(r) / (-2 * jnp.pi)),
    Convention.RELION: (lambda a: transpose(_turns(a, "zyz")), _to_relion),
    Convention.DYNAMO: (lambda a: _turns(-a, "zxz"), _to_dynamo),
}
