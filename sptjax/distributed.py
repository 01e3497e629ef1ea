"""Several processes of one run: who reads which particles, and how their results come together.

Every process holds the coefficients of a block of the stack and aligns it. Poses are gathered
after the alignment, the sums of the averages are added once a round, and everything after that
(resolution, references, convergence) is computed by all alike. The first process writes.
"""

import dataclasses
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from ._errors import InputError

T = TypeVar("T")
HEARTBEAT_S = 30  # without a sign of life from a process, the others end
_TEXT = 4096  # bytes of a path that is sent


@dataclasses.dataclass(frozen=True)
class Hosts:
    """One process among several; alone by default."""

    index: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks."""
        return self.index == 0

    def block(self, n: int) -> tuple[int, int]:
        """First and last (exclusive) of the particles of this process.

        Blocks begin with particles of the even half, and cover the stack in order.
        """
        edges = block_edges(n, self.count)
        return edges[self.index], edges[self.index + 1]

    def joined(self, array: np.ndarray) -> np.ndarray:
        """An array over all particles ``[n, ...]``, the block of every process from itself."""
        if self.count == 1:
            return array
        n = len(array)
        edges = block_edges(n, self.count)
        longest = max(np.diff(edges))
        first, last = self.block(n)
        own = np.zeros((longest, *array.shape[1:]), array.dtype)
        own[: last - first] = array[first:last]
        parts = _gathered(own)
        return np.concatenate([part[: b - a] for part, a, b in zip(parts, edges, edges[1:])])

    def total(self, tree: T) -> T:
        """The sum over the processes of a tree of arrays, the same bits on all of them."""
        if self.count == 1:
            return tree
        return jax.tree.map(lambda x: _sum_in_pairs(list(_gathered(np.asarray(x)))), tree)

    def same(self, array: np.ndarray | None) -> np.ndarray:
        """The array of the first process; the others give None."""
        if self.count == 1:
            assert array is not None, "the first process has it"
            return array
        shape = np.zeros(9, np.int32)
        if self.leads:
            assert array is not None, "the first process has it"
            shape[0] = array.ndim
            shape[1 : 1 + array.ndim] = array.shape
        shape = np.asarray(multihost_utils.broadcast_one_to_all(shape))
        size = tuple(shape[1 : 1 + shape[0]])
        value = np.zeros(size, np.float32) if array is None else array.astype(np.float32)
        return np.asarray(multihost_utils.broadcast_one_to_all(value))

    def same_text(self, text: str) -> str:
        """The text of the first process."""
        if self.count == 1:
            return text
        data = np.zeros(_TEXT, np.uint8)
        raw = text.encode()
        data[: len(raw)] = list(raw)
        data = np.asarray(multihost_utils.broadcast_one_to_all(data))
        return bytes(data.tolist()).rstrip(b"\0").decode()

    def wait(self, name: str) -> None:
        """Until all processes are here."""
        if self.count > 1:
            multihost_utils.sync_global_devices(name)


ALONE = Hosts()


def block_edges(n: int, count: int) -> list[int]:
    """Where ``count`` blocks of ``n`` particles begin, and ``n``; all but the last are even."""
    return [i * n // count // 2 * 2 for i in range(count)] + [n]


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    expected: int | None = None,
) -> Hosts:
    """Become one of several processes; call it before anything is computed.

    Args:
        coordinator: ``host:port`` of the first process; None: as SLURM or Open MPI say.
        num_processes: how many; likewise.
        process_id: which one this is, from 0; likewise.
        expected: how many there must be.

    Raises:
        InputError: they do not find each other, or are not as many as expected.
    """
    stated: dict[str, Any] = {
        "coordinator_address": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    try:
        jax.distributed.initialize(
            **{name: value for name, value in stated.items() if value is not None},
            initialization_timeout=120,
            heartbeat_timeout_seconds=HEARTBEAT_S,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the processes of this run did not find each other: {reason}") from error
    hosts = Hosts(jax.process_index(), jax.process_count())
    if expected is not None and hosts.count != expected:
        raise InputError(f"--parallel=mpi:{expected}: there are {hosts.count} processes")
    return hosts


def _sum_in_pairs(parts: list[np.ndarray]) -> np.ndarray:
    """The sum in the order of a tree, so that a part may itself be the sum of two."""
    while len(parts) > 1:
        pairs = [sum(parts[i : i + 2][1:], parts[i]) for i in range(0, len(parts), 2)]
        parts = pairs
    return parts[0]


def _gathered(array: np.ndarray) -> np.ndarray:
    """The arrays of all processes, ``[count, ...]``; complex ones as pairs of real ones."""
    if array.dtype.kind == "c":
        pairs = _gathered(np.ascontiguousarray(array).view(np.float32))
        return np.ascontiguousarray(pairs).view(np.complex64)
    if array.dtype == np.float64:  # JAX would round it
        return np.ascontiguousarray(
            _gathered(np.ascontiguousarray(array)[..., None].view(np.uint32))
        ).view(np.float64)[..., 0]
    return np.asarray(multihost_utils.process_allgather(array))
