"""Levenberg-Marquardt refinement of poses under the score, on SO(3) x R^3.

Value, gradient and Gauss-Newton matrix of ``score`` in the left tangent of the rotation
(``exp(w) R``) and the particle-frame shift, by variable projection: the amplitude of the
reference is eliminated, so the metric is that of the normalised model. A step is kept only if
the score rises; trip counts are fixed, so shapes are static.
"""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from ..resample import SliceTable, rotated_axes, sample_with_gradient
from ..rotation import exp, log
from ..score import TINY, Observations

MAX_TURN = 0.2  # radians in one step
MAX_MOVE = 3.0  # voxels in one step


class LocalModel(eqx.Module):
    """Score and its quadratic model at one pose (tangent: 3 of rotation, 3 of shift)."""

    score: Float[Array, ""]
    gradient: Float[Array, "6"]
    curvature: Float[Array, "6 6"]  # of the normalised model: minus the Hessian over the score


def local_model(
    table: SliceTable,
    data: Float[Array, "2 k"],
    weight: Float[Array, " k"],
    vectors: Float[Array, "3 k"],
    rotation: Float[Array, "3 3"],
    shift: Float[Array, "3"],
    box: int,
) -> LocalModel:
    """Quadratic model of the score of one particle at one pose.

    Args:
        table: reference.
        data: real and imaginary part of the whitened particle.
        weight: its weight.
        vectors: half-ball frequencies, rows kx, ky, kz.
        rotation: particle to reference.
        shift: ``-R^T t``, voxels.
        box: edge of the particle box.
    """
    rows = linear_rows(table, data, weight, vectors, rotation, shift, box)
    # one Gram matrix holds every product that is needed
    matrix = lax.optimization_barrier(rows.reshape(8, -1))
    gram = matrix @ matrix.T
    norm2 = lax.rsqrt(gram[6, 6] + TINY)
    along = gram[:6, 6] * norm2 * norm2
    root2 = jnp.sqrt(2.0)
    score = root2 * gram[7, 6] * norm2
    gradient = root2 * gram[:6, 7] * norm2 - score * along
    curvature = gram[:6, :6] * norm2 * norm2 - along[:, None] * along[None, :]
    return LocalModel(score, gradient, curvature)


def linear_rows(
    table: SliceTable,
    data: Float[Array, "2 k"],
    weight: Float[Array, " k"],
    vectors: Float[Array, "3 k"],
    rotation: Float[Array, "3 3"],
    shift: Float[Array, "3"],
    box: int,
) -> Float[Array, "8 2 k"]:
    """Derivatives of the weighted reference by turns and shifts, itself, and the particle.

    All in the frame in which the reference is not shifted: the phase of the shift, common to the
    reference and its derivatives, moves the data instead.

    Args:
        table: the reference.
        data: whitened particle; the first axis holds real and imaginary parts, as that of the
            result.
        weight: of the particle.
        vectors: frequencies (kx, ky, kz) in rows.
        rotation: particle to reference.
        shift: particle frame, voxels.
        box: edge of the particle box, voxels.
    """
    axes = rotated_axes(vectors, rotation)
    value, (gx, gy, gz) = sample_with_gradient(table, axes)
    angle = (2 * jnp.pi / box) * _inner(vectors, shift)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    observed = (data[0] * cos - data[1] * sin, data[0] * sin + data[1] * cos)
    qx, qy, qz = (weight * q for q in axes)
    rows = []
    for part in (0, 1):  # real, imaginary
        turn = [
            qy * gz[part] - qz * gy[part],
            qz * gx[part] - qx * gz[part],
            qx * gy[part] - qy * gx[part],
        ]
        turned = weight * (-value[0] if part else value[1])
        move = [(2 * jnp.pi / box) * vectors[i] * turned for i in range(3)]
        rows.append(jnp.stack([*turn, *move, weight * value[part], observed[part]]))
    return jnp.stack(rows, 1)


def _inner(vectors: Float[Array, "3 k"], shift: Float[Array, "3"]) -> Float[Array, " k"]:
    return vectors[0] * shift[0] + vectors[1] * shift[1] + vectors[2] * shift[2]


def _step(model: LocalModel, damping: Float[Array, ""]) -> Float[Array, "6"]:
    """Damped Newton step, its rotation and shift parts limited in length."""
    scale = jnp.maximum(jnp.abs(model.score), 1e-3)
    matrix = scale * model.curvature
    diagonal = jnp.diagonal(matrix)
    matrix = matrix + jnp.diag(damping * diagonal + 1e-6 * jnp.max(diagonal) + TINY)
    step = _solve_positive(matrix, model.gradient)
    turn = jnp.minimum(1.0, MAX_TURN * lax.rsqrt(jnp.sum(step[:3] ** 2) + TINY))
    move = jnp.minimum(1.0, MAX_MOVE * lax.rsqrt(jnp.sum(step[3:] ** 2) + TINY))
    return jnp.concatenate([step[:3] * turn, step[3:] * move])


def _solve_positive(matrix: Float[Array, "6 6"], right: Float[Array, "6"]) -> Float[Array, "6"]:
    """Gauss-Jordan elimination of a positive definite system, unrolled.

    A library call for a 6 x 6 system inside the loop costs more than the search direction itself.
    """
    system = jnp.concatenate([matrix, right[:, None]], 1)
    for pivot in range(6):
        row = system[pivot] / system[pivot, pivot]
        system = system - system[:, pivot][:, None] * row[None]
        system = system.at[pivot].set(row)
    return system[:, 6]


