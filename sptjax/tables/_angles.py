"""Angles of other programs to and from our poses, whole tables at a time.

The conventions are those of :mod:`sptjax.rotation`. AV3, STOPGAP and PyTom turn the reference by
``phi`` about z, then ``theta`` about x, then ``psi`` about z (fixed axes, right-handed), and then
shift it by ``s``: ``x = Rz(psi) Rx(theta) Rz(phi) x_ref + s``. The rotation from particle to
reference is the inverse, EMAN's ``az = psi``, ``alt = theta``, ``phi = phi``, and the shift
``t = -R s``, as Dynamo's.
"""

import jax.numpy as jnp
import numpy as np

from sptjax import rotation
from sptjax._types import Pose
from sptjax.rotation import Convention

Arrays = tuple[np.ndarray, np.ndarray]


def from_relion(angles_deg: np.ndarray, origin_vox: np.ndarray) -> Arrays:
    """Rotations and shifts of (rot, tilt, psi) and origins, ``[n, 3]`` each."""
    return _arrays(rotation.pose_from_relion(_turns(angles_deg), _f32(origin_vox)))


def to_relion(rotations: np.ndarray, shift_vox: np.ndarray) -> Arrays:
    """(rot, tilt, psi) in degrees and origins in voxels."""
    return _both(*rotation.pose_to_relion(_pose(rotations, shift_vox)))


def from_dynamo(angles_deg: np.ndarray, shift_vox: np.ndarray) -> Arrays:
    """Rotations and shifts of (tdrot, tilt, narot) and (dx, dy, dz)."""
    return _arrays(rotation.pose_from_dynamo(_turns(angles_deg), _f32(shift_vox)))


def to_dynamo(rotations: np.ndarray, shift_vox: np.ndarray) -> Arrays:
    """(tdrot, tilt, narot) in degrees and (dx, dy, dz) in voxels."""
    return _both(*rotation.pose_to_dynamo(_pose(rotations, shift_vox)))


def from_av3(phi_psi_theta: np.ndarray, shift_vox: np.ndarray) -> Arrays:
    """Rotations and shifts of AV3's (phi, psi, theta) and the shift after rotation."""
    turn = rotation.from_euler(_turns(phi_psi_theta[:, [1, 2, 0]]), Convention.EMAN)
    return _arrays(Pose(turn, -rotation.rotate(turn, _f32(shift_vox))))


def to_av3(rotations: np.ndarray, shift_vox: np.ndarray) -> Arrays:
    """AV3's (phi, psi, theta) in degrees and the shift after rotation in voxels."""
    pose = _pose(rotations, shift_vox)
    angles = np.asarray(rotation.to_euler(pose.rotation, Convention.EMAN), np.float64)
    return angles[:, [2, 0, 1]], np.asarray(rotation.invert(pose).shift, np.float64)


def from_eman(az_alt_phi: np.ndarray) -> np.ndarray:
    """Rotations of EMAN's (az, alt, phi)."""
    return np.asarray(rotation.from_euler(_turns(az_alt_phi), Convention.EMAN), np.float64)


def to_eman(rotations: np.ndarray) -> np.ndarray:
    """EMAN's (az, alt, phi) in degrees."""
    return np.asarray(rotation.to_euler(_f32(rotations), Convention.EMAN), np.float64)


def _turns(degrees: np.ndarray):
    """Whole turns off before single precision."""
    return _f32(np.remainder(np.asarray(degrees, np.float64) + 180, 360) - 180)


def _f32(values: np.ndarray):
    return jnp.asarray(np.asarray(values, np.float32))


def _pose(rotations: np.ndarray, shift_vox: np.ndarray) -> Pose:
    return Pose(_f32(rotations), _f32(shift_vox))


def _arrays(pose: Pose) -> Arrays:
    return _both(pose.rotation, pose.shift)


def _both(first, second) -> Arrays:
    return np.asarray(first, np.float64), np.asarray(second, np.float64)
