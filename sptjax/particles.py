"""Particles as Fourier coefficients: read once, kept on the half ball for every round.

They are kept in memory or, where that is too small, in a file (:mod:`sptjax.rows`).

Reading also finds what is wrong with single particles (NaN, no contrast: excluded, the run
goes on) and accumulates the mean power of the stack, from which the wedge and the noise are
estimated. Raw voxels are read again only for averaging.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Protocol

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from . import fourier
from ._chunk import padded_batches, read_ahead
from ._types import Status
from .comparators import Comparator, Matched
from .distributed import ALONE, Hosts
from .noise import noise_power
from .rows import IN_MEMORY, Rows, Storage
from .score import Observations, observe

Progress = Callable[[Iterable, str], Iterable]
WHOLE = (0.0, np.inf)  # no limits of frequency


class Stack(Protocol):
    """What reading needs of a stack of volumes."""

    @property
    def box(self) -> int:
        """Edge of the volumes, voxels."""
        ...

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> np.ndarray:
        """float32 ``[len(indices), z, y, x]``."""
        ...


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Which part of Fourier space particles have seen, and how well.

    ``shared`` is one centred grid for all; otherwise ``stack`` holds one grid per
    particle. ``premultiplied`` particles are already multiplied by it.
    """

    shared: np.ndarray | None  # [z, y, x]
    stack: Stack | None = None
    premultiplied: bool = False

    def grids(self, indices: np.ndarray) -> np.ndarray:
        """Grids of the given particles: ``[z, y, x]`` if shared, else ``[b, z, y, x]``."""
        if self.stack is not None:
            return np.maximum(self.stack.read(indices), 0.0)
        assert self.shared is not None, "one of the two is given"
        return self.shared


