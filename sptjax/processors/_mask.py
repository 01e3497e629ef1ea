"""Masks of a given shape (EMAN2 ``mask.*``); radii and widths in voxels.

Circular masks are centred on voxel ``n // 2 + (dx, dy, dz)``. A negative ``outer_radius`` counts
from the edge of the box: ``n // 2 + outer_radius + 1``. Without an outer radius there is no outer
limit, without a positive inner radius no inner one.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._errors import InputError
from .._types import Volume
from . import _grid, _image
from ._base import Processor, key


def _outer(radius: float, box: int) -> float:
    """Radius in voxels; a negative one counts from the edge."""
    return box // 2 + radius + 1 if radius < 0 else radius


def _check_radii(inner: float, outer: float | None) -> None:
    if outer is None and inner <= 0:
        raise InputError("give outer_radius or a positive inner_radius.")


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise InputError(f"{name} must be positive, not {value:g}.")


def _outside(
    shape: tuple[int, ...],
    inner: float,
    outer: float | None,
    offset: tuple[float, float, float],
) -> Bool[Array, "z y x"]:
    """Voxels with ``d < inner`` or ``d >= outer``."""
    square = _grid.square_radius(shape, offset)
    outside = square < max(inner, 0.0) ** 2
    if outer is not None:
        outside |= square >= _outer(outer, shape[-1]) ** 2
    return outside


class Sharp(Processor):
    """``value`` where ``d >= outer_radius`` or ``d < inner_radius`` (``mask.sharp``)."""

    outer_radius: float | None = key(default=None)
    inner_radius: float = key(default=0.0)
    value: float = key(default=0.0)
    dx: float = key(default=0.0)
    dy: float = key(default=0.0)
    dz: float = key(default=0.0)

    def __check_init__(self):
        _check_radii(self.inner_radius, self.outer_radius)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        offset = (self.dx, self.dy, self.dz)
        outside = _outside(volume.shape, self.inner_radius, self.outer_radius, offset)
        return jnp.where(outside, self.value, volume)


class Soft(Processor):
    """Gaussian transition to ``value`` beyond the radii (``mask.soft``).

    Unchanged for ``inner_radius <= d <= outer_radius``; at a distance ``e`` beyond, the
    difference from ``value`` is multiplied by ``exp(-(e / width)**2)``.
    """

    outer_radius: float | None = key(default=None)
    inner_radius: float = key(default=0.0)
    value: float = key(default=0.0)
    width: float = key(default=4.0)
    dx: float = key(default=0.0)
    dy: float = key(default=0.0)
    dz: float = key(default=0.0)

    def __check_init__(self):
        _check_radii(self.inner_radius, self.outer_radius)
        _check_positive(width=self.width)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        distance = jnp.sqrt(_grid.square_radius(volume.shape, (self.dx, self.dy, self.dz)))
        beyond = jnp.maximum(self.inner_radius - distance, 0.0)
        if self.outer_radius is not None:
            beyond = jnp.maximum(beyond, distance - _outer(self.outer_radius, volume.shape[-1]))
        return self.value + (volume - self.value) * jnp.exp(-((beyond / self.width) ** 2))


class Gaussian(Processor):
    """Times ``exp(-(d / outer_radius)**exponent)`` over the whole box (``mask.gaussian``).

    With a positive ``inner_radius`` the factor is 1 inside it, the fall-off starts there, and
    ``outer_radius`` is its width.
    """

    outer_radius: float = key()
    inner_radius: float = key(default=0.0)
    exponent: float = key(default=2.0)
    dx: float = key(default=0.0)
    dy: float = key(default=0.0)
    dz: float = key(default=0.0)

    def __check_init__(self):
        _check_positive(exponent=self.exponent)
        if self.outer_radius == 0:
            raise InputError("outer_radius must not be 0.")

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        distance = jnp.sqrt(_grid.square_radius(volume.shape, (self.dx, self.dy, self.dz)))
        beyond = jnp.maximum(distance - max(self.inner_radius, 0.0), 0.0)
        width = _outer(self.outer_radius, volume.shape[-1])
        return volume * jnp.exp(-((beyond / width) ** self.exponent))


class GaussianNonuniform(Processor):
    """Ellipsoid with a Gaussian edge (``mask.gaussian.nonuniform``).

    With ``rho = |(x / radius_x, y / radius_y, z / radius_z)|``, times
    ``exp(-((rho - 1) / gauss_width)**2)`` where ``rho > 1``; ``gauss_width`` is relative to the
    radii.
    """

    radius_x: float = key(default=5.0)
    radius_y: float = key(default=5.0)
    radius_z: float = key(default=5.0)
    gauss_width: float = key(default=0.05)
    dx: float = key(default=0.0)
    dy: float = key(default=0.0)
    dz: float = key(default=0.0)

    def __check_init__(self):
        _check_positive(
            radius_x=self.radius_x,
            radius_y=self.radius_y,
            radius_z=self.radius_z,
            gauss_width=self.gauss_width,
        )

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        x, y, z = _grid.axes(volume.shape, (self.dx, self.dy, self.dz))
        square = (x / self.radius_x) ** 2 + (y / self.radius_y) ** 2 + (z / self.radius_z) ** 2
        beyond = jnp.maximum(jnp.sqrt(square) - 1, 0.0)
        return volume * jnp.exp(-((beyond / self.gauss_width) ** 2))


class RingMean(Processor):
    """As ``mask.sharp``, filled with the mean over a ring (``mask.ringmean``).

    The ring holds the voxels with ``|d - outer_radius| <= ring_width``. A negative outer radius
    counts from the edge, which in EMAN2 gives NaN.
    """

    outer_radius: float = key()
    inner_radius: float = key(default=0.0)
    ring_width: float = key(default=1.0)
    dx: float = key(default=0.0)
    dy: float = key(default=0.0)
    dz: float = key(default=0.0)

    def __check_init__(self):
        _check_positive(ring_width=self.ring_width)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        offset = (self.dx, self.dy, self.dz)
        distance = jnp.sqrt(_grid.square_radius(volume.shape, offset))
        radius = _outer(self.outer_radius, volume.shape[-1])
        ring = jnp.abs(distance - radius) <= self.ring_width
        outside = _outside(volume.shape, self.inner_radius, self.outer_radius, offset)
        return jnp.where(outside, jnp.mean(volume, where=ring), volume)


class Noise(Processor):
    """As ``mask.sharp``, filled with normal noise of the volume's mean and sigma (``mask.noise``).

    The same ``seed`` gives the same noise.
    """

    outer_radius: float | None = key(default=None)
    inner_radius: float = key(default=0.0)
    dx: float = key(default=0.0)
    dy: float = key(default=0.0)
    dz: float = key(default=0.0)
    seed: int = key(default=0)

    def __check_init__(self):
        _check_radii(self.inner_radius, self.outer_radius)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        offset = (self.dx, self.dy, self.dz)
        outside = _outside(volume.shape, self.inner_radius, self.outer_radius, offset)
        normal = jax.random.normal(jax.random.key(self.seed), volume.shape, volume.dtype)
        return jnp.where(outside, volume.mean() + _grid.sigma(volume) * normal, volume)


class Cylinder(Processor):
    """Keep a cylinder along z, or a sector of it (``mask.cylinder``).

    Kept are ``inner_radius < rho <= outer_radius`` (and the axis, unless there is an inner
    radius), ``zmin <= z <= zmax`` and angles within ``phirange`` of ``phicen``. With
    ``ztriangle`` the ends fall off linearly, 1/2 at ``zmin`` and ``zmax`` and 0 so many voxels
    further out; with ``phitriangle`` the sides do, from ``phirange`` over ``phitrirange``.
    A negative outer radius counts from the edge (EMAN2 documents but does not do this).

    Attributes:
        phicen: middle of the sector, degrees from x towards y.
        phirange: half of its opening, degrees.
        phitrirange: width of the angular fall-off, degrees.
        phitriangle: whether there is one.
        cx: axis of the cylinder, voxels from the edge; the centre voxel by default.
        cy: the same along y.
        zmin: first section kept.
        zmax: last section kept; all by default.
        ztriangle: half-width of the fall-off along z, voxels.
        inner_radius: voxels.
        outer_radius: voxels; no limit by default.
    """

    phicen: float = key(default=0.0)
    phirange: float = key(default=180.0)
    phitrirange: float = key(default=0.0)
    phitriangle: bool = key(default=False)
    cx: float | None = key(default=None)
    cy: float | None = key(default=None)
    zmin: float = key(default=0.0)
    zmax: float | None = key(default=None)
    ztriangle: float = key(default=0.0)
    inner_radius: float = key(default=0.0)
    outer_radius: float | None = key(default=None)

    def __check_init__(self):
        if self.phitriangle:
            _check_positive(phitrirange=self.phitrirange)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        x, y, z = _grid.axes(volume.shape)
        box = volume.shape[-1]
        x = x if self.cx is None else x + (box // 2 - self.cx)
        y = y if self.cy is None else y + (box // 2 - self.cy)
        rho = jnp.sqrt(x * x + y * y)
        keep = (rho > self.inner_radius) | ((rho == 0) & (self.inner_radius <= 0))
        if self.outer_radius is not None:
            keep &= rho <= _outer(self.outer_radius, box)
        weight = jnp.where(keep, self._angular(x, y), 0.0)
        return volume * weight * self._axial(z + volume.shape[0] // 2, volume.shape[0])

    def _angular(self, x: Array, y: Array) -> Float[Array, "1 y x"]:
        phi = jnp.rad2deg(jnp.arctan2(y, x))
        distance = jnp.abs((phi - self.phicen + 180) % 360 - 180)
        if self.phitriangle:
            return jnp.clip(1 - (distance - self.phirange) / self.phitrirange, 0.0, 1.0)
        if self.phirange >= 180:
            return jnp.ones_like(distance)
        return (distance < self.phirange).astype(x.dtype)

    def _axial(self, z: Array, sections: int) -> Float[Array, "z 1 1"]:
        zmax = sections if self.zmax is None else self.zmax
        if self.ztriangle <= 0:
            return ((z >= self.zmin) & (z <= zmax)).astype(z.dtype)
        half = 0.5 / self.ztriangle
        rise = 0.5 + (z - self.zmin) * half
        fall = 0.5 + (zmax - z) * half
        return jnp.clip(jnp.minimum(rise, fall), 0.0, 1.0)


class ZeroEdge3d(Processor):
    """Zero so many layers at each face (``mask.zeroedge3d``).

    ``x0`` counts at the low end of x and ``x1`` (by default as many) at the high end.
    """

    x0: int = key(default=0)
    x1: int | None = key(default=None)
    y0: int = key(default=0)
    y1: int | None = key(default=None)
    z0: int = key(default=0)
    z1: int | None = key(default=None)

    def __check_init__(self):
        layers = (self.x0, self.x1, self.y0, self.y1, self.z0, self.z1)
        if any(n is not None and n < 0 for n in layers):
            raise InputError("the numbers of layers must not be negative.")

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        pairs = ((self.z0, self.z1), (self.y0, self.y1), (self.x0, self.x1))
        ends = [max(n - (a if b is None else b), 0) for n, (a, b) in zip(volume.shape, pairs)]
        keep = [slice(a, end) for (a, _), end in zip(pairs, ends)]
        return jnp.zeros_like(volume).at[tuple(keep)].set(volume[tuple(keep)])


class DecayEdge2d(Processor):
    """Linear ramp to 0 at the x and y edges of every section (``mask.decayedge2d``).

    The voxel in layer ``i`` from an edge (the outermost is 0) is multiplied by ``i / width``.
    """

    width: int = key(default=4)

    def __check_init__(self):
        _check_positive(width=self.width)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        x, y = (
            jnp.minimum(jnp.minimum(i, n - 1 - i) / self.width, 1.0)
            for n in volume.shape[:0:-1]
            for i in [jnp.arange(n, dtype=jnp.float32)]
        )
        return volume * x[None, None, :] * y[None, :, None]


class FromFile(Processor):
    """Times a mask read from a file (``mask.fromfile``).

    Attributes:
        filename: file of the mask (``file`` or ``file:n``).
        image: the same key's other name; also takes an array.
        maskset: if not negative, the mask is 1 where its value rounds to this number, else 0.
    """

    filename: _image.Image | None = eqx.field(default=None, converter=_image.load_optional)
    image: _image.Image | None = eqx.field(default=None, converter=_image.load_optional)
    maskset: int = key(default=-1)

    def __check_init__(self):
        if (self.filename is None) == (self.image is None):
            raise InputError("give the mask by either filename or image.")

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        values = jnp.asarray(self.filename if self.image is None else self.image)
        _image.check_same_shape("The mask", values, volume)
        if self.maskset >= 0:
            chosen = (values >= self.maskset - 0.5) & (values <= self.maskset + 0.5)
            values = chosen.astype(volume.dtype)
        return volume * values


REGISTRY = {
    "mask.sharp": Sharp,
    "mask.soft": Soft,
    "mask.gaussian": Gaussian,
    "mask.gaussian.nonuniform": GaussianNonuniform,
    "mask.ringmean": RingMean,
    "mask.noise": Noise,
    "mask.cylinder": Cylinder,
    "mask.zeroedge3d": ZeroEdge3d,
    "mask.decayedge2d": DecayEdge2d,
    "mask.fromfile": FromFile,
}