class Bounds(eqx.Module):
    """Where a climb may go: so far from a centre."""

    rotation: Float[Array, "*b 3 3"]
    shift: Float[Array, "*b 3"]
    angle: Float[Array, ""]  # of the rotation from the centre, radians
    reach_vox: Float[Array, "3"]  # along every axis

    @classmethod
    def around(
        cls, rotation: Array, shift: Array, angle_deg: float, reach_vox: tuple[float, ...]
    ) -> "Bounds":
        """Bounds of an angle (180 for none) and of shifts along x, y and z."""
        return cls(
            rotation,
            shift,
            jnp.asarray(np.radians(angle_deg), jnp.float32),
            jnp.asarray(reach_vox, jnp.float32),
        )

    def free(self, shift: Float[Array, "3"], gradient: Float[Array, "6"]) -> Float[Array, "6"]:
        """0 for shifts at their edge that would rise only beyond it, else 1."""
        moved = shift - self.shift
        stopped = (jnp.abs(moved) > self.reach_vox - 1e-4) & (moved * gradient[3:] > 0)
        return jnp.concatenate([jnp.ones(3), jnp.where(stopped, 0.0, 1.0)])

    def nearest(
        self, rotation: Float[Array, "3 3"], shift: Float[Array, "3"]
    ) -> tuple[Float[Array, "3 3"], Float[Array, "3"]]:
        """The pose inside (of bounds around one centre) that is nearest; itself if it is."""
        turn = rotation @ self.rotation.T
        inside = jnp.trace(turn) >= 1 + 2 * jnp.cos(self.angle)
        axis = log(turn)
        edge = exp(axis * (self.angle * lax.rsqrt(jnp.sum(axis**2) + TINY))) @ self.rotation
        moved = jnp.clip(shift - self.shift, -self.reach_vox, self.reach_vox)
        return jnp.where(inside | (self.angle >= np.pi), rotation, edge), self.shift + moved


def refine_pose(
    table: SliceTable,
    data: Float[Array, "2 k"],
    weight: Float[Array, " k"],
    vectors: Float[Array, "3 k"],
    rotation: Float[Array, "3 3"],
    shift: Float[Array, "3"],
    *,
    box: int,
    steps: int,
    free: tuple[bool, ...] | None = None,
    bounds: Bounds | None = None,
) -> tuple[Float[Array, "3 3"], Float[Array, "3"], Float[Array, ""]]:
    """Climb from one pose; returns rotation, shift and score, never worse than the start.

    Args:
        table: reference.
        data: real and imaginary part of the whitened particle.
        weight: its weight.
        vectors: half-ball frequencies, rows kx, ky, kz.
        rotation: particle to reference.
        shift: ``-R^T t``, voxels.
        box: edge of the particle box.
        steps: how many are tried.
        free: which of three turns (about the reference's axes) and three shifts may change.
        bounds: a step that leaves them ends at their edge.
    """

    def evaluate(rotation: Array, shift: Array) -> LocalModel:
        model = local_model(table, data, weight, vectors, rotation, shift, box)
        return model if free is None else _held(model, np.asarray(free, np.float32))

    return climb(evaluate, rotation, shift, steps, bounds)


def _held(model: LocalModel, free: np.ndarray | Float[Array, "6"]) -> LocalModel:
    """A model of the free parameters (1) only: the others (0) do not move."""
    kept = model.curvature * (free[:, None] * free[None])
    return LocalModel(model.score, model.gradient * free, kept)


def climb(
    evaluate: Callable[[Array, Array], LocalModel],
    rotation: Float[Array, "3 3"],
    shift: Float[Array, "3"],
    steps: int,
    bounds: Bounds | None = None,
) -> tuple[Float[Array, "3 3"], Float[Array, "3"], Float[Array, ""]]:
    """Levenberg-Marquardt on any score of a rotation and a shift, given its local models."""

    def body(_: int, state: tuple) -> tuple:
        rotation, shift, model, damping = state
        inner = model if bounds is None else _held(model, bounds.free(shift, model.gradient))
        step = _step(inner, damping)
        turned = exp(step[:3]) @ rotation
        moved = shift + step[3:]
        if bounds is not None:
            turned, moved = bounds.nearest(turned, moved)
        trial = evaluate(turned, moved)
        better = trial.score > model.score
        keep = lambda new, old: jnp.where(better, new, old)  # noqa: E731
        model = LocalModel(
            keep(trial.score, model.score),
            keep(trial.gradient, model.gradient),
            keep(trial.curvature, model.curvature),
        )
        damping = jnp.where(better, damping * 0.3, jnp.minimum(damping * 6.0, 1e3))
        return keep(turned, rotation), keep(moved, shift), model, damping

    start = (rotation, shift, evaluate(rotation, shift), jnp.float32(0.05))
    rotation, shift, model, _ = lax.fori_loop(0, steps, body, start)
    return rotation, shift, model.score


def split_observation(observations: Observations) -> tuple[Array, Array]:
    """Observations as real arrays: data ``[n, 2, k]`` and weight ``[n, k]``."""
    data = jnp.stack([observations.data.real, observations.data.imag], 1)
    return data, jnp.broadcast_to(observations.weight, observations.data.shape)
