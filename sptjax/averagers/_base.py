"""What an averager is, and the fold of volumes into its state."""

from functools import partial
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from .._errors import InputError
from .._types import Volumes

S = TypeVar("S")
Groups = Int[Array, " n"]  # group of every volume, -1 for none
Weights = Float[Array, " n"] | None  # of every volume, default 1


class Averager(Protocol):
    """What every averager offers; the state is a record of its own."""

    @property
    def by_known_sampling(self) -> bool:
        """Whether the caller sums with :mod:`sptjax.average` instead, knowing the sampling."""
        ...

    def start(self, box: int, groups: int = 1) -> Any:
        """State over no volume."""
        ...

    def add(self, state: Any, volumes: Volumes, groups: Groups, weights: Weights = None) -> Any:
        """State over the volumes before and these; the default weight is 1."""
        ...

    def merge(self, a: Any, b: Any) -> Any:
        """State over the volumes of both."""
        ...

    def finish(self, state: Any) -> Volumes:
        """Maps of the groups ``[groups, z, y, x]``."""
        ...


def add_one_by_one(
    averager: Any, state: S, volumes: Volumes, groups: Groups, weights: Weights
) -> S:
    """Fold volumes into the states of their groups, one after the other.

    The result does not depend on how the volumes are cut into batches.

    Args:
        averager: hashable; ``update(state, volume, weight)`` adds one volume to the state of
            one group, which is ``state`` without its axis of groups.
        state: tree of arrays ``[g, ...]``.
        volumes: ``[n, z, y, x]``.
        groups: of the volumes.
        weights: of the volumes, default 1.
    """
    check_box(volumes, max(x.shape[1] for x in jax.tree.leaves(state) if x.ndim > 1))
    if weights is None:
        weights = jnp.ones(volumes.shape[0], jnp.float32)
    return _fold(averager, state, volumes, groups, weights)


@partial(jax.jit, static_argnums=0)
def _fold(averager, state, volumes, groups, weights):
    number = jax.tree.leaves(state)[0].shape[0]
    used = (weights > 0) & (groups >= 0) & (groups < number)

    def step(state, item):
        volume, group, weight, use = item
        old = jax.tree.map(lambda x: x[group], state)
        new = averager.update(old, jnp.where(use, volume, 0), jnp.where(use, weight, 1))
        new = jax.tree.map(lambda n, o: jnp.where(use, n, o), new, old)
        return jax.tree.map(lambda x, n: x.at[group].set(n), state, new), None

    items = (volumes, jnp.where(used, groups, 0), weights, used)
    return lax.scan(step, state, items)[0]


def check_box(volumes: Volumes, box: int) -> None:
    """Refuse volumes that are not cubes of ``box`` voxels."""
    if volumes.shape[1:] != (box,) * 3:
        raise InputError(f"Volumes of {volumes.shape[1:]} voxels do not fit averages of box {box}.")
