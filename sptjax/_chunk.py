"""The one chunked map, and the rule from bytes to batch sizes.

Long axes are processed in chunks of one static size, the last one padded by repetition, so
that a loop compiles once whatever its length.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def map_chunked(function: Callable[[Any], Any], arrays: Any, size: int) -> Any:
    """``function`` over chunks of the leading axis of a tree of arrays, results joined.

    Args:
        function: takes and returns trees of arrays whose leading axis is the chunk.
        arrays: tree of arrays ``[n, ...]`` with one common ``n >= 1``.
        size: chunk length; ``n`` need not be a multiple of it.
    """
    n = jax.tree.leaves(arrays)[0].shape[0]
    size = min(size, n)
    count = -(-n // size)
    index = jnp.minimum(jnp.arange(count * size), n - 1)
    if count == 1:
        return function(arrays)
    chunks = jax.tree.map(lambda x: x[index].reshape(count, size, *x.shape[1:]), arrays)
    joined = lax.map(function, chunks)
    return jax.tree.map(lambda x: x.reshape(count * size, *x.shape[2:])[:n], joined)


def batch_size(bytes_each: int, budget: int, most: int) -> int:
    """Largest power of two, at most ``most``, whose items fit into ``budget`` bytes."""
    size = 1
    while 2 * size <= most and 2 * size * bytes_each <= budget:
        size *= 2
    return size


def padded_batches(indices: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Cut indices into batches of exactly ``size``; the last repeats its final entry.

    Yields:
        (indices of the batch, how many of them are real).
    """
    for start in range(0, len(indices), size):
        part = indices[start : start + size]
        padding = np.repeat(part[-1:], size - len(part))
        yield np.concatenate([part, padding]), len(part)
