"""How an image is cut: slabs that fit memory, chunks of the file inside them, work on threads."""

import concurrent.futures
import contextlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np

Region = tuple[slice, ...]  # on the leading axes of an image; those left out are whole
Work = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]

SLAB_BYTES = 16 << 20  # as float32
_CHUNK_BYTES = 1 << 16
_BATCH = 2  # items that a thread takes at once
_ROWS = 8  # EMAN2's height of a chunk, ours is a multiple


class Image(Protocol):
    """An image that is read in parts."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(nz, ny, nx)``, ``(ny, nx)`` or ``(nx,)``, no leading 1."""
        ...

    @property
    def depth(self) -> int:
        """Planes along the first axis that are read together with least work."""
        ...

    def read(self, region: Region) -> np.ndarray:
        """A part: float32, or integers of at most 16 bits."""
        ...


def stored_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without leading axes of length 1, as EMAN2 stores it."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def chunk_shape(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Chunks of about 64 KiB: whole rows, a multiple of 8 where there are as many."""
    target, nx = _CHUNK_BYTES, shape[-1]
    if len(shape) == 1:
        return (min(nx, target // itemsize),)
    rows = target // (nx * itemsize) // _ROWS * _ROWS
    return (*(1,) * (len(shape) - 2), min(shape[-2], max(rows, _ROWS)), nx)


def slabs(shape: tuple[int, ...], rows: int, depth: int, budget: int = SLAB_BYTES) -> list[Region]:
    """Regions that cover an image in order, each below a number of bytes if that can be.

    Args:
        shape: of the image.
        rows: height of a chunk; no slab cuts one.
        depth: planes that should not be parted.
        budget: bytes of float32.
    """
    if len(shape) == 3:
        plane = 4 * shape[1] * shape[2]
        if depth * plane <= budget:
            thick = budget // (depth * plane) * depth
            return [(part,) for part in _parts(shape[0], thick)]
        high = max(budget // (4 * depth * shape[2]) // rows * rows, rows)
        return [(z, y) for z in _parts(shape[0], depth) for y in _parts(shape[1], high)]
    unit = rows * depth // np.gcd(rows, depth)
    line = 4 * int(np.prod(shape[1:]))
    if unit * line > budget:
        unit = rows
    return [(part,) for part in _parts(shape[0], max(budget // (line * unit), 1) * unit)]


def _parts(length: int, step: int) -> Iterator[slice]:
    return (slice(a, min(a + step, length)) for a in range(0, length, step))


def pieces(
    region: Region, values: np.ndarray, rows: int
) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """The chunks of a slab: offset in the image, and values (fewer than a chunk at the end).

    Args:
        region: of the slab.
        values: of the slab.
        rows: height of a chunk (its length, for an image of rank 1).
    """
    first, *rest = region
    if values.ndim < 3:
        for part in _parts(len(values), rows):
            yield (first.start + part.start, *(0,) * (values.ndim - 1)), values[part]
        return
    top = rest[0].start if rest else 0
    for z, plane in enumerate(values, first.start):
        for part in _parts(len(plane), rows):
            yield (z, top + part.start, 0), plane[part]


@contextlib.contextmanager
def workers(threads: int) -> Iterator[Work]:
    """Something like ``map``, in order, on a number of threads; a few items each are in work.

    Args:
        threads: from 1; with 1 the caller does the work itself.
    """
    if threads == 1:
        yield map
        return
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:

        def work(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
            waiting: deque[concurrent.futures.Future] = deque()
            rest = iter(items)
            while batch := list(itertools.islice(rest, _BATCH)):
                waiting.append(pool.submit(lambda some: [function(x) for x in some], batch))
                if len(waiting) > threads + 1:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()

        yield work


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
