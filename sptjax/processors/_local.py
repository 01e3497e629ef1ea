"""Functions of a neighbourhood: box statistics, gradients, bilateral filter, radial average."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._errors import InputError
from .._types import Volume
from . import _grid
from ._base import Processor, key
from ._window import Box, Members, Plane, windows


class LocalMax(Box):
    """Largest value in the box (``math.localmax``)."""

    def reduce(self, members: Members, centre: Plane) -> Plane:
        """Largest member."""
        return members.max(0)


class SubMax(Box):
    """The value minus the largest in its box (``math.submax``)."""

    def reduce(self, members: Members, centre: Plane) -> Plane:
        """Centre minus the largest member."""
        return centre - members.max(0)


class LocalMinAbs(Box):
    """Smallest absolute value in the box (``math.localminabs``)."""

    def reduce(self, members: Members, centre: Plane) -> Plane:
        """Smallest absolute member."""
        return jnp.abs(members).min(0)


class LocalSigma(Box):
    """Standard deviation in the box, of the population (``math.localsigma``)."""

    def reduce(self, members: Members, centre: Plane) -> Plane:
        """Standard deviation of the members."""
        return members.std(0)


class Median(Box):
    """Median of the box (``eman1.filter.median``)."""

    def reduce(self, members: Members, centre: Plane) -> Plane:
        """Median of the members."""
        return jnp.median(members, 0)


def _edge(volume: Volume, axis: int) -> Volume:
    """Difference of the two faces along an axis; a face weighs 8 in its middle, 1 around."""
    face = volume
    for across in {0, 1, 2} - {axis}:
        face = face + jnp.roll(face, 1, across) + jnp.roll(face, -1, across)
    face = face + 7 * volume
    return jnp.roll(face, 1, axis) - jnp.roll(face, -1, axis)


class EdgeX(Processor):
    """-32 times the slope along x, periodic (``math.edge.xgradient``); a 3x3x3 edge detector."""

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return _edge(volume, 2)


class EdgeY(Processor):
    """As ``math.edge.xgradient`` along y (``math.edge.ygradient``)."""

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return _edge(volume, 1)


class EdgeZ(Processor):
    """As ``math.edge.xgradient`` along z (``math.edge.zgradient``)."""

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return _edge(volume, 0)


class Laplacian(Processor):
    """Sum of the six neighbours minus six times the value, periodic; per voxel squared.

    EMAN2's ``math.laplacian`` is not a Laplacian but a standardised, anisotropic sum of second
    edge gradients; this one differs from it on purpose.
    """

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        around = [jnp.roll(volume, step, axis) for axis in range(3) for step in (1, -1)]
        return sum(around, -6 * volume)


class Bilateral(Processor):
    """Edge-preserving smoothing (``filter.bilateral``).

    Weights in the box of half-width ``half_width`` are ``exp(-d**2 / (2 distance_sigma**2)) /
    (1 + ((v' - v) / value_sigma)**2)``. Edges are mirrored on all axes; EMAN2 pads z with zeros.

    Attributes:
        distance_sigma: voxels.
        value_sigma: in the units of the volume.
        niter: how often it is applied.
        half_width: voxels.
    """

    distance_sigma: float = key(default=2.1)
    value_sigma: float = key(default=1.3)
    niter: int = key(default=1)
    half_width: int = key(default=1)

    def __check_init__(self):
        if self.distance_sigma <= 0 or self.value_sigma <= 0:
            raise InputError("distance_sigma and value_sigma must be positive.")
        if self.niter < 1 or self.half_width < 0:
            raise InputError(
                f"niter >= 1 and half_width >= 0 are needed, not {self.niter}, {self.half_width}."
            )

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        axis = np.arange(-self.half_width, self.half_width + 1) ** 2
        square = axis[:, None, None] + axis[None, :, None] + axis[None, None, :]
        near = np.exp(-square / (2 * self.distance_sigma**2)).reshape(-1, 1, 1)
        near = jnp.asarray(near, volume.dtype)

        def smoothed(members: Members, centre: Plane) -> Plane:
            weight = near / (1 + ((members - centre[None]) / self.value_sigma) ** 2)
            return (weight * members).sum(0) / weight.sum(0)

        for _ in range(self.niter):
            volume = windows(volume, (self.half_width,) * 3, smoothed, high="reflect")
        return volume


class RotationalAverage(Processor):
    """Mean over spherical shells about the centre voxel, as a volume (``math.rotationalaverage``).

    Each voxel is split linearly between the two nearest whole radii, and the profile is
    interpolated back, out to the corners. EMAN2 averages the squares and stops at the sphere.
    """

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        radius = jnp.sqrt(_grid.square_radius(volume.shape))
        shells = int(np.linalg.norm([n // 2 for n in volume.shape])) + 2
        low = jnp.floor(radius).astype(jnp.int32)
        high_share = radius - low.astype(radius.dtype)

        def profile(values: Volume) -> Float[Array, " r"]:
            start = jnp.zeros(shells, values.dtype)
            return start.at[low].add(values * (1 - high_share)).at[low + 1].add(values * high_share)

        count = profile(jnp.ones_like(volume))
        mean = profile(volume) / jnp.where(count > 0, count, 1.0)
        return mean[low] * (1 - high_share) + mean[low + 1] * high_share


REGISTRY = {
    "math.localmax": LocalMax,
    "math.submax": SubMax,
    "math.localminabs": LocalMinAbs,
    "math.localsigma": LocalSigma,
    "eman1.filter.median": Median,
    "math.edge.xgradient": EdgeX,
    "math.edge.ygradient": EdgeY,
    "math.edge.zgradient": EdgeZ,
    "math.laplacian": Laplacian,
    "filter.bilateral": Bilateral,
    "math.rotationalaverage": RotationalAverage,
}
