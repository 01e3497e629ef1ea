"""Normalisation of densities (EMAN2 ``normalize`` and ``normalize.*``).

*Sigma* is the sample standard deviation of the whole volume. A constant volume has no scale to
divide by and is returned as it is.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._errors import InputError
from .._types import Volume
from . import _grid
from ._base import Processor, key
from ._image import Image, check_same_shape, load
from ._radial import multiply_radial, radii

_DALTON_PER_CUBIC_ANGSTROM = 0.81


def _load_if_given(image: Image | None) -> Volume | None:
    return None if image is None else load(image)


class Normalize(Processor):
    """``(v - mean) / sigma`` (``normalize``)."""

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return _standardised(volume, _mean(volume))


class EdgeMean(Processor):
    """``(v - mean of the six faces) / sigma`` (``normalize.edgemean``)."""

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        i = jnp.arange(volume.shape[-1])
        end = (i == 0) | (i == volume.shape[-1] - 1)
        faces = end[:, None, None] | end[None, :, None] | end[None, None, :]
        return _standardised(volume, _mean_where(volume, faces))


class CircleMean(Processor):
    """``(v - mean of a shell) / sigma`` (``normalize.circlemean``).

    The shell is ``radius <= r < radius + width`` about the centre voxel.

    Attributes:
        radius: voxels; negative counts from ``n / 2`` inwards, and -2 is the default.
        width: voxels.
    """

    radius: float = key(default=-2.0)
    width: float = key(default=2.0)

    def __check_init__(self):
        if not self.width > 0:
            raise InputError(f"width must be positive, not {self.width:g}.")

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        box = volume.shape[-1]
        inner = self.radius if self.radius >= 0 else box // 2 + self.radius
        if not 0 <= inner < box / 2:
            raise InputError(f"the shell from {inner:g} voxels lies outside a box of {box}.")
        square = _grid.square_radius(volume.shape)
        shell = (square >= inner**2) & (square < (inner + self.width) ** 2)
        return _standardised(volume, _mean_where(volume, shell))


class LeftRightEdge(Processor):
    """``(v - mean of the first and last two planes in x) / sigma`` (``normalize.lredge``)."""

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return _standardised(volume, (_mean(volume[..., :2]) + _mean(volume[..., -2:])) / 2)


class MaskNormalize(Processor):
    """``(v - mean) / sd`` with the statistics of the voxels in a mask (``normalize.mask``).

    A voxel is in the mask where it is not 0, however soft; ``sd`` is the population's.

    Attributes:
        mask: volume of the same box, or its file; by default the mask given to the call, or
            the whole box.
        apply_mask: multiply by the mask first, and leave 0 outside.
        no_sigma: subtract the mean only.
    """

    mask: Volume | None = eqx.field(default=None, converter=_load_if_given)
    apply_mask: bool = key(default=False)
    no_sigma: bool = key(default=False)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        weight = self.mask if self.mask is not None else mask
        weight = jnp.ones_like(volume) if weight is None else weight
        check_same_shape("the mask", weight, volume)
        inside = weight != 0
        result = volume * weight if self.apply_mask else volume
        mean = _mean_where(result, inside)
        if self.no_sigma:
            result = result - mean
        else:
            variance = _mean_where((result - mean) ** 2, inside)
            result = _divided(result - mean, variance, result)
        return jnp.where(inside, result, 0.0) if self.apply_mask else result


class UnitLength(Processor):
    """``v / sqrt(sum v**2)`` (``normalize.unitlen``)."""

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return _divided(volume, (volume**2).sum(), volume)


class UnitSum(Processor):
    """``v / sum v`` (``normalize.unitsum``); a sum of 0 leaves the volume as it is."""

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        total = volume.sum()
        return jnp.where(total == 0, volume, volume / jnp.where(total == 0, 1.0, total))


class MaxMin(Processor):
    """Map the range of the values to -1 ... 1 (``normalize.maxmin``).

    Differs from EMAN2, which subtracts half the range and divides by the middle.
    """

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        low, high = volume.min(), volume.max()
        return _divided(volume - (low + high) / 2, ((high - low) / 2) ** 2, volume)


class Rows(Processor):
    """``(v - mean) / sigma`` of every section in z on its own (``normalize.rows``).

    Attributes:
        unitlen: divide by the length of the section instead, and subtract nothing.
    """

    unitlen: bool = key(default=False)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        if self.unitlen:
            return _divided(volume, (volume**2).sum((1, 2), keepdims=True), volume)
        centred = volume - jax.vmap(_mean)(volume)[:, None, None]
        square = (centred**2).sum((1, 2), keepdims=True) / (volume[0].size - 1)
        return _divided(centred, square, volume)


class ToImage(Processor):
    """The line ``c1 v + c0`` nearest to another volume in least squares (``normalize.toimage``).

    Attributes:
        to: volume of the same box, or its file.
        ignore_zero: leave voxels out that are exactly 0 in either volume.
        low_threshold: leave voxels out where ``to`` is below.
        high_threshold: leave voxels out where ``to`` is above.
    """

    to: Volume = eqx.field(converter=load)
    ignore_zero: bool = key(default=True)
    low_threshold: float | None = key(default=None)
    high_threshold: float | None = key(default=None)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        check_same_shape("the volume to fit", self.to, volume)
        used = jnp.ones(volume.shape, bool)
        if self.ignore_zero:
            used &= (volume != 0) & (self.to != 0)
        if self.low_threshold is not None:
            used &= self.to >= self.low_threshold
        if self.high_threshold is not None:
            used &= self.to <= self.high_threshold
        own, other = _mean_where(volume, used), _mean_where(self.to, used)
        variance = _mean_where((volume - own) ** 2, used)
        covariance = _mean_where((volume - own) * (self.to - other), used)
        return jnp.where(
            variance > 0,
            (volume - own) * (covariance / jnp.where(variance > 0, variance, 1.0)) + other,
            volume,
        )


class Local(Processor):
    """Divide by the local mean of the density above a threshold (``normalize.local``).

    ``v G(inside) / G(v inside)`` where ``inside = v >= threshold`` and ``G`` is
    ``filter.lowpass.gauss`` with ``cutoff_pixels = n apix / radius``; 0 where ``G(inside)`` is
    below 0.001.

    Attributes:
        threshold: in the units of the volume.
        radius: angstrom.
        apix: voxel size that replaces the volume's, angstrom.
    """

    threshold: float = key()
    radius: float = key()
    apix: float | None = key(default=None)

    def __check_init__(self):
        if not self.radius > 0:
            raise InputError(f"radius must be positive, not {self.radius:g} angstrom.")

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        box = volume.shape[-1]
        cutoff = (self.apix or apix) / self.radius
        table = np.exp(-((radii(box) / box / cutoff) ** 2))
        inside = (volume >= self.threshold).astype(volume.dtype)
        share = multiply_radial(inside, table)
        level = multiply_radial(volume * inside, table)
        used = (share >= 1e-3) & (level != 0)
        return jnp.where(used, volume * share / jnp.where(used, level, 1.0), 0.0)


class ByMass(Processor):
    """Scale the values so that ``v > thr`` encloses a mass (``normalize.bymass``).

    At 0.81 dalton per cubic angstrom. The volume is left as it is where no positive factor
    does it: the level that encloses the mass has the other sign than ``thr``.

    Attributes:
        mass: kilodalton.
        thr: by default mean + sigma of the volume.
        apix: voxel size that replaces the volume's, angstrom.
    """

    mass: float = key()
    thr: float | None = key(default=None)
    apix: float | None = key(default=None)

    def __check_init__(self):
        if not self.mass > 0:
            raise InputError(f"mass must be positive, not {self.mass:g} kDa.")

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        size = self.apix or apix
        count = round(1000 * self.mass / (_DALTON_PER_CUBIC_ANGSTROM * size**3))
        if not 0 < count < volume.size:
            raise InputError(
                f"{self.mass:g} kDa fill {count} voxels of {size:g} angstrom, but the box has"
                f" {volume.size}."
            )
        ordered = jnp.sort(volume.ravel())
        level = (ordered[-count - 1] + ordered[-count]) / 2  # exactly `count` values above it
        wanted = _mean(volume) + _grid.sigma(volume) if self.thr is None else self.thr
        possible = level * wanted > 0
        return jnp.where(possible, volume * (wanted / jnp.where(possible, level, 1.0)), volume)


def _mean(values: Array) -> Float[Array, ""]:
    """Mean; what is left of it is averaged again, since long sums round."""
    first = values.mean()
    return first + (values - first).mean()


def _mean_where(values: Volume, where: Bool[Array, "z y x"]) -> Float[Array, ""]:
    """As :func:`_mean` over the voxels chosen; 0 if there are none."""
    count = jnp.maximum(where.sum(), 1).astype(values.dtype)
    first = jnp.where(where, values, 0.0).sum() / count
    return first + jnp.where(where, values - first, 0.0).sum() / count


def _standardised(volume: Volume, level: Float[Array, ""]) -> Volume:
    """Level taken away, sample standard deviation 1."""
    square = ((volume - _mean(volume)) ** 2).sum() / (volume.size - 1)
    return _divided(volume - level, square, volume)


def _divided(values: Volume, square: Array, otherwise: Volume) -> Volume:
    """``values / sqrt(square)``, and ``otherwise`` where the root is at the level of rounding."""
    scaled = square > 1e-12 * (otherwise**2).max()
    root = jnp.sqrt(jnp.where(scaled, square, 1.0))
    return jnp.where(scaled, values / root, otherwise)


REGISTRY: dict[str, type[Processor]] = {
    "normalize": Normalize,
    "normalize.edgemean": EdgeMean,
    "normalize.circlemean": CircleMean,
    "normalize.lredge": LeftRightEdge,
    "normalize.mask": MaskNormalize,
    "normalize.unitlen": UnitLength,
    "normalize.unitsum": UnitSum,
    "normalize.maxmin": MaxMin,
    "normalize.rows": Rows,
    "normalize.toimage": ToImage,
    "normalize.local": Local,
    "normalize.bymass": ByMass,
}
