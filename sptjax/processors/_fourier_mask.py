"""Masks in Fourier space: wedges, a cone, weak coefficients (EMAN2 ``mask.fft.*`` and others).

The beam is along z. ``axis`` names the tilt axis: ``x`` is that of EMAN2's ``mask.fft.wedge``,
``y`` that of its sub-tomogram programs. Frequencies are in Fourier pixels.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float

from .. import fourier
from .._errors import InputError
from .._types import Volume
from . import _image
from ._base import Processor, key


def _keep(volume: Volume, kept: Bool[np.ndarray | Array, "z y h"]) -> Volume:
    """The volume without the coefficients that are not kept."""
    return fourier.irfftn(jnp.where(kept, fourier.rfftn(volume), 0), volume.shape[-1])


def _frequencies(box: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """kx, ky, kz and the radius on the half grid."""
    grid = fourier.half_grid(box).astype(np.float32)
    return grid[..., 0], grid[..., 1], grid[..., 2], np.linalg.norm(grid, axis=-1)


def _check_axis(axis: str) -> None:
    if axis not in ("x", "y"):
        raise InputError(f"axis must be x or y, the tilt axis, not {axis!r}.")


class FourierWedge(Processor):
    """Zero a wedge about the z axis (``mask.fft.wedge``).

    Zeroed is ``anglemin <= angle <= anglemax`` at ``|k| >= rmin``, the angle of the direction
    from z towards y (or towards x if the tilt axis is y), degrees. The default is the missing
    wedge of a +-60 degree series. A direction and its opposite have the same angle, so limits
    that are not symmetric are followed (EMAN2 mirrors them between the two halves).
    """

    anglemin: float = key(default=-30.0)
    anglemax: float = key(default=30.0)
    rmin: float = key(default=1.0)
    axis: str = key(default="x")

    def __check_init__(self):
        _check_axis(self.axis)
        if not -90 <= self.anglemin < self.anglemax <= 90:
            raise InputError(
                "-90 <= anglemin < anglemax <= 90 is needed, not "
                f"{self.anglemin:g} and {self.anglemax:g}."
            )

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        box = volume.shape[-1]
        kx, ky, kz, radius = _frequencies(box)
        across = ky if self.axis == "x" else kx
        angle = np.degrees(np.arctan2(np.where(kz < 0, -across, across), np.abs(kz)))
        wedge = (angle >= self.anglemin) & (angle <= self.anglemax)
        nyquist = np.maximum(np.abs(kz), np.abs(across)) == box / 2  # of either sign
        wedge |= nyquist & (-angle >= self.anglemin) & (-angle <= self.anglemax)
        return _keep(volume, ~(wedge & (radius >= self.rmin)))


class FourierCone(Processor):
    """Zero the cone about the z axis (``mask.fft.cone``).

    Zeroed is what lies within ``angle`` degrees of the axis at ``|k| >= rmin``.
    """

    angle: float = key(default=15.0)
    rmin: float = key(default=1.0)

    def __check_init__(self):
        if not 0 < self.angle <= 90:
            raise InputError(f"angle must lie in (0, 90] degrees, not {self.angle:g}.")

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        kx, ky, kz, radius = _frequencies(volume.shape[-1])
        angle = np.degrees(np.arctan2(np.hypot(kx, ky), np.abs(kz)))
        return _keep(volume, ~((angle <= self.angle) & (radius >= self.rmin)))


class BinaryFourier(Processor):
    """Zero the coefficients with ``|F| < value`` (``threshold.binary.fourier``).

    ``F`` is the unscaled transform, the sum over the voxels.
    """

    value: float = key()

    def __check_init__(self):
        if self.value < 0:
            raise InputError(f"value must not be negative, not {self.value:g}.")

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        spectrum = fourier.rfftn(volume)
        kept = jnp.where(jnp.abs(spectrum) < self.value, 0, spectrum)
        return fourier.irfftn(kept, volume.shape[-1])


class WedgeFill(Processor):
    """Replace unmeasured coefficients by those of another volume (``mask.wedgefill``).

    Replaced are, at ``|k| >= 3``, those with ``|F|**2 <= thresh_sigma * s**2`` (``s`` the
    standard deviation of ``|F|`` in the shell), those of ``|k| >= n / 2``, and those whose
    direction is ``maxtilt`` degrees or more from the plane ``kz = 0``, seen along the tilt axis.

    Attributes:
        fillsource: file, or an array, that fills; zeros by default (EMAN2 crashes).
        thresh_sigma: 0 or less replaces only exact zeros.
        maxtilt: degrees; 90 leaves only the plane of beam and tilt axis to this rule.
        axis: tilt axis, x or y.
    """

    fillsource: _image.Image | None = eqx.field(default=None, converter=_image.load_optional)
    thresh_sigma: float = key(default=0.5)
    maxtilt: float = key(default=90.0)
    axis: str = key(default="y")

    def __check_init__(self):
        _check_axis(self.axis)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        spectrum = fourier.rfftn(volume)
        kx, ky, kz, radius = _frequencies(volume.shape[-1])
        across = kx if self.axis == "y" else ky
        angle = np.degrees(np.arctan2(np.abs(kz), np.abs(across)))
        missing = (radius >= volume.shape[-1] / 2) | (angle >= self.maxtilt)
        weak = jnp.abs(spectrum) ** 2 <= self.thresh_sigma * _shell_variance(spectrum)
        replace = (weak | missing) & (radius >= 3)
        filling = jnp.zeros_like(spectrum)
        if self.fillsource is not None:
            source = jnp.asarray(self.fillsource)
            _image.check_same_shape("The fillsource", source, volume)
            filling = fourier.rfftn(source)
        return fourier.irfftn(jnp.where(replace, filling, spectrum), volume.shape[-1])


def _shell_variance(spectrum: Complex[Array, "z y h"]) -> Float[Array, "z y h"]:
    """Variance of the amplitude in the shell ``floor |k|`` of each coefficient, both halves."""
    kx, _, _, radius = _frequencies(spectrum.shape[0])
    shell = np.floor(radius + 1e-6).astype(np.int32)
    both = np.where((kx == 0) | (kx == spectrum.shape[0] / 2), 1, 2).astype(np.float32)
    count = jnp.asarray(np.bincount(shell.ravel(), both.ravel()), jnp.float32)

    def mean(values: Float[Array, "z y h"]) -> Float[Array, "z y h"]:
        return (jnp.zeros_like(count).at[shell].add(values * both) / count)[shell]

    amplitude = jnp.abs(spectrum)
    return mean((amplitude - mean(amplitude)) ** 2)


REGISTRY = {
    "mask.fft.wedge": FourierWedge,
    "mask.fft.cone": FourierCone,
    "mask.wedgefill": WedgeFill,
    "threshold.binary.fourier": BinaryFourier,
}
