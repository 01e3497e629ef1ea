"""Fourier filters with a closed formula (EMAN2 ``filter.*`` of the sparx family).

``s`` is the spatial frequency in cycles per voxel: 0.5 at Nyquist, up to 0.87 in the corners.
The cut-off ``c`` is one of ``cutoff_abs`` (cycles per voxel), ``cutoff_freq`` (1/angstrom),
``cutoff_pixels`` (Fourier pixels, cycles per box) and ``sigma`` (cycles per voxel). As in EMAN2,
``lowpass.gauss`` and ``highpass.gauss`` divide all but ``sigma`` by ``sqrt(2)`` before they use it
as a standard deviation; no other filter does. Where EMAN2 returns an empty volume (no cut-off)
or silently takes one of several, an error is raised.
"""

import abc
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import fourier
from .._errors import InputError
from .._types import Volume
from ..resolution import phase_randomise
from ._base import Processor, key
from ._radial import multiply_radial, radii

_WORDS = (
    "sigma",
    "cutoff_abs",
    "cutoff_freq",
    "cutoff_pixels",
    "cutoff_resolv",
    "low_cutoff_frequency",
)
_TIE = 1e-6  # a frequency this near to a sharp cut-off, relatively, is at the cut-off


class Cutoff(Processor):
    """A radial filter with one cut-off.

    Attributes:
        cutoff_abs: cycles per voxel, 0.5 is Nyquist.
        cutoff_freq: 1/angstrom.
        cutoff_pixels: Fourier pixels.
        sigma: cycles per voxel; a standard deviation where the filter is Gaussian.
        apix: voxel size that replaces the volume's in ``cutoff_freq``, angstrom.
    """

    cutoff_abs: float | None = key(default=None)
    cutoff_freq: float | None = key(default=None)
    cutoff_pixels: float | None = key(default=None)
    sigma: float | None = key(default=None)
    apix: float | None = key(default=None)

    def __check_init__(self):
        _the_word(self)

    @abc.abstractmethod
    def _gain(self, s: np.ndarray, c: float) -> np.ndarray:
        """Factor at the frequencies ``s`` for the cut-off ``c``, both in cycles per voxel."""

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        box = volume.shape[-1]
        return multiply_radial(volume, self._gain(radii(box) / box, _cutoff(self, box, apix)))


class LowpassGauss(Cutoff):
    """``exp(-s**2 / c**2)`` (``filter.lowpass.gauss``); ``exp(-s**2 / (2 sigma**2))`` with sigma.

    Attributes:
        cutoff_resolv: 1/angstrom; the standard deviation is
            ``sqrt(-4 ln 0.36) cutoff_resolv apix / (pi sqrt(2))``.
    """

    cutoff_resolv: float | None = key(default=None)

    def _gain(self, s: np.ndarray, c: float) -> np.ndarray:
        return _gauss(s, c if self.sigma is not None else c / math.sqrt(2))


class HighpassGauss(Cutoff):
    """``1 - exp(-s**2 / c**2)`` (``filter.highpass.gauss``); sigma as in the low-pass."""

    def _gain(self, s: np.ndarray, c: float) -> np.ndarray:
        return 1 - _gauss(s, c if self.sigma is not None else c / math.sqrt(2))


class BandpassGauss(Cutoff):
    """``exp(-(s - center)**2 / (2 c**2))`` (``filter.bandpass.gauss``).

    Attributes:
        center: cycles per voxel.
    """

    center: float = key(default=0.0)

    def _gain(self, s: np.ndarray, c: float) -> np.ndarray:
        return _gauss(s - self.center, c)


class GaussInverse(Cutoff):
    """``exp(s**2 / (2 c**2))`` (``filter.gaussinverse``); an overflow is an error."""

    def _gain(self, s: np.ndarray, c: float) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.exp(s**2 / (2 * c**2))


class LowpassTophat(Cutoff):
    """1 for ``s <= c``, else 0 (``filter.lowpass.tophat``)."""

    def _gain(self, s: np.ndarray, c: float) -> np.ndarray:
        return _up_to(s, c)


class HighpassTophat(Cutoff):
    """0 for ``s <= c``, else 1 (``filter.highpass.tophat``)."""

    def _gain(self, s: np.ndarray, c: float) -> np.ndarray:
        return 1 - _up_to(s, c)


class LowpassTanh(Cutoff):
    """``(tanh b(s + c) - tanh b(s - c)) / 2`` (``filter.lowpass.tanh``).

    ``b = pi / (2 fall_off c)``.

    Attributes:
        fall_off: width of the edge relative to the cut-off.
    """

    fall_off: float = key(default=0.5)

    def __check_init__(self):
        _check_positive(self, "fall_off")

    def _gain(self, s: np.ndarray, c: float) -> np.ndarray:
        return _tanh(s, c, self.fall_off, c)


