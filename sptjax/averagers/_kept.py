"""Averagers that need every volume at the end: they keep them in host memory."""

import dataclasses
from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import fourier
from .._errors import InputError
from .._types import Volume, Volumes
from ._base import Groups, Weights, check_box


class KeptVolumes(eqx.Module):
    """All volumes of all groups, batches of them, in host memory."""

    box: int = eqx.field(static=True)
    number: int = eqx.field(static=True)  # of groups
    volumes: tuple[np.ndarray, ...] = ()  # each [n, z, y, x] float32
    groups: tuple[np.ndarray, ...] = ()  # each [n]
    weights: tuple[np.ndarray, ...] = ()  # each [n], above 0

    def joined(self, other: "KeptVolumes") -> "KeptVolumes":
        """The volumes of both."""
        return KeptVolumes(
            self.box,
            self.number,
            self.volumes + other.volumes,
            self.groups + other.groups,
            self.weights + other.weights,
        )

    def of_group(self, group: int) -> Iterator[tuple[np.ndarray, np.float32]]:
        """Volumes of one group and their weights."""
        for volumes, groups, weights in zip(self.volumes, self.groups, self.weights):
            for index in np.flatnonzero(groups == group):
                yield volumes[index], weights[index]


def _keep(state: KeptVolumes, volumes: Volumes, groups: Groups, weights: Weights) -> KeptVolumes:
    check_box(volumes, state.box)
    group = np.asarray(groups)
    weight = np.ones(len(group), np.float32) if weights is None else np.asarray(weights, np.float32)
    used = (weight > 0) & (group >= 0) & (group < state.number)
    kept = np.asarray(volumes, np.float32)[used]
    return state.joined(
        KeptVolumes(state.box, state.number, (kept,), (group[used],), (weight[used],))
    )


@dataclasses.dataclass(frozen=True)
class _OfKept:
    """What averagers share whose state is the volumes themselves."""

    by_known_sampling: bool = dataclasses.field(default=False, init=False)

    def start(self, box: int, groups: int = 1) -> KeptVolumes:
        """State over no volume."""
        return KeptVolumes(box, groups)

    def add(
        self, state: KeptVolumes, volumes: Volumes, groups: Groups, weights: Weights = None
    ) -> KeptVolumes:
        """State over the volumes before and these."""
        return _keep(state, volumes, groups, weights)

    def merge(self, a: KeptVolumes, b: KeptVolumes) -> KeptVolumes:
        """State over the volumes of both."""
        return a.joined(b)


@dataclasses.dataclass(frozen=True)
class Median(_OfKept):
    """Median per voxel (EMAN2 ``median``), of an even number the mean of the middle two.

    Keeps all volumes on the host, ``4 n box^3`` bytes, and is not jitted.
    """

    def finish(self, state: KeptVolumes) -> Volumes:
        """Medians, one z section at a time."""
        result = np.zeros((state.number, *(state.box,) * 3), np.float32)
        for group in range(state.number):
            members = [volume for volume, _ in state.of_group(group)]
            for z in range(state.box if members else 0):
                result[group, z] = np.median([volume[z] for volume in members], axis=0)
        return jnp.asarray(result)


@dataclasses.dataclass(frozen=True)
class LocalWeight(_OfKept):
    """Mean with local weights: how well each volume agrees there with all (EMAN2 ``localweight``).

    ``w_i = max(0, lowpass(v_i M))``, with ``M`` the standardised sum of the volumes and the
    Gaussian ``exp(-(s / 0.02)^2)`` at ``s`` per angstrom. The average is
    ``sum w_i v_i / max(sum w_i, dampnoise * mean of sum w_i)``: noise outside is damped.

    Keeps all volumes on the host, ``4 n box^3`` bytes, and is not jitted.

    Attributes:
        dampnoise: least divisor as a share of the mean divisor.
        apix: angstrom per voxel; needed, EMAN2 takes it from the header.
    """

    dampnoise: float = 0.5
    apix: float | None = None

    def __post_init__(self):
        if self.dampnoise < 0 or (self.apix is not None and self.apix <= 0):
            raise InputError("dampnoise must not be negative, and apix must be above 0.")

    def start(self, box: int, groups: int = 1) -> KeptVolumes:
        """State over no volume.

        Raises:
            InputError: the voxel size is not known.
        """
        self._cutoff()
        return super().start(box, groups)

    def finish(self, state: KeptVolumes) -> Volumes:
        """Locally weighted means."""
        box = state.box
        radius = np.linalg.norm(fourier.half_grid(box), axis=-1) / box
        gain = jnp.asarray(np.exp(-((radius / self._cutoff()) ** 2)), jnp.complex64)
        result = []
        for group in range(state.number):
            zero = jnp.zeros((box,) * 3, jnp.float32)
            total = sum((w * jnp.asarray(v) for v, w in state.of_group(group)), zero)
            spread = jnp.std(total)
            common = (total - total.mean()) / jnp.where(spread > 0, spread, 1)
            sums = (zero, zero)
            for volume, weight in state.of_group(group):
                sums = _add_locally(sums, jnp.asarray(volume), weight, common, gain)
            divisor = jnp.maximum(sums[1], self.dampnoise * sums[1].mean())
            result.append(sums[0] / jnp.where(divisor > 0, divisor, 1))
        return jnp.stack(result)

    def _cutoff(self) -> float:
        """Width of the Gaussian, cycles per voxel."""
        if self.apix is None:
            raise InputError("localweight needs the voxel size, apix, in angstrom.")
        return 0.02 * self.apix


@jax.jit
def _add_locally(sums, volume: Volume, weight, common: Volume, gain) -> tuple[Volume, Volume]:
    agreement = fourier.irfftn(fourier.rfftn(volume * common) * gain, volume.shape[0])
    local = weight * jnp.maximum(agreement, 0)
    return sums[0] + local * volume, sums[1] + local
