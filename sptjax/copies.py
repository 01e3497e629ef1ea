"""The copies in which particles are aligned: read, prepared and whitened once per run.

Particles are aligned as a *coarse*, perhaps a *fine* and (for a last polish) a *full* copy, each
with its own preprocessing and sampling, all made from the raw stack.
"""

import dataclasses
from collections.abc import Callable, Iterable

import equinox as eqx
import numpy as np

from ._types import Status
from .calibration import pilot_rows
from .distributed import ALONE, Hosts
from .particles import Particles, Sampling, Stack, load_particles
from .preprocess import Pipeline, mean_power, prepare_stack, prepared_sampling
from .rows import IN_MEMORY, Storage

Progress = Callable[[Iterable, str], Iterable]
_FOR_POWER = 200  # particles whose spectrum stands for all


@dataclasses.dataclass(frozen=True)
class Pipelines:
    """Preprocessing of each copy; None: no such stage."""

    coarse: Pipeline = Pipeline()
    fine: Pipeline | None = None
    full: Pipeline | None = None


@dataclasses.dataclass(frozen=True)
class Copy:
    """All particles under one preprocessing."""

    particles: Particles
    pipeline: Pipeline
    scale: float  # raw voxels per voxel of the copy
    power: np.ndarray | None  # [s], mean radial power of its particles, if asked for
    pilot: Particles | None = None  # a few of the stack, where the particles are a part of it


@dataclasses.dataclass(frozen=True)
class Copies:
    """Where each stage of the alignment sees the particles; None: no such stage."""

    coarse: Copy
    fine: Copy | None = None
    full: Copy | None = None
    status: np.ndarray | None = None  # [n], of the stack; those of the copies if None
    hosts: Hosts = ALONE

    @classmethod
    def of(cls, particles: Particles) -> "Copies":
        """Particles without preprocessing, in one stage."""
        return cls(Copy(particles, Pipeline(), 1.0, None))

    @property
    def usable(self) -> np.ndarray:
        """Numbers of all particles of the stack that can be aligned and averaged."""
        status = self.coarse.particles.status if self.status is None else self.status
        return np.flatnonzero(status == Status.OK)


def load_copies(
    stack: Stack,
    sampling: Sampling,
    pipelines: Pipelines,
    apix: float,
    *,
    spectra: bool = False,
    storage: Storage = IN_MEMORY,
    batch: int = 32,
    hosts: Hosts = ALONE,
    progress: Progress = lambda items, _: items,
) -> Copies:
    """Read the stack once per copy.

    Args:
        stack: raw particles.
        sampling: of the raw particles.
        pipelines: of every stage.
        apix: voxel size of the raw particles, angstrom.
        spectra: measure the mean radial power of every copy.
        storage: where their coefficients are kept.
        batch: raw volumes in memory at a time.
        hosts: the processes that share the stack.
        progress: wraps iterations over batches.
    """

    def load(pipeline: Pipeline) -> Copy:
        prepared = prepare_stack(stack, pipeline, apix)
        seen = prepared_sampling(sampling, pipeline, stack.box)
        particles = load_particles(
            prepared,
            seen,
            prepared.box // 2 - 2,
            batch=batch,
            storage=storage,
            hosts=hosts,
            progress=progress,
        )
        usable = np.flatnonzero(_whole(particles.status, len(stack), hosts) == Status.OK)
        rows = usable[:: max(1, len(usable) // _FOR_POWER)]
        filtered = pipeline.lowpass is not None or pipeline.highpass is not None
        power = np.asarray(mean_power(prepared, rows)) if spectra or filtered else None
        if filtered and power is not None:
            particles = _weighted_by_filters(
                particles, stack, sampling, pipeline, apix, rows, power
            )
        pilot = None
        if hosts.count > 1:
            pilot = _pilot(particles, prepared, seen, pilot_rows(usable))
        return Copy(particles, pipeline, pipeline.scale(stack.box), power, pilot)

    coarse = load(pipelines.coarse)
    made = [coarse]
    others = []
    for pipeline in (pipelines.fine, pipelines.full):
        same = [copy for copy in made if eqx.tree_equal(copy.pipeline, pipeline)]
        if pipeline is not None and not same:
            made.append(load(pipeline))
            same = made[-1:]
        others.append(None if pipeline is None else same[0])
    status = _whole(coarse.particles.status, len(stack), hosts)
    return Copies(coarse, *others, status=status, hosts=hosts)


def _whole(status: np.ndarray, count: int, hosts: Hosts) -> np.ndarray:
    """Status of all particles from those of the own block."""
    first, last = hosts.block(count)
    whole = np.zeros(count, status.dtype)
    whole[first:last] = status
    return hosts.joined(whole)


def _pilot(particles: Particles, prepared: Stack, seen: Sampling, rows: np.ndarray) -> Particles:
    """A few particles of the whole stack, read by every process."""
    if seen.stack is not None:
        seen = dataclasses.replace(seen, stack=_Rows(seen.stack, rows))
    few = load_particles(_Rows(prepared, rows), seen, prepared.box // 2 - 2)
    return dataclasses.replace(few, noise=particles.noise, mean_sampling=particles.mean_sampling)


def _weighted_by_filters(
    particles: Particles,
    stack: Stack,
    sampling: Sampling,
    pipeline: Pipeline,
    apix: float,
    rows: np.ndarray,
    power: np.ndarray,
) -> Particles:
    """The noise power of the copy without its filters, so that they weight the score.

    Whitening by the noise of the filtered particles would undo what the user asked for.
    """
    plain = dataclasses.replace(pipeline, lowpass=None, highpass=None)
    unfiltered = prepare_stack(stack, plain, apix)
    few = _Rows(unfiltered, rows)
    seen = prepared_sampling(sampling, plain, stack.box)
    if seen.stack is not None:
        seen = dataclasses.replace(seen, stack=_Rows(seen.stack, rows))
    kmax = unfiltered.box // 2 - 2
    noise = load_particles(few, seen, kmax).noise
    passed = power[1 : kmax + 1] / np.maximum(
        np.asarray(mean_power(unfiltered, rows))[1 : kmax + 1], 1e-30
    )
    # particles are scaled to unit power: where the filter passes, both noises must agree
    top = int(np.argmax(passed)) + 1
    shell = np.rint(np.linalg.norm(particles.vectors, axis=1)).astype(int) == top
    scale = particles.noise[shell].mean() / noise[shell].mean()
    return dataclasses.replace(particles, noise=(noise * scale).astype(np.float32))


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Some volumes of a stack, as a stack."""

    stack: Stack
    rows: np.ndarray

    @property
    def box(self) -> int:
        return self.stack.box

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, indices: np.ndarray) -> np.ndarray:
        return self.stack.read(self.rows[np.asarray(indices)])