class HighpassTanh(Cutoff):
    """1 minus ``filter.lowpass.tanh`` (``filter.highpass.tanh``).

    Differs from EMAN2, which puts ``s**2`` in the place of ``s``.

    Attributes:
        fall_off: width of the edge relative to the cut-off.
    """

    fall_off: float = key(default=0.5)

    def __check_init__(self):
        _check_positive(self, "fall_off")

    def _gain(self, s: np.ndarray, c: float) -> np.ndarray:
        return 1 - _tanh(s, c, self.fall_off, c)


class LowpassButterworth(Cutoff):
    """``(1 + (s / w)**p)**(-1/2)`` (``filter.lowpass.butterworth``).

    About 0.75 at ``L`` and 0.09 at ``H``. With one of the cut-offs ``c`` instead of both
    frequencies, ``L = c`` and ``H = L + 0.15 log10(1 / L)``.

    Attributes:
        low_cutoff_frequency: ``L``, cycles per voxel.
        high_cutoff_frequency: ``H``, cycles per voxel.
    """

    low_cutoff_frequency: float | None = key(default=None)
    high_cutoff_frequency: float | None = key(default=None)

    def __check_init__(self):
        _check_pair(self.low_cutoff_frequency, self.high_cutoff_frequency)

    def _gain(self, s: np.ndarray, c: float) -> np.ndarray:
        return _butterworth(s, c, self.high_cutoff_frequency)


class HighpassButterworth(Cutoff):
    """1 minus ``filter.lowpass.butterworth`` (``filter.highpass.butterworth``), same keys."""

    low_cutoff_frequency: float | None = key(default=None)
    high_cutoff_frequency: float | None = key(default=None)

    def __check_init__(self):
        _check_pair(self.low_cutoff_frequency, self.high_cutoff_frequency)

    def _gain(self, s: np.ndarray, c: float) -> np.ndarray:
        return 1 - _butterworth(s, c, self.high_cutoff_frequency)


class HomomorphicGauss(Cutoff):
    """``1 - (1 - v) exp(-s**2 / (2 c**2))`` (``filter.homomorphic.gauss``).

    Attributes:
        value_at_zero_frequency: ``v``.
    """

    value_at_zero_frequency: float = key(default=0.0)

    def _gain(self, s: np.ndarray, c: float) -> np.ndarray:
        return 1 - (1 - self.value_at_zero_frequency) * _gauss(s, c)


class HomomorphicTanh(Cutoff):
    """``1 - (1 - v) lowpass.tanh`` (``filter.homomorphic.tanh``).

    Attributes:
        fall_off: width of the edge relative to the cut-off.
        value_at_zero_frequency: ``v``.
    """

    fall_off: float = key(default=0.5)
    value_at_zero_frequency: float = key(default=0.0)

    def __check_init__(self):
        _check_positive(self, "fall_off")

    def _gain(self, s: np.ndarray, c: float) -> np.ndarray:
        return 1 - (1 - self.value_at_zero_frequency) * _tanh(s, c, self.fall_off, c)


class HomomorphicButterworth(Cutoff):
    """``1 - (1 - v) lowpass.butterworth`` (``filter.homomorphic.butterworth``).

    Attributes:
        low_cutoff_frequency: as in the low-pass.
        high_cutoff_frequency: as in the low-pass.
        value_at_zero_frequency: ``v``.
    """

    low_cutoff_frequency: float | None = key(default=None)
    high_cutoff_frequency: float | None = key(default=None)
    value_at_zero_frequency: float = key(default=0.0)

    def __check_init__(self):
        _check_pair(self.low_cutoff_frequency, self.high_cutoff_frequency)

    def _gain(self, s: np.ndarray, c: float) -> np.ndarray:
        low = _butterworth(s, c, self.high_cutoff_frequency)
        return 1 - (1 - self.value_at_zero_frequency) * low


class BandpassTophat(Processor):
    """1 for ``L <= s < H``, else 0 (``filter.bandpass.tophat``).

    Attributes:
        low_cutoff_frequency: ``L``, cycles per voxel.
        high_cutoff_frequency: ``H``, cycles per voxel.
    """

    low_cutoff_frequency: float = key()
    high_cutoff_frequency: float = key()

    def __check_init__(self):
        _check_pair(self.low_cutoff_frequency, self.high_cutoff_frequency)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        s = radii(volume.shape[-1]) / volume.shape[-1]
        below, beyond = (
            s < c * (1 - _TIE) for c in (self.low_cutoff_frequency, self.high_cutoff_frequency)
        )
        return multiply_radial(volume, (beyond & ~below).astype(np.float64))


