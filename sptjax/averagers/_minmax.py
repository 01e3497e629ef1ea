"""Extremes per voxel."""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._types import Volume, Volumes
from ._base import Groups, Weights, add_one_by_one


class Extremes(eqx.Module):
    """Extreme voxels of ``g`` groups so far; meaningless where ``count`` is 0."""

    value: Float[Array, "*g z y x"]
    count: Int[Array, "*g"]


@dataclasses.dataclass(frozen=True)
class MinMax:
    """Smallest value per voxel, or the largest (EMAN2 ``minmax``).

    Attributes:
        max: largest instead of smallest.
        abs: compare absolute values and keep the sign; of ``-v`` and ``v`` the positive stays.
    """

    by_known_sampling: bool = dataclasses.field(default=False, init=False)
    max: bool = False
    abs: bool = False

    def start(self, box: int, groups: int = 1) -> Extremes:
        """State over no volume."""
        value = jnp.zeros((groups, box, box, box), jnp.float32)
        return Extremes(value, jnp.zeros(groups, jnp.int32))

    def add(
        self, state: Extremes, volumes: Volumes, groups: Groups, weights: Weights = None
    ) -> Extremes:
        """State over the volumes before and these."""
        return add_one_by_one(self, state, volumes, groups, weights)

    def merge(self, a: Extremes, b: Extremes) -> Extremes:
        """State over the volumes of both."""
        old, new = (jnp.abs(e.value) if self.abs else e.value for e in (a, b))
        better = new > old if self.max else new < old
        better |= (new == old) & (b.value > a.value)
        known_a, known_b = ((e.count > 0)[..., None, None, None] for e in (a, b))
        take = known_b & (better | ~known_a)
        return Extremes(jnp.where(take, b.value, a.value), a.count + b.count)

    def finish(self, state: Extremes) -> Volumes:
        """Extreme values."""
        return state.value

    def update(self, old: Extremes, volume: Volume, weight: Float[Array, ""]) -> Extremes:
        """One volume more, in one group."""
        del weight  # not 0
        return self.merge(old, Extremes(volume, jnp.int32(1)))
