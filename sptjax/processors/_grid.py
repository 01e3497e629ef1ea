"""Coordinates of voxels about a centre, and the sample standard deviation."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Volume

Axes = tuple[Float[Array, "1 1 x"], Float[Array, "1 y 1"], Float[Array, "z 1 1"]]
Shape = tuple[int, ...]


def axes(shape: Shape, offset: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Axes:
    """Coordinates x, y, z from voxel ``n // 2`` plus ``offset`` (x, y, z), ready to broadcast."""
    x, y, z = (jnp.arange(n, dtype=jnp.float32) - (n // 2 + o) for n, o in zip(shape[::-1], offset))
    return x[None, None, :], y[None, :, None], z[:, None, None]


def square_radius(shape: Shape, offset: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Volume:
    """Squared distance from the centre voxel plus ``offset`` (x, y, z)."""
    x, y, z = axes(shape, offset)
    return x * x + y * y + z * z


def sigma(volume: Volume) -> Float[Array, ""]:
    """Sample standard deviation, as EMAN2's attribute of that name."""
    return jnp.std(volume, ddof=1)
