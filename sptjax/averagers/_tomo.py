"""Mean of the frequencies that each volume holds."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int

from .. import fourier
from .._errors import InputError
from .._types import Volume, Volumes
from ._base import Groups, Weights, add_one_by_one


class ThresholdSums(eqx.Module):
    """Sums over the strong coefficients of ``g`` groups, layout of :func:`fourier.rfftn`."""

    numerator: Complex[Array, "*g z y h"]
    weight: Float[Array, "*g z y h"]
    count: Int[Array, "*g"]


@dataclasses.dataclass(frozen=True)
class MeanTomo:
    """Mean of the frequencies that each volume holds (EMAN2 ``mean.tomo``).

    By default the sampling is known: ``by_known_sampling`` is true and the caller sums poses,
    particles and wedges with :mod:`sptjax.average`. With ``compat`` it is guessed as EMAN2
    does, from aligned volumes: a coefficient counts where its intensity reaches
    ``thresh_sigma`` times the variance of the amplitude in its shell ``floor(|k|)``. Shells
    beyond ``n // 2`` are dropped. The guess also drops 10 to 15 % of what was measured.

    Attributes:
        thresh_sigma: of ``compat`` only, there 0.5 if not given.
        compat: guess the sampling from amplitudes.
    """

    thresh_sigma: float | None = None
    compat: bool = False

    def __post_init__(self):
        if self.thresh_sigma is not None and not self.compat:
            raise InputError(
                "thresh_sigma guesses the wedge from amplitudes, but the wedge is known;"
                " leave it out, or add compat=1 to average as EMAN2 does."
            )

    @property
    def by_known_sampling(self) -> bool:
        """Whether the caller sums with :mod:`sptjax.average`."""
        return not self.compat

    def start(self, box: int, groups: int = 1) -> ThresholdSums:
        """State over no volume.

        Raises:
            InputError: without ``compat``.
        """
        if self.by_known_sampling:
            raise InputError("mean.tomo without compat=1 sums in Fourier space: sptjax.average.")
        shape = (groups, box, box, box // 2 + 1)
        weight = jnp.zeros(shape, jnp.float32)
        return ThresholdSums(jnp.zeros(shape, jnp.complex64), weight, jnp.zeros(groups, jnp.int32))

    def add(
        self, state: ThresholdSums, volumes: Volumes, groups: Groups, weights: Weights = None
    ) -> ThresholdSums:
        """State over the volumes before and these."""
        return add_one_by_one(self, state, volumes, groups, weights)

    def merge(self, a: ThresholdSums, b: ThresholdSums) -> ThresholdSums:
        """State over the volumes of both."""
        return jax.tree.map(jnp.add, a, b)

    def finish(self, state: ThresholdSums) -> Volumes:
        """Weighted means; frequencies that no volume holds are 0."""
        divisor = jnp.where(state.weight > 0, state.weight, 1)
        return fourier.irfftn(state.numerator / divisor.astype(jnp.complex64), divisor.shape[1])

    def update(self, old: ThresholdSums, volume: Volume, weight: Float[Array, ""]) -> ThresholdSums:
        """One volume more, in one group."""
        spectrum = fourier.rfftn(volume)
        strong = _strong(spectrum, 0.5 if self.thresh_sigma is None else self.thresh_sigma)
        part = jnp.where(strong, weight, 0)
        one = ThresholdSums(spectrum * part.astype(jnp.complex64), part, jnp.int32(1))
        return self.merge(old, one)


def _strong(spectrum: Complex[Array, "z y h"], thresh_sigma: float) -> Array:
    """Where the intensity reaches ``thresh_sigma`` variances of the amplitude of its shell.

    As in EMAN2, one half grid is counted, of its plane ``kx = 0`` only the rows up to
    ``(kz, ky) = (n // 2, n // 2)``.
    """
    box = spectrum.shape[0]
    last = box // 2
    shell = np.floor(np.linalg.norm(fourier.half_grid(box), axis=-1)).astype(np.int32)
    counted = np.ones(shell.shape, bool)
    counted[..., 0] = (np.arange(box * box) <= last * box + last).reshape(box, box)
    number = np.bincount(shell.ravel(), counted.ravel()).astype(np.float32)

    def shell_mean(values):
        kept = jnp.where(counted, values, 0)
        return jnp.zeros(number.shape).at[shell].add(kept) / np.maximum(number, 1)

    amplitude = jnp.abs(spectrum)
    spread = shell_mean((amplitude - shell_mean(amplitude)[shell]) ** 2)
    return (amplitude**2 >= thresh_sigma * spread[shell]) & (shell <= last)
