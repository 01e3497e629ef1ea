"""Mathematics voxel by voxel, and noise (EMAN2 ``math.*``)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._errors import InputError
from .._types import Volume
from . import _grid
from ._base import Processor, key


class Linear(Processor):
    """``v * scale + shift`` (``math.linear``); ``scale=-1:shift=0`` inverts the contrast."""

    scale: float = key()
    shift: float = key()

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return volume * self.scale + self.shift


class AbsValue(Processor):
    """``|v|`` (``math.absvalue``)."""

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return jnp.abs(volume)


class Floor(Processor):
    """Largest whole number not above ``v`` (``math.floor``)."""

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return jnp.floor(volume)


class Squared(Processor):
    """``v**2`` (``math.squared``)."""

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return volume * volume


class Sqrt(Processor):
    """Square root (``math.sqrt``); NaN where ``v < 0``."""

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return jnp.sqrt(volume)


class Log(Processor):
    """Decimal logarithm, 0 where ``v <= 0`` (``math.log``)."""

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return jnp.log10(jnp.where(volume > 0, volume, 1.0))


class Exp(Processor):
    """``exp(v / low - high)``, exponent at most 40 (``math.exp``)."""

    low: float = key(default=1.0)
    high: float = key(default=0.0)

    def __check_init__(self):
        if self.low == 0:
            raise InputError("low must not be 0.")

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return jnp.exp(jnp.minimum(volume / self.low - self.high, 40.0))


class Pow(Processor):
    """``v**pow`` (``math.pow``); 0 where a negative value has a fractional power."""

    pow: float = key()

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        if self.pow == int(self.pow):
            return jax.lax.integer_pow(volume, int(self.pow))
        return jnp.where(volume < 0, 0.0, jnp.where(volume < 0, 1.0, volume) ** self.pow)


class Reciprocal(Processor):
    """``1 / v``; zeros become ``zero_to`` (``math.reciprocal``)."""

    zero_to: float = key(default=0.0)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return jnp.where(volume == 0, self.zero_to, 1 / jnp.where(volume == 0, 1.0, volume))


class Finite(Processor):
    """NaN and infinities become ``to`` (``math.finite``)."""

    to: float = key(default=0.0)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return jnp.where(jnp.isfinite(volume), volume, self.to)


class Outliers(Processor):
    """Values outside mean - ``value2`` sigma ... mean + ``value1`` sigma become the mean.

    EMAN2: ``math.sigma``.
    """

    value1: float = key()
    value2: float = key()

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        mean, sigma = volume.mean(), _grid.sigma(volume)
        outside = (volume < mean - self.value2 * sigma) | (volume > mean + self.value1 * sigma)
        return jnp.where(outside, mean, volume)


class AddNoise(Processor):
    """Add normal noise of mean ``noise`` and standard deviation ``noise / 2``.

    EMAN2: ``math.addnoise``, whose bias (the mean is not zero) is kept. The same ``seed`` gives
    the same noise.
    """

    noise: float = key()
    seed: int = key(default=0)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return volume + self.noise * _biased(self.seed, volume)


class AddSigNoise(Processor):
    """As ``math.addnoise`` with ``noise`` in units of the volume's sigma (``math.addsignoise``)."""

    noise: float = key()
    seed: int = key(default=0)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return volume + self.noise * _grid.sigma(volume) * _biased(self.seed, volume)


def _biased(seed: int, volume: Volume) -> Float[Array, "z y x"]:
    """Normal numbers of mean 1 and standard deviation 1/2."""
    return 1 + jax.random.normal(jax.random.key(seed), volume.shape, volume.dtype) / 2


REGISTRY = {
    "math.linear": Linear,
    "math.absvalue": AbsValue,
    "math.floor": Floor,
    "math.squared": Squared,
    "math.sqrt": Sqrt,
    "math.log": Log,
    "math.exp": Exp,
    "math.pow": Pow,
    "math.reciprocal": Reciprocal,
    "math.finite": Finite,
    "math.sigma": Outliers,
    "math.addnoise": AddNoise,
    "math.addsignoise": AddSigNoise,
}
