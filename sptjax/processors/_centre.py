"""Processors that move their volume so that something lies at the centre voxel.

All return the shift that they apply, so that a caller can compose it into poses; zeros come in.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .. import fourier
from .._types import Pose, Volume
from . import _grid, _trilinear
from ._base import Centring, key


def _moved(volume: Volume, shift: Float[Array, "3"], whole: bool) -> Volume:
    if whole:
        return _trilinear.move_whole(volume, shift.astype(jnp.int32))
    return _trilinear.move(volume, Pose(jnp.eye(3, dtype=jnp.float32), shift))


class CentreOfMass(Centring):
    """Bring the centre of mass to the centre voxel (``xform.centerofmass``).

    Attributes:
        threshold: voxels ``>= threshold`` count; one above the maximum is replaced by the mean
            plus one sample sigma.
        int_shift_only: round to whole voxels (half upwards); otherwise interpolate trilinearly.
        powercenter: weight by the square of the density.
    """

    threshold: float = key(default=0.0)
    int_shift_only: bool = key(default=True)
    powercenter: bool = key(default=False)

    def shift(self, volume: Volume, apix: float) -> Float[Array, "3"]:
        """Translation (x, y, z) that it applies; 0 if the volume is constant or has no mass."""
        sigma = _grid.sigma(volume)
        level = jnp.asarray(self.threshold, volume.dtype)
        level = jnp.where(level > volume.max(), volume.mean() + sigma, level)
        density = volume * volume if self.powercenter else volume
        density = jnp.where(volume >= level, density, 0.0)
        mass = density.sum()
        moment = jnp.stack([(density * axis).sum() for axis in _grid.axes(volume.shape)])
        empty = (mass == 0) | (sigma == 0)
        centre = jnp.where(empty, 0.0, moment / jnp.where(empty, 1.0, mass))
        return -jnp.floor(centre + 0.5) if self.int_shift_only else -centre

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return _moved(volume, self.shift(volume, apix), self.int_shift_only)


class CentreByInversion(Centring):
    """Bring the centre of inversion to the centre voxel (``xform.centeracf``).

    That is half of the lag, at most a quarter of the box on each axis, at which the convolution
    of the volume with itself is largest; whole voxels.
    """

    def shift(self, volume: Volume, apix: float) -> Float[Array, "3"]:
        """Translation (x, y, z) that it applies, whole voxels."""
        box = volume.shape[-1]
        spectrum = fourier.rfftn(volume)
        # Voxel n // 2 of both factors is lag 2 (n // 2).
        convolution = fourier.irfftn(spectrum * spectrum, box)
        lags = box // 4
        start = 2 * (box // 2) - lags
        near = convolution
        for axis in range(3):
            near = jnp.roll(near, -start, axis)
            near = lax.slice_in_dim(near, 0, 2 * lags + 1, axis=axis)
        peak = jnp.stack(jnp.unravel_index(jnp.argmax(near), near.shape)[::-1]) - lags
        return jnp.floor(-peak.astype(jnp.float32) / 2 + 0.5)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return _moved(volume, self.shift(volume, apix), whole=True)


class PhaseCentreOfMass(Centring):
    """Bring the periodic centre of mass to the centre voxel (``xform.phasecenterofmass``).

    It is read from the phase of the first harmonic along each axis, hence independent of a
    constant background. Whole voxels are rounded (EMAN2 truncates towards zero).

    Attributes:
        int_shift_only: round to whole voxels; otherwise interpolate trilinearly.
    """

    int_shift_only: bool = key(default=True)

    def shift(self, volume: Volume, apix: float) -> Float[Array, "3"]:
        """Translation (x, y, z) that it applies, at most half the box."""
        shifts = []
        for axis in _grid.axes(volume.shape):
            box = axis.size
            angle = (2 * jnp.pi / box) * axis
            cosine, sine = (volume * jnp.cos(angle)).sum(), (volume * jnp.sin(angle)).sum()
            shifts.append(-box / (2 * jnp.pi) * jnp.arctan2(sine, cosine))
        shift = jnp.stack(shifts)
        return jnp.floor(shift + 0.5) if self.int_shift_only else shift

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return _moved(volume, self.shift(volume, apix), self.int_shift_only)


REGISTRY = {
    "xform.centerofmass": CentreOfMass,
    "xform.centeracf": CentreByInversion,
    "xform.phasecenterofmass": PhaseCentreOfMass,
}
