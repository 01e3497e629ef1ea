"""Trilinear resampling and whole-voxel shifts in real space, with EMAN2's treatment of edges."""

import jax.numpy as jnp
from jax.scipy import ndimage
from jaxtyping import Array, Float, Int

from .._types import Pose, Volume
from . import _grid

_ON_BORDER = 1e-4  # voxels


def pull(
    volume: Volume,
    matrix: Float[Array, "3 3"],
    offset: Float[Array, "3"],
    box: int,
    *,
    fade: bool = False,
) -> Volume:
    """``out(x) = volume(matrix x + offset)``, x about the centre voxel, vectors (x, y, z).

    0 where the source has a coordinate below 0 or at ``n`` or more. In the last cell, ``n - 1``
    to ``n``, the edge continues, at the high side only. Coordinates within 1e-4 of a border
    count as on it, so that exact symmetry operators treat the edges alike.

    Args:
        volume: ``[z, y, x]``.
        matrix: from the result to the source.
        offset: voxels.
        box: edge of the result.
        fade: interpolate towards zeros around the volume instead.
    """
    x, y, z = _grid.axes((box,) * 3)
    source = [
        matrix[i, 0] * x + matrix[i, 1] * y + matrix[i, 2] * z + (offset[i] + n // 2)
        for i, n in enumerate(volume.shape[::-1])
    ]
    mode = "constant" if fade else "nearest"
    sampled = ndimage.map_coordinates(volume, source[::-1], order=1, mode=mode)
    if fade:
        return sampled
    inside = jnp.asarray(True)
    for points, n in zip(source, volume.shape[::-1]):
        inside = inside & (points > -_ON_BORDER) & (points < n - _ON_BORDER)
    return jnp.where(inside, sampled, 0.0)


def move(volume: Volume, pose: Pose) -> Volume:
    """``out(R x + t) = volume(x)`` about the centre voxel, by :func:`pull`."""
    back = pose.rotation.T
    x, y, z = pose.shift
    offset = -(back[:, 0] * x + back[:, 1] * y + back[:, 2] * z)
    return pull(volume, back, offset, volume.shape[-1])


def move_whole(volume: Volume, shift: Int[Array, "3"]) -> Volume:
    """Shift by whole voxels (x, y, z); zeros come in."""
    for axis, step in zip((2, 1, 0), shift):
        n = volume.shape[axis]
        came_from = jnp.arange(n) - step
        inside = (came_from >= 0) & (came_from < n)
        volume = jnp.where(
            inside.reshape([n if a == axis else 1 for a in range(3)]),
            jnp.roll(volume, step, axis),
            0.0,
        )
    return volume
