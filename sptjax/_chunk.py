"""The one chunked map, and the rule from bytes to batch sizes.

Long axes are processed in chunks of one static size, the last one padded by repetition, so
that a loop compiles once whatever its length.
"""

import collections
import itertools
import os
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._team import divided

AT_ONCE = 256  # items of map_each, off the CPU

_compiled: set[Hashable] = set()  # what side_by_side has worked on in this process

T = TypeVar("T")
U = TypeVar("U")


def map_chunked(function: Callable[[Any], Any], arrays: Any, size: int, team: int = 1) -> Any:
    """``function`` over chunks of the leading axis of a tree of arrays, results joined.

    Args:
        function: takes and returns trees of arrays whose leading axis is the chunk.
        arrays: tree of arrays ``[n, ...]`` with one common ``n >= 1``.
        size: chunk length; ``n`` need not be a multiple of it.
        team: devices that share the chunks, inside :func:`sptjax._team.together`.
    """
    return divided(lambda part: _in_chunks(function, part, size), arrays, team)


def _in_chunks(function: Callable[[Any], Any], arrays: Any, size: int) -> Any:
    n = jax.tree.leaves(arrays)[0].shape[0]
    size = min(size, n)
    count = -(-n // size)
    index = jnp.minimum(jnp.arange(count * size), n - 1)
    if count == 1:
        return function(arrays)
    chunks = jax.tree.map(lambda x: x[index].reshape(count, size, *x.shape[1:]), arrays)
    joined = lax.map(function, chunks)
    return jax.tree.map(lambda x: x.reshape(count * size, *x.shape[2:])[:n], joined)


def map_each(function: Callable[[Any], Any], items: Any, team: int = 1) -> Any:
    """``function`` of every item of the leading axis, as many at a time as suit the device.

    On a CPU one after the other: what an item needs stays in the caches. Elsewhere many at once,
    because one is too little work for a kernel. Results are the same up to rounding.

    Args:
        function: takes and returns trees of arrays.
        items: tree of arrays ``[n, ...]``.
        team: devices that share the items, inside :func:`sptjax._team.together`.
    """
    at_once = None if on_cpu() else AT_ONCE
    return divided(lambda part: lax.map(function, part, batch_size=at_once), items, team)


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


def read_ahead(read: Callable[[T], U], items: Iterable[T], depth: int = 1) -> Iterator[tuple[T, U]]:
    """Items with what is read for them, the next ``depth`` read while one is worked on.

    Reading happens in one other thread, in order.

    Args:
        read: of one item; what it raises is raised here.
        items: what to read for.
        depth: items in memory beyond the one in use.

    Yields:
        (item, what was read).
    """
    rest = iter(items)
    with ThreadPoolExecutor(1) as pool:
        waiting = collections.deque(
            (item, pool.submit(read, item)) for item in itertools.islice(rest, depth + 1)
        )
        while waiting:
            item, future = waiting.popleft()
            result = future.result()
            yield item, result
            del result
            waiting.extend((more, pool.submit(read, more)) for more in itertools.islice(rest, 1))


def side_by_side(
    work: Callable[[int, T], U], items: Iterable[T], lanes: int, each: int, like: Hashable
) -> Iterator[tuple[T, U]]:
    """Items in their order with what was worked out for them, several at a time, in threads.

    JAX runs what different threads ask for at the same time, on one device too. The first item
    of every lane goes before the others, so that what it compiles they need not, unless work
    like this has been done before.

    Args:
        work: of the number of an item and the item.
        items: what to work on.
        lanes: devices, which take the items in turn.
        each: items at a time in every lane.
        like: whatever the programs that are compiled for the work depend on.
    """
    under_way: collections.deque[tuple[T, Future[U]]] = collections.deque()
    compiled = like in _compiled
    with ThreadPoolExecutor(lanes * each) as pool:
        for number, item in enumerate(items):
            if number == lanes and not compiled:
                wait([future for _, future in under_way])
            if len(under_way) == lanes * each:
                ready, future = under_way.popleft()
                yield ready, future.result()
            under_way.append((item, pool.submit(work, number, item)))
        while under_way:
            ready, future = under_way.popleft()
            yield ready, future.result()
    _compiled.add(like)


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


Device = Any  # of JAX
_devices: list[Device] = []


def use_only(devices: list[Device]) -> None:
    """Let batches go to these devices of this process."""
    _devices[:] = devices


def devices() -> list[Device]:
    """The devices of this process that batches go to in turn."""
    return _devices or jax.local_devices()


def on_cpu() -> bool:
    """Whether batches go to a CPU."""
    return devices()[0].platform == "cpu"
