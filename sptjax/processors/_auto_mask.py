"""Masks grown from the density (EMAN2 ``mask.auto3d`` and relatives).

Growth is by the six neighbours of a voxel. It runs on the device: a masked dilation repeated
until nothing changes, whose number of steps is the longest path inside the density.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from .._errors import InputError
from .._types import Volume
from . import _grid
from ._base import Processor, key
from ._filters import LowpassGauss
from ._window import Box, Members, Plane

Region = Bool[Array, "z y x"]


def _neighbours(values: Array, join: Callable[[Array, Array], Array], outside: float) -> Array:
    """Each voxel joined with its six neighbours; those beyond the box are ``outside``."""
    result = values
    for axis in range(3):
        edge = jnp.full_like(lax.slice_in_dim(values, 0, 1, axis=axis), outside)
        inner, upper = (lax.slice_in_dim(values, a, b, axis=axis) for a, b in ((0, -1), (1, None)))
        result = join(result, jnp.concatenate([edge, inner], axis))
        result = join(result, jnp.concatenate([upper, edge], axis))
    return result


def _grown(region: Region, allowed: Region) -> Region:
    """The region and its six-neighbours that are allowed."""
    return region | (_neighbours(region, jnp.logical_or, False) & allowed)


def dilate(region: Region, steps: int) -> Region:
    """Grow by ``steps`` layers of six-neighbours; none are added in the outermost layer."""
    inside = _inside(region.shape)
    return lax.fori_loop(0, steps, lambda _, r: _grown(r, inside), region)


def flood(seeds: Region, allowed: Region) -> Region:
    """The seeds and all of ``allowed`` that is connected to them."""

    def grow(state: tuple[Region, Array]) -> tuple[Region, Array]:
        grown = _grown(state[0], allowed)
        return grown, jnp.any(grown != state[0])

    return lax.while_loop(lambda state: state[1], grow, (seeds, jnp.asarray(True)))[0]


def blob_sizes(region: Region) -> Array:
    """Number of voxels of the connected piece that each voxel belongs to, 0 outside, int32."""
    number = jnp.arange(region.size, dtype=jnp.int32).reshape(region.shape)
    first = jnp.where(region, number, -1)

    def spread(state: tuple[Array, Array]) -> tuple[Array, Array]:
        label, _ = state
        joined = jnp.where(region, _neighbours(label, jnp.maximum, -1), -1)
        return joined, jnp.any(joined != label)

    label, _ = lax.while_loop(lambda state: state[1], spread, (first, jnp.asarray(True)))
    label = jnp.where(region, label, region.size)
    counts = jnp.zeros(region.size + 1, jnp.int32).at[label].add(1)
    return jnp.where(region, counts[label], 0)


def _low_pass(volume: Volume, cutoff: float) -> Volume:
    """Gain ``exp(-(s / cutoff)**2)``, frequencies in cycles per voxel."""
    return LowpassGauss(cutoff_abs=cutoff)(volume, 1.0)


def _finished(region: Region, nshells: int, nshellsgauss: int) -> Volume:
    """Grow by the shells, then smooth; values below 0.002 become 0."""
    values = dilate(region, nshells + nshellsgauss // 2).astype(jnp.float32)
    if nshellsgauss > 0:
        values = _low_pass(values, 1 / nshellsgauss)
        values = jnp.where(values < 0.002, 0.0, values)
    return values


def _inside(shape: tuple[int, ...]) -> Region:
    """All but the outermost layer."""
    core = jnp.ones([n - 2 for n in shape], bool)
    return jnp.pad(core, 1)


def _check_shells(**shells: int) -> None:
    for name, value in shells.items():
        if value < 0:
            raise InputError(f"{name} must not be negative, not {value}.")


class Auto3d(Processor):
    """Multiply by a mask grown from seeds through the density (``mask.auto3d``).

    Seeds are the voxels ``>= threshold`` within ``radius`` of the centre and the ``nmaxseed``
    brightest voxels. They grow through ``v > threshold`` but not into the outermost layer, then
    by ``nshells + nshellsgauss // 2`` layers, and the result is smoothed if ``nshellsgauss`` is
    given (values may then exceed 1 by 0.5 %).

    Attributes:
        threshold: density level; or
        sigma: level in sample sigmas above the mean.
        radius: of the sphere of seeds, voxels.
        nmaxseed: number of the brightest voxels that are seeds.
        nshells: layers added.
        nshellsgauss: width of the smooth edge, layers.
        return_mask: give the mask instead of the masked volume.
    """

    threshold: float | None = key(default=None)
    sigma: float | None = key(default=None)
    radius: float = key(default=0.0)
    nmaxseed: int = key(default=0)
    nshells: int = key(default=0)
    nshellsgauss: int = key(default=0)
    return_mask: bool = key(default=False)

    def __check_init__(self):
        if (self.threshold is None) == (self.sigma is None):
            raise InputError("give either threshold or sigma.")
        if self.radius <= 0 and self.nmaxseed <= 0:
            raise InputError("give radius or nmaxseed: without seeds the mask is empty.")
        _check_shells(nshells=self.nshells, nshellsgauss=self.nshellsgauss)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        if self.sigma is not None:
            level = volume.mean() + self.sigma * _grid.sigma(volume)
        else:
            level = jnp.asarray(self.threshold, volume.dtype)
        inside = _inside(volume.shape)
        near = _grid.square_radius(volume.shape) <= max(self.radius, 0.0) ** 2
        seeds = near & (volume >= level) & (self.radius > 0)
        if self.nmaxseed > 0:
            brightest = lax.top_k(volume.reshape(-1), self.nmaxseed)[1]
            seeds = seeds.reshape(-1).at[brightest].set(True).reshape(volume.shape)
        grown = flood(seeds & inside, (volume > level) & inside)
        made = _finished(grown, self.nshells, self.nshellsgauss)
        return made if self.return_mask else volume * made


class Auto3dThreshold(Processor):
    """Multiply by a mask with two thresholds (``mask.auto3d.thresh``).

    All of ``v >= threshold1`` grows through ``v >= threshold2``, then as ``mask.auto3d``.

    Attributes:
        threshold1: level of the seeds; by default mean + 2 sample sigmas.
        threshold2: level of the mask; by default mean + 1 sigma.
        nshells: layers added.
        nshellsgauss: width of the smooth edge, layers.
        return_mask: give the mask instead of the masked volume.
    """

    threshold1: float | None = key(default=None)
    threshold2: float | None = key(default=None)
    nshells: int = key(default=0)
    nshellsgauss: int = key(default=0)
    return_mask: bool = key(default=False)

    def __check_init__(self):
        _check_shells(nshells=self.nshells, nshellsgauss=self.nshellsgauss)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        mean, sigma = volume.mean(), _grid.sigma(volume)
        high = mean + 2 * sigma if self.threshold1 is None else self.threshold1
        low = mean + sigma if self.threshold2 is None else self.threshold2
        grown = flood(volume >= high, volume >= low)
        made = _finished(grown, self.nshells, self.nshellsgauss)
        return made if self.return_mask else volume * made


class AddShells(Processor):
    """Binary mask of the positive voxels, grown by ``nshells`` layers (``mask.addshells``)."""

    nshells: int = key(default=1)

    def __check_init__(self):
        _check_shells(nshells=self.nshells)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return dilate(volume > 0, self.nshells).astype(volume.dtype)


class AddShellsGauss(Processor):
    """As ``mask.addshells`` with a Gaussian edge (``mask.addshells.gauss``).

    ``val1`` layers of value 1, then ``val2`` layers, the ``i``-th with ``exp(-(i / val2)**2)``.
    """

    val1: int = key()
    val2: int = key()

    def __check_init__(self):
        _check_shells(val1=self.val1, val2=self.val2)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        region = dilate(volume > 0, self.val1)
        falls = jnp.exp(-((jnp.arange(1, self.val2 + 1) / max(self.val2, 1)) ** 2))

        def layer(state: tuple[Region, Volume], fall: Array):
            region, values = state
            grown = dilate(region, 1)
            return (grown, jnp.where(grown & ~region, fall, values)), None

        state = region, region.astype(volume.dtype)
        return lax.scan(layer, state, falls.astype(volume.dtype))[0][1]


class Dust(Processor):
    """Remove the pieces of at most ``voxels`` voxels ``>= threshold`` (``mask.dust3d``).

    The mask of the pieces is grown by two layers and blurred by a Gaussian low-pass at 0.25
    cycles per voxel, then its complement is multiplied.
    """

    threshold: float = key(default=1.5)
    voxels: int = key(default=27)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        size = blob_sizes(volume >= self.threshold)
        dust = dilate((size > 0) & (size <= self.voxels), 2)
        return volume * _low_pass(1 - dust.astype(volume.dtype), 0.25)


class OnlyPeaks(Box):
    """Zero all but local maxima (``mask.onlypeaks``).

    A voxel is kept if at most ``npeaks`` members of its box, itself included, are as large;
    ``npeaks=0`` counts as 1.
    """

    npeaks: int = key(default=0)

    def reduce(self, members: Members, centre: Plane) -> Plane:
        """The centre where it is a peak, else 0."""
        as_large = (members >= centre[None]).sum(0)
        return jnp.where(as_large <= max(self.npeaks, 1), centre, 0.0)


REGISTRY = {
    "mask.auto3d": Auto3d,
    "mask.auto3d.thresh": Auto3dThreshold,
    "mask.addshells": AddShells,
    "mask.addshells.gauss": AddShellsGauss,
    "mask.dust3d": Dust,
    "mask.onlypeaks": OnlyPeaks,
}