@dataclasses.dataclass(frozen=True)
class Particles:
    """Coefficients of all particles on the half ball, scaled to unit mean power.

    ``coefficients`` complex64 ``[n, K]``, multiplied by the sampling; ``sampling`` float32
    ``[1 or n, K]``, and its mean over the particles; ``noise`` float32 ``[K]`` per unit of
    sampling; ``status`` per particle; ``gain`` float32 ``[K]`` of a filter. Where several
    processes share a stack, these are ``len(status)`` particles from number ``first`` on;
    indices are those of the stack everywhere.
    """

    coefficients: Rows
    sampling: Rows
    mean_sampling: np.ndarray  # [K]
    noise: np.ndarray  # [K]
    status: np.ndarray  # [n]
    vectors: np.ndarray  # [K, 3], (kx, ky, kz) in Fourier pixels
    box: int
    gain: np.ndarray | None = None  # [K]
    first: int = 0
    stack_size: int | None = None  # particles of all processes; the same if None

    def __len__(self) -> int:
        return len(self.coefficients)

    def read(self, indices: np.ndarray, size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Filtered coefficients of some particles ``[b, size]``, and their sampling.

        Args:
            indices: which.
            size: how many frequencies; all of them if None.

        Returns:
            complex64 ``[b, size]`` and float32 ``[1 or b, size]``.
        """
        one, indices = len(self.sampling) == 1, np.asarray(indices) - self.first
        sampling = self.sampling.read(np.zeros(1, int) if one else indices, size)
        values = self.coefficients.read(indices, size)
        return values if self.gain is None else values * self.gain[:size], sampling

    @property
    def usable(self) -> np.ndarray:
        """Indices of the particles that can be aligned and averaged."""
        return self.first + np.flatnonzero(self.status == Status.OK)

    def observations(
        self,
        indices: np.ndarray,
        comparator: Comparator,
        size: int | None = None,
        *,
        apix: float = 1.0,
        band: tuple[float, float] = WHOLE,
    ) -> Observations:
        """Whitened observations of a batch, of the first ``size`` frequencies.

        Args:
            indices: which particles.
            comparator: whose weights to whiten by; the noise power if ``matched``.
            size: how many frequencies; all of them if None.
            apix: voxel size of the particles, angstrom, for a comparator's limits of resolution.
            band: first and last ``|k|`` that counts, Fourier pixels.
        """
        values, sampling = self.read(indices, size)
        return _observe(
            jnp.asarray(values),
            jnp.asarray(sampling),
            jnp.asarray(self.whitening(comparator, apix, band)[:size]),
            unit_norm=not isinstance(comparator, Matched),
        )

    def whitening(
        self, comparator: Comparator, apix: float = 1.0, band: tuple[float, float] = WHOLE
    ) -> np.ndarray:
        """What a comparator divides power by, ``[K]``; infinite where it does not look.

        The noise for ``matched``, the inverse of the weights of other correlations, and 1 for
        comparators that are no correlations.
        """
        matched = isinstance(comparator, Matched)
        if matched and band == WHOLE:
            return self.noise
        radius = np.linalg.norm(self.vectors, axis=1).astype(np.float32)
        weight = comparator.linear_weight(jnp.asarray(radius), self.box, apix)
        weight = np.ones_like(radius) if weight is None else np.asarray(weight)
        inside = (weight > 0) & (radius >= band[0] - 1e-4) & (radius <= band[1] + 1e-4)
        noise = self.noise if matched else 1 / np.where(weight > 0, weight, 1)
        return np.where(inside, noise, np.inf).astype(np.float32)

    def with_noise_share(self, share: np.ndarray) -> "Particles":
        """The same particles with the signal taken out of their noise power.

        Where the power is mostly signal its angular pattern is the signal's, so that the
        shell mean takes its place in proportion.

        Args:
            share: part of the power that is noise, per shell.
        """
        shells = np.rint(np.linalg.norm(self.vectors, axis=1)).astype(int)
        seen = self.mean_sampling > 0
        count = np.maximum(np.bincount(shells[seen], minlength=len(share)), 1)
        mean = np.bincount(shells[seen], self.noise[seen], minlength=len(share)) / count
        part = share[shells]
        mixed = part * self.noise + (1 - part) * mean[shells]
        noise = np.where(seen, part * mixed, 1.0).astype(np.float32)
        return dataclasses.replace(self, noise=noise)

    def mean_weight(
        self, comparator: Comparator, apix: float = 1.0, band: tuple[float, float] = WHOLE
    ) -> np.ndarray:
        """Mean squared observation weight on the half ball, ``[K]``; as :meth:`observations`."""
        return self.mean_sampling / self.whitening(comparator, apix, band)


_observe = eqx.filter_jit(observe)


@eqx.filter_jit
def _ball(
    volumes: Float[Array, "b z y x"],
    vectors: Int[Array, "k 3"],
    weight: Float[Array, "#b k"],
    counted: Float[Array, " b"],
    premultiplied: bool,
) -> tuple[Array, Array]:
    """Coefficients times their sampling, scaled to unit mean power, and their summed power."""
    finite = jnp.isfinite(volumes)
    values = fourier.ball_coefficients(jnp.where(finite, volumes, 0.0), vectors)
    real, imag = (values.real, values.imag)
    if not premultiplied:
        real, imag = real * weight, imag * weight
    power = real * real + imag * imag
    mean = power.sum(1, keepdims=True) / jnp.maximum(weight.sum(1, keepdims=True), 1e-30)
    scale = counted[:, None] * lax.rsqrt(jnp.maximum(mean, 1e-30))
    total = (power * scale * scale).sum(0)
    return lax.complex(real * scale, imag * scale), total


@eqx.filter_jit
def _grids_on_ball(grids: Float[Array, "b z y x"], vectors: Int[Array, "k 3"]) -> Array:
    return fourier.ball_samples(grids, vectors)


def check_volumes(volumes: np.ndarray) -> np.ndarray:
    """Status of every volume of a batch, int ``[b]``.

    Args:
        volumes: ``[b, n, n, n]``.
    """
    status = np.full(len(volumes), Status.OK, np.int32)
    flat = volumes.reshape(len(volumes), -1)
    spread = np.ptp(flat, axis=1)
    status[spread == 0] = Status.CONSTANT
    status[~np.isfinite(spread)] = Status.NONFINITE
    return status


def load_particles(
    stack: Stack,
    sampling: Sampling,
    kmax: int,
    *,
    batch: int = 32,
    mirror_beam: bool = True,
    storage: Storage = IN_MEMORY,
    hosts: Hosts = ALONE,
    progress: Progress = lambda items, _: items,
) -> Particles:
    """Read a stack and keep its coefficients up to ``kmax``.

    Noise and mean sampling are those of the whole stack, whoever reads it.

    Args:
        stack: volumes of one even box.
        sampling: wedge or weights of the particles.
        kmax: last shell that any stage will use, Fourier pixels, below ``box / 2``.
        batch: volumes in memory at a time.
        mirror_beam: the sampling is symmetric in ``kz`` (see :func:`noise_power`).
        storage: where the coefficients are kept.
        hosts: the processes that share the stack.
        progress: wraps the iteration over batches.
    """
    vectors = fourier.half_ball(kmax)
    index = jnp.asarray(vectors)
    first, last = hosts.block(len(stack))
    n, size = last - first, len(vectors)
    shared = sampling.shared is not None
    coefficients = storage.rows(n, size, np.complex64)
    seen = storage.rows(1 if shared else n, size, np.float32)
    weight = jnp.ones((1, size), jnp.float32)
    if sampling.shared is not None:
        weight = _grids_on_ball(jnp.asarray(sampling.shared)[None], index)
        seen.write(np.zeros(1, int), np.asarray(weight))
    status = np.empty(n, np.int32)
    total, mean_seen = np.zeros(size), np.zeros(size)

    def read(item: tuple[np.ndarray, int]) -> tuple[np.ndarray, np.ndarray | None]:
        rows = first + item[0]
        return stack.read(rows), None if shared else sampling.grids(rows)

    batches = progress(list(padded_batches(np.arange(n), batch)), "reading")
    for (indices, real), (volumes, grids) in read_ahead(read, batches):
        here = indices[:real]
        found = check_volumes(volumes)
        status[here] = found[:real]
        counted = ((found == Status.OK) & (np.arange(len(indices)) < real)).astype(np.float32)
        if grids is not None:
            weight = _grids_on_ball(jnp.asarray(grids), index)
            rows = np.asarray(weight)
            seen.write(here, rows[:real])
            mean_seen += counted @ rows
        values, power = _ball(
            jnp.asarray(volumes), index, weight, jnp.asarray(counted), sampling.premultiplied
        )
        coefficients.write(here, np.asarray(values)[:real])
        total += np.asarray(power)
    total, mean_seen, good = hosts.total((total, mean_seen, np.sum(status == Status.OK)))
    count = max(int(good), 1)
    mean = np.asarray(weight)[0] if shared else (mean_seen / count).astype(np.float32)
    noise = noise_power(total / count, mean, vectors, count, mirror_beam=mirror_beam)
    return Particles(
        coefficients,
        seen,
        mean,
        noise,
        status,
        vectors,
        stack.box,
        first=first,
        stack_size=len(stack),
    )
