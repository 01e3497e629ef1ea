"""From posed particles to class averages: one pass over the raw stack.

Every average exists three times: of its even particles, of its odd ones, of all. Averages by
known sampling (``mean.tomo``) and plain means are Fourier sums, from which filtered references
are made with regard to how well every frequency was sampled; the other averagers work on the
rotated volumes.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float

from . import average, fourier, processors, resample
from ._chunk import cores, devices, on_cpu, padded_batches, read_ahead, side_by_side
from ._types import Pose, Volume, Volumes
from .averagers import Averager, Mean, MeanTomo
from .distributed import ALONE, Hosts, block_edges
from .particles import Sampling, Stack
from .processors import Processor
from .symmetry import Symmetry

Progress = Callable[[Iterable, str], Iterable]
BLOCKS = 4  # sums of the stack that are made apart


@dataclasses.dataclass(frozen=True)
class Averaging:
    """What the averaging options resolve to."""

    averager: Averager = MeanTomo()
    before: tuple[Processor, ...] = ()  # applied to every aligned particle (preavgproc1, 2)
    break_symmetry: bool = False  # averages are not symmetrised


@dataclasses.dataclass(frozen=True)
class Assigned:
    """Particles with the pose, class and weight that they are averaged with."""

    indices: np.ndarray  # [n] into the stack
    rotation: np.ndarray  # [n, 3, 3]
    shift: np.ndarray  # [n, 3]
    classes: np.ndarray  # [n]
    weight: np.ndarray  # [n]
    gain: np.ndarray | None = None  # [n, s], amplitude of the signal per shell; for Fourier sums


class Averages(Protocol):
    """Averages of ``c`` classes."""

    def halves(self) -> Float[Array, "c 2 z y x"]:
        """Of the even and the odd particles."""
        ...

    def merged(self) -> Volumes:
        """Of all particles."""
        ...

    def filtered(self, noise_to_signal: Float[Array, "c s"]) -> Volumes:
        """Wiener-filtered averages of all particles."""
        ...

    def filtered_halves(self, noise_to_signal: Float[Array, "c s"]) -> Float[Array, "c 2 z y x"]:
        """Wiener-filtered averages of the halves."""
        ...

    def together(self, weights: np.ndarray) -> "Averages":
        """All classes as one; ``weights`` ``[c, 2]`` are those of the particles in them."""
        ...

    def moved(self, shifts: np.ndarray) -> "Averages":
        """Translated by ``[c, 2, 3]`` voxels (x, y, z), class by class and half by half."""
        ...


@dataclasses.dataclass(frozen=True)
class FourierAverages:
    """Averages as Fourier sums, group ``2 * class + half``."""

    sums: average.FourierSums

    @property
    def _box(self) -> int:
        return self.sums.numerator.shape[1]

    def _all(self) -> average.FourierSums:
        return jax.tree.map(lambda x: x.reshape(-1, 2, *x.shape[1:]).sum(1), self.sums)

    def halves(self) -> Float[Array, "c 2 z y x"]:
        """Of the even and the odd particles."""
        return average.finish(self.sums).reshape(-1, 2, *(self._box,) * 3)

    def merged(self) -> Volumes:
        """Of all particles."""
        return average.finish(self._all())

    def filtered(self, noise_to_signal: Float[Array, "c s"]) -> Volumes:
        """Wiener-filtered with the sampling of every frequency (see :func:`average.finish`)."""
        return average.finish(self._all(), noise_to_signal=noise_to_signal)

    def filtered_halves(self, noise_to_signal: Float[Array, "c s"]) -> Float[Array, "c 2 z y x"]:
        """Likewise, half by half."""
        ratio = jnp.repeat(noise_to_signal, 2, 0)
        maps = average.finish(self.sums, noise_to_signal=ratio)
        return maps.reshape(-1, 2, *(self._box,) * 3)

    def together(self, weights: np.ndarray) -> "FourierAverages":
        """The sums of all classes, which know their weights."""
        del weights
        halves = jax.tree.map(lambda x: x.reshape(-1, 2, *x.shape[1:]).sum(0), self.sums)
        return FourierAverages(halves)

    def moved(self, shifts: np.ndarray) -> "FourierAverages":
        """Translated by phases."""
        return FourierAverages(average.shifted(self.sums, jnp.asarray(shifts.reshape(-1, 3))))


@dataclasses.dataclass(frozen=True)
class RealAverages:
    """Averages as volumes, ``[c, 3, z, y, x]``: even, odd, all."""

    maps: Float[Array, "c 3 z y x"]

    def halves(self) -> Float[Array, "c 2 z y x"]:
        """Of the even and the odd particles."""
        return self.maps[:, :2]

    def merged(self) -> Volumes:
        """Of all particles."""
        return self.maps[:, 2]

    def filtered(self, noise_to_signal: Float[Array, "c s"]) -> Volumes:
        """Wiener-filtered, shell by shell."""
        return jax.vmap(fourier.radial_filter)(self.maps[:, 2], 1 / (1 + noise_to_signal))

    def filtered_halves(self, noise_to_signal: Float[Array, "c s"]) -> Float[Array, "c 2 z y x"]:
        """Likewise, half by half."""
        gain = 1 / (1 + noise_to_signal)
        return jax.vmap(jax.vmap(fourier.radial_filter, (0, None)))(self.maps[:, :2], gain)

    def together(self, weights: np.ndarray) -> "RealAverages":
        """The weighted mean of the classes."""
        three = np.concatenate([weights, weights.sum(1, keepdims=True)], 1)
        share = jnp.asarray(three / np.maximum(three.sum(0), 1e-30), self.maps.dtype)
        return RealAverages((share[:, :, None, None, None] * self.maps).sum(0, keepdims=True))

    def moved(self, shifts: np.ndarray) -> "RealAverages":
        """Translated by interpolation; the average of all moves by the mean of the halves."""
        three = jnp.asarray(np.concatenate([shifts, shifts.mean(1, keepdims=True)], 1))
        pose = lambda t: Pose(jnp.eye(3), t)  # noqa: E731
        move = jax.vmap(jax.vmap(lambda v, t: resample.transform(v, pose(t))))
        return RealAverages(move(self.maps, three))


def average_classes(
    stack: Stack,
    sampling: Sampling,
    assigned: Assigned,
    symmetries: tuple[Symmetry, ...],
    settings: Averaging,
    apix: float,
    *,
    batch: int = 16,
    hosts: Hosts = ALONE,
    progress: Progress = lambda items, _: items,
) -> Averages:
    """Average the particles of every class and half, symmetrised unless told otherwise.

    Args:
        stack: raw particles.
        sampling: of the particles.
        assigned: who is averaged where, and how.
        symmetries: one per class.
        settings: the averager and what comes before it.
        apix: voxel size, angstrom.
        batch: volumes in memory at a time.
        hosts: the processes that share the work of Fourier sums; volumes that are no sums are
            averaged by each of them.
        progress: wraps the iteration over batches.
    """
    averager = settings.averager
    by_sums = averager.by_known_sampling or (isinstance(averager, Mean) and not averager.ignore0)
    if by_sums:
        blocks = _blocks(assigned, len(stack), batch, hosts)
        sums = _fourier_sums(
            stack, sampling, assigned, len(symmetries), settings, apix, blocks, progress
        )
        sums = jax.tree.map(jnp.asarray, hosts.total(sums))
        if not settings.break_symmetry:
            sums = _symmetrised_sums(sums, symmetries)
        return FourierAverages(sums)
    read = lambda item: _read(stack, sampling, assigned, item[0])  # noqa: E731
    batches = list(padded_batches(np.arange(len(assigned.indices)), batch))
    batches = read_ahead(read, progress(batches, "averaging"))
    maps = _real_maps(stack.box, sampling, assigned, len(symmetries), settings, apix, batches)
    if not settings.break_symmetry:
        maps = jnp.stack([_symmetrised_maps(m, s) for m, s in zip(maps, symmetries)])
    return RealAverages(maps)


_Batch = tuple[np.ndarray, int]  # rows of the assigned, how many are real


def lanes() -> int:
    """Blocks that are summed at the same time, on all local devices together."""
    count = len(devices())
    return min(max(cores(), count) if on_cpu() else 2 * count, BLOCKS)


def _blocks(assigned: Assigned, count: int, size: int, hosts: Hosts) -> list[list[_Batch]]:
    """Batches of this process by blocks, cut where any of ``BLOCKS`` processes would cut them.

    Those that are under way at the same time hold ``size`` particles.
    """
    parts = max(BLOCKS // hosts.count, 1) if BLOCKS % hosts.count == 0 else 1
    edges = block_edges(count, parts * hosts.count)[hosts.index * parts :][: parts + 1]
    cut = itertools.pairwise(edges)
    rows = [np.flatnonzero((assigned.indices >= a) & (assigned.indices < b)) for a, b in cut]
    most = 1 << max(max(map(len, rows)) - 1, 0).bit_length()
    return [list(padded_batches(own, min(max(size // lanes(), 1), most))) for own in rows]


def _fourier_sums(
    stack, sampling, assigned, n_classes, settings, apix, blocks: list[list[_Batch]], progress
) -> average.FourierSums:
    """Sums by blocks, several at a time, two and two together: the same bits for 1, 2, 4 processes.

    Blocks take turns, a batch each, so that of those at work no two belong to one block. Devices
    take blocks in turn.
    """
    home = [devices()[block % len(devices())] for block in range(len(blocks))]
    sums = []
    for device in home:
        with jax.default_device(device):
            sums.append(average.empty(stack.box, 2 * n_classes))
    each = min(lanes(), len(blocks))
    turns = [
        (block, batch)
        for first in range(0, len(blocks), each)
        for turn in itertools.zip_longest(*blocks[first : first + each])
        for block, batch in enumerate(turn, first)
    ]
    known = settings.averager.by_known_sampling

    def add(_: int, item: tuple[tuple[int, _Batch | None], Any]) -> None:
        (block, batch), loaded = item
        if batch is None:
            return
        (rows, real), (raw, seen) = batch, loaded
        with jax.default_device(home[block]):
            volumes, grids, pose = _posed(raw, seen, sampling, assigned, rows)
            half = assigned.indices[rows] % 2
            group = np.where(np.arange(len(rows)) < real, 2 * assigned.classes[rows] + half, -1)
            if settings.before:
                volumes = aligned_volumes(volumes, pose, settings.before, apix)
                grids = _turned(grids, pose.rotation)
                pose = Pose(jnp.broadcast_to(jnp.eye(3), pose.rotation.shape), 0 * pose.shift)
            weight = jnp.asarray(assigned.weight[rows])
            gain = None if assigned.gain is None else jnp.asarray(assigned.gain[rows])
            more = (jnp.asarray(group), weight, grids if known else None, gain)
            total = average.add(sums[block], volumes, pose, *more, reuse=True)
            sums[block] = jax.block_until_ready(total)

    def read(item: tuple[int, _Batch | None]) -> Any:
        return item[1] and _read(stack, sampling, assigned, item[1][0])

    items = read_ahead(read, progress(turns, "averaging"))
    kinds = (known, len(settings.before), sampling.stack is None, assigned.gain is None)
    like = ("averaging", stack.box, n_classes, *kinds)
    used = min(len(devices()), each)
    for _ in side_by_side(add, items, used, each // used, like):
        pass
    while len(sums) > 1:
        sums = [average.merge(a, b) for a, b in zip(sums[::2], sums[1::2])]
    return sums[0]


def _real_maps(box, sampling, assigned, n_classes, settings, apix, batches):
    averager = settings.averager
    state = averager.start(box, 3 * n_classes)
    for (rows, real), (read, seen) in batches:
        volumes, _, pose = _posed(read, seen, sampling, assigned, rows)
        volumes = aligned_volumes(volumes, pose, settings.before, apix)
        first, half = 3 * assigned.classes[rows], assigned.indices[rows] % 2
        here = np.arange(len(rows)) < real
        weight = jnp.asarray(assigned.weight[rows])
        for group in (first + half, first + 2):
            state = averager.add(state, volumes, jnp.asarray(np.where(here, group, -1)), weight)
    return averager.finish(state).reshape(n_classes, 3, *(box,) * 3)


def _read(stack, sampling, assigned, rows):
    """Particles and their sampling, as they are."""
    indices = assigned.indices[rows]
    return stack.read(indices), sampling.grids(indices)


def _posed(volumes, grids, sampling, assigned, rows):
    """Particles times their sampling, the sampling, and the poses of a batch."""
    grids, volumes = jnp.asarray(grids), jnp.asarray(volumes)
    if not sampling.premultiplied:
        volumes = average.apply_sampling(volumes, grids)
    pose = Pose(jnp.asarray(assigned.rotation[rows]), jnp.asarray(assigned.shift[rows]))
    return volumes, grids, pose


@eqx.filter_jit
def aligned_volumes(
    volumes: Volumes, pose: Pose, before: tuple[Processor, ...], apix: float
) -> Volumes:
    """Particles in the reference frame, processed; one after the other.

    Args:
        volumes: ``[n, z, y, x]``.
        pose: of each, particle to reference, voxels.
        before: processors, in their order.
        apix: angstrom per voxel.
    """

    def one(item: tuple[Volume, Pose]) -> Volume:
        volume, own = item
        return processors.apply(before, resample.transform(volume, own), apix)

    return jax.lax.map(one, (volumes, pose))


@jax.jit
def _turned(grids: Array, rotation: Float[Array, "n 3 3"]) -> Volumes:
    """Sampling grids in the reference frame, ``W(R^T q)``."""
    box = grids.shape[-1]
    axis = jnp.arange(box, dtype=jnp.float32) - box // 2
    z, y, x = jnp.meshgrid(axis, axis, axis, indexing="ij")

    def one(item: tuple[Array | None, Array]) -> Array:
        own, turn = item
        rows = [turn[0, i] * x + turn[1, i] * y + turn[2, i] * z + box // 2 for i in (2, 1, 0)]
        return map_coordinates(grids if own is None else own, rows, order=1)

    return jax.lax.map(one, (None if grids.ndim == 3 else grids, rotation))


def _symmetrised_sums(
    sums: average.FourierSums, symmetries: tuple[Symmetry, ...]
) -> average.FourierSums:
    if all(len(s) == 1 for s in symmetries):
        return sums
    parts = []
    for c, symmetry in enumerate(symmetries):
        part = jax.tree.map(lambda x, c=c: x[2 * c : 2 * c + 2], sums)
        parts.append(average.symmetrise(part, symmetry.operators, symmetry.shifts))
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def _symmetrised_maps(maps: Volumes, symmetry: Symmetry) -> Volumes:
    if len(symmetry) == 1:
        return maps
    copies = [
        jax.vmap(lambda v, r=r, t=t: resample.transform(v, Pose(r, t)))(maps)
        for r, t in zip(np.asarray(symmetry.operators), np.asarray(symmetry.shifts))
    ]
    return jnp.mean(jnp.stack(copies), 0)
