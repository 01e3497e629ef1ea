"""Mean and standard deviation per voxel, by running moments."""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._types import Volume, Volumes
from ._base import Groups, Weights, add_one_by_one


class Moments(eqx.Module):
    """Weighted mean and sum of squared deviations per voxel of ``g`` groups.

    Updated by the merging formula of Chan, Golub and LeVeque (1983, Am. Stat. 37:242), so that
    nothing cancels in float32 when the mean is large beside the deviations. ``weight`` has one
    number per voxel when exact zeros are ignored, otherwise one per group.
    """

    weight: Float[Array, "*g #z #y #x"]
    mean: Float[Array, "*g z y x"]
    squares: Float[Array, "*g z y x"]  # sum of w (v - mean)^2
    count: Int[Array, "*g"]


def _empty_moments(box: int, groups: int, per_voxel: bool) -> Moments:
    zero = jnp.zeros((groups, box, box, box), jnp.float32)
    weight = zero if per_voxel else jnp.zeros((groups, 1, 1, 1), jnp.float32)
    return Moments(weight, zero, zero, jnp.zeros(groups, jnp.int32))


def _moments_of(volume: Volume, weight: Float[Array, ""], ignore0: bool) -> Moments:
    """Moments of one volume, without the axis of groups."""
    each = jnp.where(volume != 0, weight, 0) if ignore0 else weight.reshape(1, 1, 1)
    return Moments(each, volume, jnp.zeros_like(volume), jnp.int32(1))


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Moments over the volumes of both, ``a`` and ``b``."""
    weight = a.weight + b.weight
    share = b.weight / jnp.where(weight > 0, weight, 1)
    apart = b.mean - a.mean
    return Moments(
        weight,
        a.mean + share * apart,
        a.squares + b.squares + a.weight * share * apart**2,
        a.count + b.count,
    )


def variance(moments: Moments) -> Float[Array, "*g z y x"]:
    """Weighted population variance per voxel, ``sum w (v - mean)^2 / sum w``, 0 without data.

    EMAN2's *varmap* is its square root. It is the spread of single volumes: the variance of
    their average is smaller by the number of volumes (see :mod:`sptjax.bootstrap`).

    Args:
        moments: sums over volumes.
    """
    return moments.squares / jnp.where(moments.weight > 0, moments.weight, 1)


@dataclasses.dataclass(frozen=True)
class _OfMoments:
    """What averagers share whose state is the moments."""

    by_known_sampling: bool = dataclasses.field(default=False, init=False)
    ignore0: bool = False

    def start(self, box: int, groups: int = 1) -> Moments:
        """State over no volume."""
        return _empty_moments(box, groups, self.ignore0)

    def add(
        self, state: Moments, volumes: Volumes, groups: Groups, weights: Weights = None
    ) -> Moments:
        """State over the volumes before and these."""
        return add_one_by_one(self, state, volumes, groups, weights)

    def merge(self, a: Moments, b: Moments) -> Moments:
        """State over the volumes of both."""
        return merge_moments(a, b)

    def update(self, old: Moments, volume: Volume, weight: Float[Array, ""]) -> Moments:
        """One volume more, in one group."""
        return merge_moments(old, _moments_of(volume, weight, self.ignore0))


@dataclasses.dataclass(frozen=True)
class Mean(_OfMoments):
    """Mean per voxel (EMAN2 ``mean``); :func:`variance` of its state is the variance map.

    Attributes:
        ignore0: leave voxels that are exactly 0 out of the mean of that voxel.
    """

    def finish(self, state: Moments) -> Volumes:
        """Weighted means."""
        return state.mean


@dataclasses.dataclass(frozen=True)
class Sigma(_OfMoments):
    """Population standard deviation per voxel (EMAN2 ``sigma``); one volume gives 0.

    Attributes:
        ignore0: leave voxels that are exactly 0 out of the statistics of that voxel.
    """

    def finish(self, state: Moments) -> Volumes:
        """Weighted standard deviations."""
        return jnp.sqrt(variance(state))
