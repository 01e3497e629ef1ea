"""Devices that share the work on one batch, where there are fewer particles than devices.

A team runs one program on all its devices: each does its part of a long axis (rotations of a
search, candidates of a refinement), and all get the whole result.
"""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

AXIS = "team"


def teams(devices: list[Any], count: int) -> list[tuple[Any, ...]]:
    """Devices in as many teams of one size as there are items, if there are fewer items.

    Args:
        devices: all of them.
        count: items, each of which one team works on.

    Returns:
        At most ``count`` teams; what cannot be divided evenly stays idle.
    """
    number = max(1, min(len(devices), count))
    size = len(devices) // number if count < len(devices) else 1
    return [tuple(devices[i * size : (i + 1) * size]) for i in range(number)]


@functools.lru_cache
def together(
    function: Callable[..., Any], team: tuple[Any, ...], **static: Hashable
) -> Callable[..., Any]:
    """A function of trees of arrays that calls :func:`divided`, run by all devices of a team.

    Arguments and results are whole on every device.

    Args:
        function: with a keyword argument ``team``, for their number.
        team: its devices; fewer than two stand for the default one.
        static: other keyword arguments that are no arrays.
    """
    static["team"] = max(len(team), 1)
    if len(team) < 2:
        return functools.partial(function, **static)
    whole = PartitionSpec()
    divided_up = jax.shard_map(
        lambda args, named: function(*args, **named, **static),
        mesh=Mesh(np.array(team), (AXIS,)), in_specs=whole, out_specs=whole,
        check_vma=False,  # results are the same everywhere because all gather all parts
    )  # fmt: skip
    return jax.jit(lambda *args, **named: divided_up(args, named))


def divided(function: Callable[[Any], Any], arrays: Any, team: int) -> Any:
    """``function`` of a tree of arrays ``[n, ...]``, the leading axis divided among a team.

    Args:
        function: takes and returns trees of arrays with one leading axis, item by item.
        arrays: the same on every device.
        team: how many devices run this; 1 outside :func:`together`.
    """
    if team < 2:
        return function(arrays)
    n = jax.tree.leaves(arrays)[0].shape[0]
    each = -(-n // team)
    rows = jnp.minimum(lax.axis_index(AXIS) * each + jnp.arange(each), n - 1)
    own = function(jax.tree.map(lambda x: x[rows], arrays))
    return jax.tree.map(lambda x: lax.all_gather(x, AXIS, tiled=True)[:n], own)