class BandpassTanh(Processor):
    """Difference of two tanh low-passes at ``H`` and ``L`` (``filter.bandpass.tanh``).

    The steepness is ``b = pi / (2 a (H - L))`` with the fall-off ``a`` of each edge.

    Attributes:
        low_cutoff_frequency: ``L``, cycles per voxel.
        high_cutoff_frequency: ``H``, cycles per voxel.
        Low_fall_off: width of the edge at ``L`` relative to ``H - L`` (capital L, as in EMAN2).
        high_fall_off: width of the edge at ``H`` relative to ``H - L``.
    """

    low_cutoff_frequency: float = key()
    high_cutoff_frequency: float = key()
    Low_fall_off: float = key()
    high_fall_off: float = key()

    def __check_init__(self):
        _check_positive(self, "Low_fall_off")
        _check_positive(self, "high_fall_off")
        _check_pair(self.low_cutoff_frequency, self.high_cutoff_frequency)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        s = radii(volume.shape[-1]) / volume.shape[-1]
        low, high = self.low_cutoff_frequency, self.high_cutoff_frequency
        inner = _tanh(s, low, self.Low_fall_off, high - low)
        return multiply_radial(volume, _tanh(s, high, self.high_fall_off, high - low) - inner)


class HomomorphicTophat(Processor):
    """``v`` for ``s < L``, 1 up to ``H``, 0 beyond (``filter.homomorphic.tophat``).

    Attributes:
        low_cutoff_frequency: ``L``, cycles per voxel.
        high_cutoff_frequency: ``H``, cycles per voxel.
        value_at_zero_frequency: ``v``.
    """

    low_cutoff_frequency: float = key()
    high_cutoff_frequency: float = key()
    value_at_zero_frequency: float = key(default=0.0)

    def __check_init__(self):
        _check_pair(self.low_cutoff_frequency, self.high_cutoff_frequency)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        s = radii(volume.shape[-1]) / volume.shape[-1]
        inner = s < self.low_cutoff_frequency * (1 - _TIE)
        gain = np.where(inner, self.value_at_zero_frequency, 1.0)
        return multiply_radial(volume, gain * _up_to(s, self.high_cutoff_frequency))


