"""A single-axis tilt series: its angles, contrast transfer, and what it samples of Fourier space.

The tilt axis is y and the beam z (EMAN2's convention). The image at tilt ``a`` is the plane of
Fourier space through ``(cos a, 0, sin a)`` and y, so a series of -60 to 60 degrees samples
``|kz| <= |kx| tan 60``: the missing wedge lies around kz. Tables are made by NumPy, on the host.
"""

from dataclasses import dataclass

import numpy as np

from sptjax._errors import InputError
from sptjax.wedge import Wedge, region


@dataclass(frozen=True)
class TiltSeries:
    """Angles, optics and noise; ``defocus_um = 0`` means no CTF, ``snr = None`` no noise."""

    min_deg: float = -60.0
    max_deg: float = 60.0
    step_deg: float = 3.0
    defocus_um: float = 3.0  # underfocus is positive
    snr: float | None = None  # per projection, see simulate.py
    voltage_kv: float = 300.0
    cs_mm: float = 2.7
    amplitude_contrast: float = 0.07

    def __post_init__(self):
        if not -90 <= self.min_deg < self.max_deg <= 90:
            raise InputError(
                f"tilt range {self.min_deg:g} to {self.max_deg:g} degrees: the first must be below "
                "the second, both within -90 to 90"
            )
        if not 0 < self.step_deg <= self.max_deg - self.min_deg:
            raise InputError(f"tilt step {self.step_deg:g} degrees does not fit the tilt range")
        if self.snr is not None and not self.snr > 0:
            raise InputError(f"signal-to-noise ratio {self.snr:g} is not positive")
        if self.defocus_um < 0:
            raise InputError(f"defocus {self.defocus_um:g} um: underfocus is given as positive")

    @property
    def angles_deg(self) -> np.ndarray:
        """Tilt angles, float64; -90 and 90 degrees are one and the same image."""
        count = int(np.floor((self.max_deg - self.min_deg) / self.step_deg + 1e-6)) + 1
        angles = self.min_deg + self.step_deg * np.arange(count)
        return angles[angles - angles[0] < 180 - 1e-6]


def ctf_1d(freq: np.ndarray, geometry: TiltSeries) -> np.ndarray:
    r"""Contrast transfer function at spatial frequencies in 1/angstrom, float64.

    .. math:: CTF = -\sin(\chi + \arctan(w_2 / \sqrt{1 - w_2^2})), \quad
              \chi = \pi \lambda g^2 (\Delta f - \lambda^2 g^2 C_s / 2)

    with underfocus positive and ``w_2`` the amplitude contrast (Rohou & Grigorieff 2015,
    J. Struct. Biol. 192:216, without phase plate): density is dark at low frequency. Without
    defocus in the geometry the function is -1 everywhere, so that a phase flip restores the map.

    Args:
        freq: spatial frequencies ``[...]``, 1/angstrom.
        geometry: voltage, defocus, aberration, amplitude contrast.
    """
    freq = np.asarray(freq, np.float64)
    if geometry.defocus_um == 0:
        return -np.ones_like(freq)
    volt = geometry.voltage_kv * 1e3
    wavelength = 12.2642596 / np.sqrt(volt * (1 + 0.978475598e-6 * volt))  # angstrom
    defocus, cs = geometry.defocus_um * 1e4, geometry.cs_mm * 1e7
    square = freq * freq
    chi = np.pi * wavelength * square * (defocus - 0.5 * wavelength**2 * square * cs)
    w2 = geometry.amplitude_contrast
    return -np.sin(chi + np.arctan2(w2, np.sqrt(1 - w2 * w2)))


def ctf_2d(box: int, apix: float, geometry: TiltSeries) -> np.ndarray:
    """:func:`ctf_1d` on the centred Fourier grid of an image, ``[ky, kx]``, zero at ``n // 2``.

    Args:
        box: edge n, voxels.
        apix: angstrom per voxel.
        geometry: voltage, defocus, aberration, amplitude contrast.
    """
    k = (np.arange(box) - box // 2) / (box * apix)
    return ctf_1d(np.hypot(k[:, None], k[None, :]), geometry)


def sampled_region(box: int, geometry: TiltSeries) -> np.ndarray:
    """Frequencies between the first and the last tilt: 1, the missing wedge: 0.

    Args:
        box: edge n, voxels.
        geometry: its tilt range.

    Returns:
        float32 ``[n, n, n]``, centred (zero frequency at ``n // 2``), as
        :func:`sptjax.wedge.region`. For -60 to 60 degrees: ``|kz| <= |kx| tan 60``.
    """
    return region(box, Wedge(geometry.min_deg, geometry.max_deg))


def half_region(box: int, geometry: TiltSeries) -> np.ndarray:
    """:func:`sampled_region` in the layout of ``fourier.rfftn``, ``[n, n, n // 2 + 1]``.

    Args:
        box: edge n, voxels.
        geometry: its tilt range.
    """
    return np.fft.ifftshift(sampled_region(box, geometry))[..., : box // 2 + 1]


def sampling_weights(box: int, apix: float, geometry: TiltSeries) -> np.ndarray:
    """Sum of CTF squared over the tilts at every frequency of a premultiplied particle.

    A tilt image is a plane in Fourier space that the box blurs: its CTF squared is spread by
    ``sinc^2(kx) sinc^2(kz)``, the blur of its noise variance. So the noise power of a premultiplied
    particle is ``sigma^2 n^2`` times this grid (and more at zeros of the CTF, blurred along y too).

    Args:
        box: edge n, voxels.
        apix: angstrom per voxel.
        geometry: tilts and contrast transfer.

    Returns:
        float32 ``[n, n, n]``, centred (zero frequency at ``n // 2``), 0 in the missing wedge.
    """
    k = np.arange(box) - box // 2
    fine = 2  # samples per Fourier pixel along u
    u = np.arange(-fine * box // 2, fine * box // 2 + 1) / fine  # up to the images' Nyquist
    spread = np.zeros((box, box, len(u)), np.float32)
    for angle in np.radians(geometry.angles_deg):
        x, z = (np.sinc(k[:, None] - u * f(angle)) ** 2 for f in (np.cos, np.sin))
        spread += (z[:, None, :] * x[None, :, :]).astype(np.float32)
    square = ctf_1d(np.hypot(u[:, None], k[None, :]) / (box * apix), geometry) ** 2 / fine
    weights = np.einsum("zxu,uy->zyx", spread, square.astype(np.float32), optimize=True)
    return weights * sampled_region(box, geometry)
