"""The missing wedge: its geometry, its grid, and its estimate from the particles themselves.

The beam is z and the tilt axis y (EMAN2's convention) or x. The image at tilt ``a`` is the plane
of Fourier space that holds the tilt axis and ``(cos a, 0, sin a)`` (axis y) or
``(0, cos a, sin a)`` (axis x), as in :mod:`sptjax.simulate`. A frequency is sampled where its
direction ``atan2(kz, kx)`` (or ``atan2(kz, ky)``), taken modulo 180 degrees because a frequency
and its Friedel mate are one measurement, lies between the first and the last tilt. For -60 to 60
degrees about y that is ``|kz| <= |kx| tan 60``.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import _wedge_fit, fourier
from ._errors import InputError

MIN_CONTRAST = 0.6  # one particle of noise, box 24, reaches 0.35; a wedge 0.9 and more
MIN_EXPLAINED = 0.7  # share of the variance; that noise reaches 0.2, a wedge 0.85
SMALLEST_BOX = 16


@dataclass(frozen=True)
class Wedge:
    """Sampled tilt range in degrees and the tilt axis, ``y`` or ``x``; the beam is z.

    Raises:
        InputError: a range outside -90 to 90 degrees or of no width, another axis.
    """

    min_deg: float
    max_deg: float
    axis: str = "y"

    def __post_init__(self):
        if not -90 <= self.min_deg < self.max_deg <= 90:
            raise InputError(
                f"tilt range {self.min_deg:g} to {self.max_deg:g} degrees: the first must be below "
                "the second, both within -90 to 90"
            )
        if self.axis not in ("x", "y"):
            raise InputError(f"tilt axis {self.axis!r} is neither x nor y (the beam is along z)")

    @property
    def sampled_fraction(self) -> float:
        """Share of Fourier space that is sampled."""
        return (self.max_deg - self.min_deg) / 180

    def describe(self) -> str:
        """One line for logs and reports."""
        return (
            f"tilts {self.min_deg:.4g} to {self.max_deg:.4g} degrees about {self.axis}, "
            f"{self.sampled_fraction:.0%} of Fourier space sampled"
        )


def parse(text: str) -> Wedge | None:
    """Wedge of an option value: ``none``, ``MIN,MAX`` or ``MIN,MAX,AXIS``, in degrees.

    Args:
        text: of the option.

    Raises:
        InputError: anything else.
    """
    if text.strip().lower() == "none":
        return None
    parts = [part.strip() for part in text.split(",")]
    try:
        low, high = (float(part) for part in parts[:2])
        axis = parts[2].lower() if len(parts) > 2 else "y"
        if len(parts) > 3:
            raise ValueError
    except ValueError:
        raise InputError(
            f"--wedge={text}: expected none, MIN,MAX or MIN,MAX,AXIS in degrees, such as -60,60"
        ) from None
    try:
        return Wedge(low, high, axis)
    except InputError as error:
        raise InputError(f"--wedge={text}: {error}") from None


def region(box: int, wedge: Wedge, soft_vox: float = 0.0) -> np.ndarray:
    """Sampled frequencies 1, the missing wedge 0.

    Friedel mates are equal throughout; a frequency of the Nyquist planes of an even box, which
    stands for two, is sampled if both are.

    Args:
        box: side of the particles, voxels.
        wedge: sampled range; its limits are included.
        soft_vox: width in Fourier voxels, outside the sampled range, of a raised-cosine fall from
            1 to 0; 0 is a sharp edge.

    Returns:
        float32 ``[n, n, n]``, centred (zero frequency at ``n // 2``).

    Raises:
        InputError: a negative width.
    """
    if soft_vox < 0:
        raise InputError(f"soft edge of the wedge: {soft_vox:g} voxels is negative")
    k = np.arange(box) - box // 2
    return along_axis(_sampled_plane(k[None, :], k[:, None], wedge, soft_vox), wedge.axis)


def along_axis(plane: np.ndarray, axis: str) -> np.ndarray:
    """Grid of Fourier space from its weights across the tilt axis.

    Args:
        plane: weights at (kz, kx or ky), ``[n, n]``, centred.
        axis: the tilt axis, ``y`` or ``x``, along which they are the same.

    Returns:
        float32 ``[n, n, n]``, centred; Friedel mates are equal, the smaller of two weights counts.
    """
    box = len(plane)
    plane = np.minimum(plane, _mates(plane)).astype(np.float32)
    return np.broadcast_to(np.expand_dims(plane, 1 if axis == "y" else 2), (box,) * 3).copy()


def _sampled_plane(across: np.ndarray, kz: np.ndarray, wedge: Wedge, soft_vox: float) -> np.ndarray:
    """Weight at frequencies (``kx`` or ``ky``, ``kz``)."""
    span = wedge.max_deg - wedge.min_deg
    # angles from the first tilt on, modulo 180; 1e-9 degrees against rounding
    past = (np.degrees(np.arctan2(kz, across)) - wedge.min_deg + 1e-9) % 180
    beyond = np.radians(np.maximum(np.minimum(past - span, 180 - past), 0))
    distance = np.hypot(across, kz) * np.sin(beyond)
    inside = (past <= span + 2e-9) | (distance == 0)
    if soft_vox == 0:
        return np.where(inside, 1.0, 0.0)
    fall = 0.5 + 0.5 * np.cos(np.pi * np.minimum(distance / soft_vox, 1))
    return np.where(inside, 1.0, fall)


def _mates(plane: np.ndarray) -> np.ndarray:
    """Values of a centred ``[n, n]`` grid at ``-k``."""
    flipped = plane[::-1, ::-1]
    return np.roll(flipped, 1, (0, 1)) if len(plane) % 2 == 0 else flipped


# ---------------------------------------------------------------- power of a stack


def accumulate_power(
    total: Float[Array, "z y h"] | None,
    volumes: Float[Array, "b z y x"] | np.ndarray,
    taper: bool = True,
) -> Float[Array, "z y h"]:
    """Add the power of a batch to a running sum, so that a long stack can stream.

    Args:
        total: what an earlier call returned, or None at the start.
        volumes: ``[b, n, n, n]``; one that holds NaN or infinity adds nothing.
        taper: multiply by a Hann window first. The sharp border of a box spreads strong low
            frequencies over the axes of Fourier space and fills the wedge of smooth particles.

    Returns:
        Sum of ``|F|^2`` on the half grid of :func:`sptjax.fourier.rfftn`, ``[n, n, n // 2 + 1]``.

    Raises:
        InputError: volumes not cubic, or of another box than the sum.
    """
    volumes = jnp.asarray(volumes, jnp.float32)
    box = volumes.shape[-1]
    if volumes.ndim != 4 or volumes.shape[1:] != (box,) * 3:
        raise InputError(f"volumes of shape {volumes.shape} are not a batch of cubes")
    shape = (box, box, box // 2 + 1)
    if total is None:
        total = jnp.zeros(shape, jnp.float32)
    if total.shape != shape:
        raise InputError(f"volumes of box {box} do not fit a power sum of shape {total.shape}")
    window = np.ones(box)
    if taper:
        window = 0.5 + 0.5 * np.cos(2 * np.pi * (np.arange(box) - box // 2) / box)
    cube = window[:, None, None] * window[None, :, None] * window[None, None, :]
    return _add_power(total, volumes, jnp.asarray(cube, jnp.float32))


@jax.jit
def _add_power(total: Array, volumes: Array, window: Array) -> Array:
    finite = jnp.isfinite(volumes).all(axis=(1, 2, 3), keepdims=True)
    clean = jnp.where(finite, volumes, jnp.zeros_like(volumes))
    spectrum = fourier.rfftn(clean * window[None])
    return total + (spectrum.real**2 + spectrum.imag**2).sum(0)


def to_centred(half: Float[Array, "z y h"] | np.ndarray, box: int) -> np.ndarray:
    """Power on the half grid, unfolded to the centred grid ``[n, n, n]`` (zero at ``n // 2``).

    Args:
        half: layout of :func:`sptjax.fourier.rfftn`.
        box: edge n, voxels.
    """
    half = np.asarray(half)
    mate = -np.arange(box) % box
    mirrored = half[mate][:, mate][..., (box - 1) // 2 : 0 : -1]
    return np.fft.fftshift(np.concatenate([half, mirrored], -1))


# ---------------------------------------------------------------- estimate


@dataclass(frozen=True, eq=False)
class Estimate:
    """Tilt range found in the power of a stack, with the profile that shows it."""

    wedge: Wedge | None  # None: no wedge was found
    contrast: float  # 1 - power in the wedge / power outside; near 0 without a wedge
    explained: float  # share of the variance of log power that two levels explain
    axis: str  # tilt axis of the profile
    angles_deg: np.ndarray  # [90], -89 ... 89
    power: np.ndarray  # [90], mean power at the angle, 1 on average over the sampled range


def estimate(mean_power: np.ndarray) -> Estimate:
    """Tilt range and axis from the mean power of a stack.

    A series of tilts in steps of ``s`` degrees fills the range up to ``s / 2`` past its last tilt,
    and that is what is found. Particles of several geometries give the range that most share.

    Args:
        mean_power: mean or sum of ``|F|^2`` over the stack, ``[n, n, n]``, centred (zero frequency
            at ``n // 2``): :func:`to_centred` of :func:`accumulate_power`.

    Raises:
        InputError: not a cube, a box below 16 voxels, or power that is zero or not finite.
    """
    grid = np.asarray(mean_power, np.float64)
    if grid.ndim != 3 or len(set(grid.shape)) != 1:
        raise InputError(f"a power spectrum of shape {grid.shape} is not a cube")
    if len(grid) < SMALLEST_BOX:
        raise InputError(
            f"boxes of {len(grid)} voxels are too small to find the wedge in: give --wedge=MIN,MAX"
        )
    if not np.isfinite(grid).all() or grid.min() < 0 or np.ptp(grid) == 0:
        raise InputError("the mean power of the particles is empty or not finite")
    views = {"y": grid, "x": grid.transpose(0, 2, 1)}
    points = {axis: _wedge_fit.normalised(view) for axis, view in views.items()}
    fits = {axis: _wedge_fit.fit_range(points[axis]) for axis in views}
    axis = min(views, key=lambda a: _wedge_fit.misfit(views[a], fits[a]))
    seen, fit = points[axis], fits[axis]
    inside = _wedge_fit.sampled(seen.radius, seen.angle, fit)
    angles = np.arange(-89.0, 90.0, 2.0)
    power = _wedge_fit.profile(seen, angles) * seen.mean(inside) / seen.mean(inside * seen.power)
    found = fit.contrast >= MIN_CONTRAST and fit.explained >= MIN_EXPLAINED
    wedge = Wedge(fit.low, fit.high, axis) if found else None
    return Estimate(wedge, fit.contrast, fit.explained, axis, angles, power)
