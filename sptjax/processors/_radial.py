"""Gains that depend on ``|k|`` only, and the filters whose gain follows from a power spectrum.

On a cubic grid ``|k|**2`` is a whole number, so a radial gain is a short table over the squares
``0 ... 3 (n // 2)**2``: exact at every voxel and cheap to build. Radial power is kept the same
way; *shells* are ``round(|k|)`` up to the corner of the box. EMAN2's radial tables divide kx by
``n + 2`` in place of ``n`` and split voxels between shells; neither is done here.
"""

import functools
import pathlib

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from .. import fourier
from .._errors import InputError
from .._types import Volume
from ._base import Processor, key
from ._image import check_same_shape, load

Table = Float[Array, " q"]  # one value a squared radius
Shells = Float[Array, " s"]
CurveLike = str | pathlib.Path | np.ndarray | Float[Array, "m 2"]

_FLOOR = 1e-12  # power below this share of the mean is single-precision rounding
_ROUNDS = 4  # corrections of an interpolated gain; they leave about 1 %


def radii(box: int) -> np.ndarray:
    """``|k|`` in Fourier pixels at the squares 0, 1, ... ``3 (n // 2)**2``."""
    return np.sqrt(np.arange(3 * (box // 2) ** 2 + 1))


def multiply_radial(volume: Volume, table: Table | np.ndarray) -> Volume:
    """Multiply the Fourier transform by a gain given at :func:`radii`.

    Raises:
        InputError: a gain computed on the host does not fit single precision.
    """
    box = volume.shape[-1]
    if isinstance(table, np.ndarray) and not np.abs(table).max() < np.finfo(np.float32).max:
        raise InputError("the gain overflows inside the box: choose a wider cut-off.")
    spectrum = fourier.rfftn(volume)
    gain = jnp.asarray(table, jnp.float32)[_squares(box)]
    return fourier.irfftn(spectrum * gain.astype(spectrum.dtype), box)


def radial_power(volume: Volume) -> Shells:
    """Mean ``|F|**2`` of the shells ``round(|k|) = 0 ... round(sqrt(3) n / 2)``.

    ``F`` is the unnormalised transform. Friedel partners count. Unlike
    :func:`sptjax.fourier.shell_mean` the shells go on into the corners.

    Args:
        volume: ``[n, n, n]``.
    """
    box = volume.shape[-1]
    return _shell_sums(_power(volume), box) / jnp.asarray(_counts(box)[1])


def match_to(
    volume: Volume, target_power: Shells, *, keephires: bool = False, interpolate: bool = True
) -> Volume:
    """Give a volume another radial power spectrum, phases untouched.

    Shells in which the volume has no power stay empty. With ``interpolate=False`` the gain is
    constant within a shell and the match exact. Otherwise it is interpolated geometrically
    between shells, and corrected until the powers agree to about 1 %.

    Args:
        volume: ``[z, y, x]``.
        target_power: :func:`radial_power` of a volume with the same box.
        keephires: no gain is below 1 % of the mean gain.
        interpolate: smooth the steps between shells.

    Raises:
        InputError: the target belongs to another box.
    """
    box = volume.shape[-1]
    power = _power(volume)
    counts = jnp.asarray(_counts(box)[1])
    own = _shell_sums(power, box) / counts
    if target_power.shape != own.shape:
        raise InputError(
            f"the target spectrum has {target_power.shape[0]} shells, but a box of {box} voxels"
            f" {own.shape[0]}."
        )
    gain = _root(target_power, own, own)
    if interpolate:

        def corrected(_: int, gain: Shells) -> Shells:
            reached = _shell_sums(power * _between_shells(gain, box) ** 2, box) / counts
            return gain * _root(target_power, reached, own)

        gain = lax.fori_loop(0, _ROUNDS, corrected, gain)
    if keephires:
        gain = jnp.maximum(gain, 0.01 * gain.mean())
    return multiply_radial(
        volume, _between_shells(gain, box) if interpolate else gain[_shell_of_square(box)]
    )


class MatchTo(Processor):
    """Give the volume the radial power spectrum of another (``filter.matchto``).

    Attributes:
        to: volume with the same box, or the file that holds it; its voxel size is ignored.
        keephires: no gain is below 1 % of the mean gain.
        interpolate: 0 keeps the gain constant in each shell.

    Differs from EMAN2: the powers of the result agree with the target (there, steep targets
    end up to twice too strong), and there is no ``bydot``, which visits one plane only.
    """

    to: Volume = eqx.field(converter=load)
    keephires: bool = key(default=False)
    interpolate: bool = key(default=True)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        check_same_shape("the volume to match", self.to, volume)
        return match_to(
            volume,
            radial_power(self.to),
            keephires=self.keephires,
            interpolate=self.interpolate,
        )


def read_curve(curve: CurveLike) -> Float[Array, "m 2"]:
    """A two-column table, read from a text file if it is a name.

    Raises:
        InputError: no such file, or not two or more rows of two numbers with the first rising.
    """
    if isinstance(curve, str | pathlib.Path):
        try:
            values = np.loadtxt(curve, ndmin=2, usecols=(0, 1))
        except (OSError, ValueError) as error:
            raise InputError(f"{curve} is not a text file of two columns: {error}.") from error
        curve = _checked(values, str(curve))
    elif isinstance(curve, np.ndarray):
        curve = _checked(curve, "the curve")
    return jnp.asarray(curve, jnp.float32)


def _read_if_given(curve: CurveLike | None) -> Float[Array, "m 2"] | None:
    return None if curve is None else read_curve(curve)


class SetStrucFac(Processor):
    """Give the volume a known radial structure factor (``filter.setstrucfac``).

    The mean power of the shell ``i`` becomes ``n**3 scale S(i / (n apix))``. The mean density is
    kept; beyond the end of the curve the last gain holds.

    Attributes:
        filename: text file of two columns, ``s`` (1/angstrom) and ``S``.
        strucfac: the same as an array ``[m, 2]``.
        scale: factor on ``S``.
        apix: voxel size that replaces the volume's, angstrom.
    """

    filename: Float[Array, "m 2"] | None = eqx.field(default=None, converter=_read_if_given)
    strucfac: Float[Array, "m 2"] | None = eqx.field(default=None, converter=_read_if_given)
    scale: float = key(default=1.0)
    apix: float | None = key(default=None)

    def __check_init__(self):
        if (self.filename is None) == (self.strucfac is None):
            raise InputError("give the structure factor once, as filename or as strucfac.")
        if not self.scale > 0:
            raise InputError(f"scale must be positive, not {self.scale:g}.")

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        curve = self.strucfac if self.filename is None else self.filename
        assert curve is not None
        box = volume.shape[-1]
        own = radial_power(volume)
        s = jnp.arange(own.shape[0], dtype=jnp.float32) / (box * (self.apix or apix))
        wanted = box**3 * self.scale * jnp.interp(s, curve[:, 0], curve[:, 1])
        ratio = _root(wanted, own, own) ** 2
        covered = s <= curve[-1, 0]
        ratio = jnp.where(covered, ratio, ratio[covered.sum() - 1]).at[0].set(1.0)
        return match_to(volume, ratio * own)


class LowpassAutoB(Processor):
    """Flatten the fall-off of the spectrum, then apply a B-factor (``filter.lowpass.autob``).

    A straight line through ln(radial power) against ``s**2`` between 1/15 and ``noisecutoff``
    has the slope ``a``; the gain is ``exp(-(bfactor + 2 a) s**2 / 4)`` up to ``noisecutoff`` and
    ``exp(-bfactor s**2 / 4)`` beyond.

    Attributes:
        bfactor: square angstrom.
        noisecutoff: 1/angstrom.
    """

    bfactor: float = key(default=0.0)
    noisecutoff: float = key(default=1 / 6)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        box = volume.shape[-1]
        s = np.arange(box // 2 + 1) / (box * apix)
        used = (s >= 1 / 15) & (s <= self.noisecutoff)
        if used.sum() < 3:
            raise InputError(
                f"the B-factor is fitted from 15 to {1 / self.noisecutoff:.3g} angstrom, where a"
                f" box of {box} voxels of {apix:g} angstrom has {used.sum()} shells, not 3."
            )
        x = s[used] ** 2
        weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
        power = radial_power(volume)[: box // 2 + 1][used]
        # the slope does not depend on the scale of the powers: divide before the logarithm
        slope = (jnp.log(power / power[0]) * jnp.asarray(weights, jnp.float32)).sum()
        square = jnp.asarray((radii(box) / (box * apix)) ** 2, jnp.float32)
        inside = square <= self.noisecutoff**2
        b = self.bfactor + jnp.where(inside, 2 * slope, 0.0)
        return multiply_radial(volume, jnp.exp(-b * square / 4))


class WienerByFsc(Processor):
    """Wiener filter from the FSC of two half maps (``filter.wiener.byfsc``).

    ``gain = snr / (1 + snr)`` with ``snr = snrmult FSC / (1 - FSC)``: for ``snrmult=2`` that is
    ``2 FSC / (1 + FSC)``, right for the merged map. The gain is at least 0.001, and no more than
    that from the first shell on where the FSC is not positive, beyond ``maxfreq`` and beyond
    the end of the curve.

    Attributes:
        fscfile: text file of two columns, ``s`` (1/angstrom) and FSC, or an array ``[m, 2]``.
        snrmult: factor between FSC / (1 - FSC) and the signal-to-noise ratio.
        sscale: the curve is read at ``s / sscale``; above 1 filters less.
        maxfreq: 1/angstrom.

    Differs from EMAN2, whose gain is ``snr**2 / (snr**2 + 1)`` with ``snrmult=1.5``.
    """

    fscfile: Float[Array, "m 2"] = eqx.field(converter=read_curve)
    snrmult: float = key(default=2.0)
    sscale: float = key(default=1.0)
    maxfreq: float = key(default=1.0)

    def __check_init__(self):
        for name in ("snrmult", "sscale", "maxfreq"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, not {getattr(self, name):g}.")

    def gain(self, box: int, apix: float) -> Shells:
        """Gain of the shells ``0 ... round(sqrt(3) n / 2)``."""
        frequency, value = self.fscfile[:, 0], jnp.nan_to_num(self.fscfile[:, 1])
        s = jnp.arange(len(_counts(box)[1]), dtype=jnp.float32) / (box * apix)
        fsc = jnp.clip(jnp.interp(s / self.sscale, frequency, value, right=0.0), 0.0, 1.0)
        fsc = fsc.at[0].set(fsc[1])  # one coefficient tells nothing about its error
        alive = (jnp.cumsum((fsc <= 0).astype(jnp.int32)) == 0) & (s <= self.maxfreq)
        wiener = self.snrmult * fsc / (1 - fsc + self.snrmult * fsc)
        return jnp.where(alive, jnp.maximum(wiener, 0.001), 0.001)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        box = volume.shape[-1]
        return multiply_radial(volume, _linear(self.gain(box, apix), box))


class LinearFourier(Processor):
    """Ramp ``8 |k|`` in Fourier pixels, at most ``4 n - 1`` (``filter.linearfourier``)."""

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        box = volume.shape[-1]
        return multiply_radial(volume, np.minimum(8 * radii(box), 4 * box - 1))


def _as_shells(gain: np.ndarray | Shells) -> Shells:
    return jnp.asarray(gain, jnp.float32)


class RadialTable(Processor):
    """Gain interpolated linearly in a list (``filter.radialtable``).

    Attributes:
        table: gain at ``|k| = 0, 1, ...`` Fourier pixels; beyond its end the last one holds.
    """

    table: Shells = eqx.field(converter=_as_shells)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return multiply_radial(volume, _linear(self.table, volume.shape[-1]))


def _squares(box: int) -> Int[Array, "z y h"]:
    """``|k|**2`` of every voxel of :func:`sptjax.fourier.rfftn`."""
    full = np.minimum(np.arange(box), box - np.arange(box)).astype(np.int32) ** 2
    z = jnp.asarray(full)
    return z[:, None, None] + z[None, :, None] + z[None, None, : box // 2 + 1]


def _shell_of_square(box: int) -> np.ndarray:
    return np.rint(radii(box)).astype(np.int32)


@functools.lru_cache(maxsize=8)
def _counts(box: int) -> tuple[np.ndarray, np.ndarray]:
    """How many voxels of the full transform have each square, and lie in each shell."""
    axis = np.bincount(np.minimum(np.arange(box), box - np.arange(box)) ** 2).astype(np.float64)
    squares = np.rint(np.convolve(np.convolve(axis, axis), axis))
    shells = np.bincount(_shell_of_square(box), squares)
    return squares.astype(np.float32), shells.astype(np.float32)


def _power(volume: Volume) -> Table:
    """Sum of ``|F|**2`` over the voxels of every square, Friedel partners counted."""
    box = volume.shape[-1]
    spectrum = fourier.rfftn(volume)
    power = (spectrum.real**2 + spectrum.imag**2) * jnp.asarray(fourier.hermitian_count(box))
    return jnp.zeros(len(radii(box)), power.dtype).at[_squares(box)].add(power)


def _shell_sums(table: Table, box: int) -> Shells:
    shells = _shell_of_square(box)
    return jnp.zeros(int(shells[-1]) + 1, table.dtype).at[shells].add(table)


def _root(wanted: Shells, found: Shells, own: Shells) -> Shells:
    """``sqrt(wanted / found)``, and 0 in the shells that have no power of their own."""
    full = (own > _FLOOR * own.mean()) & (found > 0)
    positive = full & (wanted > 0)
    return jnp.where(
        positive, jnp.sqrt(jnp.where(positive, wanted, 1.0) / jnp.where(full, found, 1.0)), 0.0
    )


def _linear(gain: Shells, box: int) -> Table:
    """A gain per shell at :func:`radii`, interpolated linearly."""
    nodes = jnp.arange(gain.shape[0], dtype=jnp.float32)
    return jnp.interp(jnp.asarray(radii(box), jnp.float32), nodes, gain)


def _between_shells(gain: Shells, box: int) -> Table:
    """A gain per shell at :func:`radii`, interpolated geometrically."""
    return jnp.exp(_linear(jnp.log(jnp.maximum(gain, 1e-30)), box))


def _checked(values: np.ndarray, name: str) -> np.ndarray:
    if values.ndim != 2 or values.shape[1] != 2 or len(values) < 2:
        raise InputError(f"{name} must be of the shape [m, 2], not {values.shape}.")
    if not (np.diff(values[:, 0]) > 0).all():
        raise InputError(f"{name}: the frequencies in the first column must rise.")
    return values


REGISTRY: dict[str, type[Processor]] = {
    "filter.matchto": MatchTo,
    "filter.setstrucfac": SetStrucFac,
    "filter.lowpass.autob": LowpassAutoB,
    "filter.wiener.byfsc": WienerByFsc,
    "filter.linearfourier": LinearFourier,
    "filter.radialtable": RadialTable,
}
