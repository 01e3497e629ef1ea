"""Two half maps refined apart: bring the odd one onto the even one before they are compared.

Halves of an asymmetric particle may drift in all six degrees of freedom, of a Cn particle in
the rotation about z and the shift along z, as may those of a helix; a group with more than one
axis leaves none.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.spatial.transform import Rotation

from . import fourier, resample
from ._types import Pose, Volume
from .align import refine_pose, stack_tables
from .resample import SliceTable
from .symmetry import Symmetry

_STEPS = 12


def align_halves(even: Volume, odd: Volume, symmetry: Symmetry) -> tuple[Volume, Pose]:
    """The odd map moved onto the even one, within what the symmetry leaves free, and how.

    Args:
        even: reference half, ``[n, n, n]``.
        odd: the other half, nearly in place (both started from the same model).
        symmetry: of both; ``c1`` frees everything, ``cn`` and helices the z axis, others nothing.
    """
    empty = not float(jnp.abs(odd).max()) > 0 or not float(jnp.abs(even).max()) > 0
    if not symmetry.name.startswith(("c", "h")) or empty:
        return odd, Pose(jnp.eye(3), jnp.zeros(3))
    pose = half_pose(even, odd)
    if symmetry.name != "c1":
        pose = _about_z(pose)
    return resample.transform(odd, pose), pose


def half_pose(even: Volume, odd: Volume) -> Pose:
    """Local pose ``x_even = R x_odd + t`` by the best of a few refined starts.

    Args:
        even: map of the even half, voxels.
        odd: map of the odd half, same box.
    """
    box = even.shape[-1]
    kmax = min(box // 2 - 1, max(6, box // 4))
    vectors = jnp.asarray(fourier.half_ball(kmax))
    starts = jnp.asarray(_starts(), jnp.float32)
    turn, position, _ = _search(jnp.asarray(even), jnp.asarray(odd), vectors, starts)
    return Pose(turn, -turn @ position)


@eqx.filter_jit
def _search(even: Array, odd: Array, vectors: Array, starts: Float[Array, "s 3 3"]):
    box = even.shape[-1]
    tables = stack_tables(even[None], box / 2)
    table = SliceTable(tables.real[0], tables.imag[0], tables.half, tables.pad, tables.order)
    data = fourier.ball_coefficients(odd[None], vectors)[0]
    pair = jnp.stack([data.real, data.imag])
    pair = pair / jnp.sqrt(2 * jnp.sum(pair * pair))
    rows = vectors.astype(jnp.float32).T
    weight = jnp.ones(rows.shape[1])

    def climb(turn: Array):
        return refine_pose(table, pair, weight, rows, turn, jnp.zeros(3), box=box, steps=_STEPS)

    turns, positions, scores = eqx.filter_vmap(climb)(starts)
    best = jnp.argmax(scores)
    return turns[best], positions[best], scores[best]


def _starts() -> np.ndarray:
    """The identity, and six degrees either way about each axis."""
    turns = np.concatenate([np.zeros((1, 3)), 6 * np.eye(3), -6 * np.eye(3)])
    return Rotation.from_rotvec(turns, degrees=True).as_matrix()


def _about_z(pose: Pose) -> Pose:
    """The part of a pose that turns about z and moves along z."""
    angle = jnp.arctan2(
        pose.rotation[1, 0] - pose.rotation[0, 1], pose.rotation[0, 0] + pose.rotation[1, 1]
    )
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    zero, one = jnp.zeros_like(cos), jnp.ones_like(cos)
    rotation = jnp.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one]).reshape(3, 3)
    return Pose(rotation, jnp.stack([zero, zero, pose.shift[2]]))