class LowpassGaussZ(Processor):
    """``exp(-k**2 / (2 w**2))`` along z (``filter.lowpass.gaussz``).

    The width is ``w = c n / 2`` Fourier pixels: the cut-off is a fraction of ``n / 2`` here, half
    the width of other filters. A negative one makes the high-pass ``1 - exp(...)``.

    Attributes:
        cutoff_abs: cycles per voxel.
        cutoff_freq: 1/angstrom.
        cutoff_pixels: Fourier pixels.
        xynoz: ``k`` is the radius in the xy plane and not ``kz``.
        apix: voxel size that replaces the volume's in ``cutoff_freq``, angstrom.
    """

    cutoff_abs: float | None = key(default=None)
    cutoff_freq: float | None = key(default=None)
    cutoff_pixels: float | None = key(default=None)
    xynoz: bool = key(default=False)
    apix: float | None = key(default=None)

    def __check_init__(self):
        _the_word(self, signed=True)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        box = volume.shape[-1]
        width = _cutoff(self, box, apix) * box / 2
        axis = np.minimum(np.arange(box), box - np.arange(box))
        if self.xynoz:
            k = np.hypot(axis[None, :, None], axis[None, None, : box // 2 + 1])
        else:
            k = axis[:, None, None]
        low = _gauss(k, abs(width))
        spectrum = fourier.rfftn(volume)
        gain = jnp.asarray(low if width > 0 else 1 - low, spectrum.dtype)
        return fourier.irfftn(spectrum * gain, box)


class RandomPhase(Processor):
    """Random phases for ``s >= c``, amplitudes kept (``filter.lowpass.randomphase``).

    No low-pass. Differs from EMAN2: the phases have Hermitian symmetry, and follow from the
    seed (every volume gets the same ones).

    Attributes:
        cutoff_abs: cycles per voxel.
        cutoff_freq: 1/angstrom.
        cutoff_pixels: Fourier pixels.
        apix: voxel size that replaces the volume's in ``cutoff_freq``, angstrom.
        seed: of the random phases.
    """

    cutoff_abs: float | None = key(default=None)
    cutoff_freq: float | None = key(default=None)
    cutoff_pixels: float | None = key(default=None)
    apix: float | None = key(default=None)
    seed: int = key(default=0)

    def __check_init__(self):
        _the_word(self)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        box = volume.shape[-1]
        start = _cutoff(self, box, apix) * box
        return phase_randomise(jax.random.key(self.seed), volume, start)


class Shift(Processor):
    """Move the density periodically, by any fraction of a voxel (``filter.shift``).

    Attributes:
        x_shift: voxels towards larger x.
        y_shift: voxels towards larger y.
        z_shift: voxels towards larger z.
    """

    x_shift: float = key(default=0.0)
    y_shift: float = key(default=0.0)
    z_shift: float = key(default=0.0)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        box = volume.shape[-1]
        x, y, z = (_shift_phase(box, t) for t in (self.x_shift, self.y_shift, self.z_shift))
        half = x[: box // 2 + 1]
        phase = z[:, None, None] * y[None, :, None] * half[None, None, :]
        return fourier.irfftn(fourier.rfftn(volume) * phase, box)


def _the_word(step: Processor, signed: bool = False) -> str:
    """The one cut-off that was given.

    Raises:
        InputError: none or several, or one that is not a positive number.
    """
    known = [word for word in _WORDS if hasattr(step, word)]
    given = [word for word in known if getattr(step, word) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise InputError(f"give exactly one cut-off of {', '.join(known)}; found {found}.")
    value = getattr(step, given[0])
    if not math.isfinite(value) or (value <= 0 and not (signed and value < 0)):
        raise InputError(f"{given[0]} must be positive, not {value:g}.")
    return given[0]


def _cutoff(step: Processor, box: int, apix: float) -> float:
    """The cut-off in cycles per voxel."""
    word = _the_word(step, signed=True)
    value = getattr(step, word)
    size = getattr(step, "apix", None) or apix
    match word:
        case "cutoff_freq":
            return value * size
        case "cutoff_pixels":
            return value / box
        case "cutoff_resolv":
            return value * size * math.sqrt(-4 * math.log(0.36)) / math.pi
        case _:
            return value


def _check_positive(step: Processor, name: str) -> None:
    if not getattr(step, name) > 0:
        raise InputError(f"{name} must be positive, not {getattr(step, name):g}.")


def _check_pair(low: float | None, high: float | None) -> None:
    """Raise InputError unless ``0 < low < high``, or both are missing."""
    if low is None and high is None:
        return
    if low is None or high is None or not 0 < low < high:
        raise InputError(
            "low_cutoff_frequency and high_cutoff_frequency go together, the first above 0 and"
            f" below the second, not {low} and {high}."
        )


def _gauss(s: np.ndarray, deviation: float) -> np.ndarray:
    return np.exp(-(s**2) / (2 * deviation**2))


def _up_to(s: np.ndarray, c: float) -> np.ndarray:
    return (s <= c * (1 + _TIE)).astype(np.float64)


def _tanh(s: np.ndarray, c: float, fall_off: float, width: float) -> np.ndarray:
    b = math.pi / (2 * fall_off * width)
    return (np.tanh(b * (s + c)) - np.tanh(b * (s - c))) / 2


def _butterworth(s: np.ndarray, low: float, high: float | None) -> np.ndarray:
    high = low + 0.15 * math.log10(1 / low) if high is None else high
    power = 2 * math.log10(0.882 / math.sqrt(10.624**2 - 1)) / math.log10(low / high)
    return (1 + (s / (low / 0.882 ** (2 / power))) ** power) ** -0.5


def _shift_phase(box: int, shift: float) -> jax.Array:
    """Phases of one axis; the Nyquist frequency, its own partner, keeps the real part."""
    k = np.fft.fftfreq(box, 1 / box)
    angle = -2 * np.pi * k * shift / box
    imaginary = np.where(2 * np.abs(k) == box, 0.0, np.sin(angle))
    return lax.complex(jnp.asarray(np.cos(angle), jnp.float32), jnp.asarray(imaginary, jnp.float32))


REGISTRY: dict[str, type[Processor]] = {
    "filter.lowpass.gauss": LowpassGauss,
    "filter.highpass.gauss": HighpassGauss,
    "filter.bandpass.gauss": BandpassGauss,
    "filter.gaussinverse": GaussInverse,
    "filter.lowpass.tophat": LowpassTophat,
    "filter.highpass.tophat": HighpassTophat,
    "filter.bandpass.tophat": BandpassTophat,
    "filter.lowpass.tanh": LowpassTanh,
    "filter.highpass.tanh": HighpassTanh,
    "filter.bandpass.tanh": BandpassTanh,
    "filter.lowpass.butterworth": LowpassButterworth,
    "filter.highpass.butterworth": HighpassButterworth,
    "filter.homomorphic.gauss": HomomorphicGauss,
    "filter.homomorphic.tanh": HomomorphicTanh,
    "filter.homomorphic.butterworth": HomomorphicButterworth,
    "filter.homomorphic.tophat": HomomorphicTophat,
    "filter.lowpass.gaussz": LowpassGaussZ,
    "filter.lowpass.randomphase": RandomPhase,
    "filter.shift": Shift,
}
