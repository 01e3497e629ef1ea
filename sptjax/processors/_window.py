"""Functions of the box about every voxel."""

import abc
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from .._errors import InputError
from .._types import Volume
from ._base import Processor, key

Members = Float[Array, "k y x"]
Plane = Float[Array, "y x"]


def windows(
    volume: Volume,
    half: tuple[int, ...],
    reduce: Callable[[Members, Plane], Plane],
    high: str = "symmetric",
) -> Volume:
    """``reduce(members, centre)`` of the box of half-widths (z, y, x) about every voxel.

    Edges are mirrored as in EMAN2: voxel ``-i`` is voxel ``i``; voxel ``n - 1 + i`` is voxel
    ``n - i`` (``high="symmetric"``) or ``n - 1 - i`` (``"reflect"``). One section at a time, so
    that memory holds the members of one section only.
    """
    low = jnp.pad(volume, [(h, 0) for h in half], mode="reflect")
    padded = jnp.pad(low, [(0, h) for h in half], mode=high)
    ny, nx = volume.shape[1:]
    offsets = np.stack(np.meshgrid(*(np.arange(2 * h + 1) for h in half), indexing="ij"), -1)
    offsets = jnp.asarray(offsets.reshape(-1, 3), jnp.int32)

    def section(z: Array) -> Plane:
        slab = lax.dynamic_slice_in_dim(padded, z, 2 * half[0] + 1, 0)
        members = jax.vmap(lambda o: lax.dynamic_slice(slab, o, (1, ny, nx))[0])(offsets)
        return reduce(members, members[len(members) // 2])

    return lax.map(section, jnp.arange(volume.shape[0]))


class Box(Processor):
    """A processor whose result at a voxel depends on the box about it.

    The box has the half-width ``radius`` on all axes, or ``xsize``, ``ysize``, ``zsize`` where
    they are given, voxels; edges are mirrored.
    """

    radius: int = key(default=1)
    xsize: int | None = key(default=None)
    ysize: int | None = key(default=None)
    zsize: int | None = key(default=None)

    def __check_init__(self):
        if min(self._half_widths()) < 0:
            raise InputError("radius, xsize, ysize and zsize must not be negative.")

    def _half_widths(self) -> tuple[int, ...]:
        sizes = (self.zsize, self.ysize, self.xsize)
        return tuple(self.radius if size is None else size for size in sizes)

    @abc.abstractmethod
    def reduce(self, members: Members, centre: Plane) -> Plane:
        """Result for the boxes of one section; ``centre`` is the middle member."""

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return windows(volume, self._half_widths(), self.reduce)
