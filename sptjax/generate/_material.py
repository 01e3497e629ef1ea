"""What references are made from: particles in precision weights, and averages of them.

Particle ``i`` is kept as ``X_i = P_i / N`` with precision ``Q_i = W_i / N``, where ``P_i`` holds
its coefficients times their sampling ``W_i`` and ``N`` is the noise power per unit of sampling.
Both add up when particles are averaged, ``X = sum_i X_i(R_i^T q)``, ``Q = sum_i Q_i(R_i^T q)``, so
that an average of many particles is an object of the same kind. Every particle is interpolated
once, at its composed pose, however many averages it went through.

How much of the power is signal is measured from the particles alone: the noise fills the box,
the signal its middle. With the power ``S`` of the signal per shell an object is compared as

``a = sqrt(S) X / (1 + S Q)``  with weight  ``w = Q / (1 + S Q)``,

which counts a frequency by how much is known about it, and a clear one no more than fully.
"""

import dataclasses
from collections.abc import Callable, Iterable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from .. import average, fourier, masks
from .._chunk import padded_batches
from .._errors import InputError
from .._types import Pose
from ..copies import Pipelines, load_copies
from ..particles import Particles, Sampling, Stack
from ..preprocess import Pipeline, mean_power, prepare_stack

Progress = Callable[[Iterable, str], Iterable]
MOST_MEASURED = 64  # particles from which the radius and the signal are measured
SOFT = 3.0  # voxels, edge of the mask
LEAST_SHARE, MOST_SHARE = 1e-3, 0.95  # of the power that may be signal


@dataclasses.dataclass(frozen=True)
class Objects:
    """Particles or averages as they are compared, on the half ball."""

    data: np.ndarray  # complex64 [m, K]: a
    weight: np.ndarray  # float32 [m, K]: w

    def __len__(self) -> int:
        return len(self.data)

    def joined(self, other: "Objects") -> "Objects":
        """One after the other."""
        return Objects(
            np.concatenate([self.data, other.data]), np.concatenate([self.weight, other.weight])
        )

    def take(self, rows: np.ndarray) -> "Objects":
        """Some of them."""
        return Objects(self.data[rows], self.weight[rows])


@dataclasses.dataclass(frozen=True)
class Material:
    """Particles from which references are made. Made by :func:`prepare`."""

    stack: Stack  # raw
    sampling: Sampling  # of the raw particles
    apix: float  # of the raw particles, angstrom
    particles: Particles  # copies, masked
    signal: np.ndarray  # [K], power of the signal
    radius_vox: float  # of the particle, voxels of the copies
    filled: float  # share of the copy's box that is inside the mask
    scale: float  # raw voxels per voxel of the copies
    pipeline: Pipeline  # that the copies went through, with the mask

    def __len__(self) -> int:
        return len(self.particles)

    @property
    def vectors(self) -> np.ndarray:
        """Frequencies of the half ball, ``[K, 3]``."""
        return self.particles.vectors

    @property
    def usable(self) -> np.ndarray:
        """Indices of the particles that can be aligned and averaged."""
        return self.particles.usable

    def singles(self, rows: np.ndarray) -> Objects:
        """Particles as objects, not interpolated."""
        data, precision = self._precise(rows)
        return self._weighted(data, np.broadcast_to(precision, data.shape))

    def averages(
        self,
        rows: np.ndarray,
        rotation: np.ndarray,
        shift: np.ndarray,
        group: np.ndarray,
        count: int,
        *,
        batch: int = 16,
        progress: Progress = lambda items, _: items,
    ) -> Objects:
        """Averages of posed particles as objects.

        Args:
            rows: particles.
            rotation: of each, particle to average, ``[len(rows), 3, 3]``.
            shift: ``[len(rows), 3]``, raw voxels.
            group: the average that each belongs to.
            count: how many averages.
            batch: particles at a time.
            progress: wraps the iteration over batches.
        """
        sums = Sums.empty(self, count)
        return sums.add(self, rows, rotation, shift, group, batch=batch, progress=progress).objects(
            self
        )

    def of_map(self, volume: np.ndarray) -> Objects:
        """A map as an object that is known without noise.

        Args:
            volume: ``[n, n, n]``, raw sampling, solvent at zero.
        """
        copy = self.pipeline(jnp.asarray(volume, jnp.float32)[None], self.apix)
        data = fourier.ball_coefficients(copy, jnp.asarray(self.vectors))
        root = np.sqrt(self.signal)
        return Objects((np.asarray(data) / root).astype(np.complex64), 1 / self.signal[None])

    def _precise(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``X`` of some particles ``[b, K]``, and ``Q`` in one row or one for each."""
        values, seen = self.particles.read(rows)
        noise = self.particles.noise
        return (values / noise).astype(np.complex64), seen / noise

    def _weighted(self, data: np.ndarray, precision: np.ndarray) -> Objects:
        damped = 1 / (1 + self.signal * precision)
        scaled = data * (np.sqrt(self.signal) * damped)
        return Objects(scaled.astype(np.complex64), (precision * damped).astype(np.float32))


@dataclasses.dataclass(frozen=True)
class Sums:
    """``X`` and ``Q`` of averages, on the half ball."""

    data: np.ndarray  # complex64 [c, K]
    precision: np.ndarray  # [c, K]

    @classmethod
    def empty(cls, material: Material, count: int) -> "Sums":
        """Of ``count`` averages that hold nothing."""
        shape = (count, len(material.vectors))
        return cls(np.zeros(shape, np.complex64), np.zeros(shape, np.float32))

    def forget(self, rate: float) -> "Sums":
        """Everything so far counts less by a part ``rate``."""
        return Sums((1 - rate) * self.data, (1 - rate) * self.precision)

    def add(
        self,
        material: Material,
        rows: np.ndarray,
        rotation: np.ndarray,
        shift: np.ndarray,
        group: np.ndarray,
        *,
        batch: int = 16,
        progress: Progress = lambda items, _: items,
    ) -> "Sums":
        """With more particles; arguments as :meth:`Material.averages`."""
        data, precision = self.data.copy(), self.precision.copy()
        vectors = jnp.asarray(material.vectors, jnp.float32)
        batches = list(padded_batches(np.arange(len(rows)), min(batch, max(len(rows), 1))))
        for here, real in progress(batches, "averaging"):
            own, seen = material._precise(rows[here])
            pose = Pose(jnp.asarray(rotation[here]), jnp.asarray(shift[here] / material.scale))
            x, q = _posed(
                jnp.asarray(own), jnp.asarray(seen), pose, vectors, material.particles.box
            )
            np.add.at(data, group[here[:real]], np.asarray(x)[:real])
            np.add.at(precision, group[here[:real]], np.asarray(q)[:real])
        return Sums(data, precision)

    def objects(self, material: Material) -> Objects:
        """As they are compared."""
        return material._weighted(self.data, np.maximum(self.precision, 0))


@eqx.filter_jit
def _posed(data: Array, precision: Array, pose: Pose, vectors: Array, box: int):
    volumes = jax.vmap(lambda x: on_grid(x, vectors, box))(data)
    grids = jax.vmap(lambda q: on_centred_grid(q, vectors, box))(precision)
    one = grids[0] if grids.shape[0] == 1 and volumes.shape[0] > 1 else grids
    return average.posed_coefficients(volumes, pose, one, vectors)


def on_grid(
    data: Complex[Array, " k"], vectors: Float[Array, "k 3"], box: int
) -> Float[Array, "z y x"]:
    """The volume of half-ball coefficients (origin at the centre voxel), zero beyond them.

    Args:
        data: coefficients.
        vectors: their frequencies, all within ``|k| < box / 2``.
        box: edge of the volume.
    """
    values = data * jnp.conj(fourier.centre_phase(vectors, box))
    kx, ky, kz = vectors.astype(jnp.int32).T
    width = box // 2 + 1
    place = ((kz % box) * box + ky % box) * width + kx
    mate = jnp.where(kx == 0, (-kz % box) * box * width + (-ky % box) * width, box * box * width)
    flat = jnp.zeros(box * box * width, values.dtype).at[place].set(values)
    flat = flat.at[mate].set(jnp.conj(values), mode="drop")
    return fourier.irfftn(flat.reshape(box, box, width), box)


def on_centred_grid(
    values: Float[Array, " k"], vectors: Float[Array, "k 3"], box: int
) -> Float[Array, "z y x"]:
    """Half-ball values and their mates on a centred Fourier grid, zero elsewhere."""
    kx, ky, kz = vectors.astype(jnp.int32).T
    flat, middle = jnp.zeros(box**3, values.dtype), box // 2
    for sign in (1, -1):
        place = ((sign * kz + middle) * box + sign * ky + middle) * box + sign * kx + middle
        flat = flat.at[place].set(values)
    return flat.reshape(box, box, box)


# ---------------------------------------------------------------- from particles to material


def prepare(
    stack: Stack,
    sampling: Sampling,
    apix: float,
    pipeline: Pipeline | None = None,
    *,
    progress: Progress = lambda items, _: items,
) -> Material:
    """Read the particles, find their radius and their signal, mask them.

    Args:
        stack: raw particles.
        sampling: of the raw particles.
        apix: their voxel size, angstrom.
        pipeline: preprocessing of the copies that are aligned; a soft sphere as wide as the
            particles is put on them unless it holds a mask.
        progress: wraps iterations over batches.

    Raises:
        InputError: fewer than two usable particles.
    """
    own = pipeline or Pipeline()
    rows = np.unique(np.linspace(0, len(stack) - 1, min(MOST_MEASURED, len(stack))).astype(int))
    radius = measured_radius(stack, rows)
    if own.mask is None and own.mask_volume is None:
        ball = masks.sphere(stack.box, radius, SOFT)
        own = dataclasses.replace(own, mask_volume=ball)
    copies = load_copies(stack, sampling, Pipelines(own), apix, progress=progress)
    particles, scale = copies.coarse.particles, copies.coarse.scale
    if len(particles.usable) < 2:
        raise InputError("fewer than two particles are usable")
    mask = own.mask_image(stack.box, apix)
    assert mask is not None, "there is always one"
    share = _signal_share(stack, own, mask, apix, particles)
    power = _shell_means(particles)
    signal = share * power
    noise = particles.with_noise_share(1 - share)
    shell = np.rint(np.linalg.norm(particles.vectors, axis=1)).astype(int)
    edge = particles.box * scale
    return Material(
        stack, sampling, apix, noise,
        signal[shell].astype(np.float32),
        min(radius, float(stack.box // 2)) / scale,
        float(np.mean(np.asarray(mask) ** 2)) * (stack.box / edge) ** 3,
        scale,
        own,
    )  # fmt: skip


def measured_radius(stack: Stack, rows: np.ndarray) -> float:
    """Radius in voxels within which the mean square of the particles exceeds that of the border.

    Half the box where nothing stands out.
    """
    box = stack.box
    axis = np.arange(box) - box // 2
    shell = np.rint(np.sqrt(sum(a**2 for a in np.meshgrid(axis, axis, axis)))).astype(int).ravel()
    total = np.zeros(shell.max() + 1)
    for i in rows:
        volume = stack.read(np.array([i]))[0].astype(np.float64)
        if np.isfinite(volume).all() and np.ptp(volume) > 0:
            square = (volume - np.median(volume)) ** 2
            total += np.bincount(shell, (square / square.mean()).ravel())
    profile = (total / np.maximum(np.bincount(shell), 1))[: box // 2]
    border = np.median(profile[-max(box // 12, 2) :])
    excess = profile - border
    if not excess.max() > 0.02 * border:
        return float(box // 2 - 1)
    inside = np.flatnonzero(excess > 0.05 * excess.max())
    return float(np.clip(inside.max() + 2, 4, box // 2 - 1))


def _shell_means(particles: Particles) -> np.ndarray:
    """Mean noise power of every shell, as far as it was sampled."""
    shell = np.rint(np.linalg.norm(particles.vectors, axis=1)).astype(int)
    seen = particles.mean_sampling > 0
    size = particles.box // 2 + 1
    count = np.bincount(shell[seen], minlength=size)
    return np.bincount(shell[seen], particles.noise[seen], minlength=size) / np.maximum(count, 1)


def _signal_share(
    stack: Stack, pipeline: Pipeline, mask: Array, apix: float, particles: Particles
) -> np.ndarray:
    """Part of the power of the copies that is signal, per shell of the copies.

    One minus the power of the border, which is noise, over that of the middle, both per voxel;
    smoothed over three shells.
    """
    rows = particles.usable
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(MOST_MEASURED, len(rows))).astype(int))]
    box = stack.box
    whole = dataclasses.replace(pipeline, mask=None, clip=0, shrink=0)
    outside = 1 - np.asarray(masks.sphere(box, min(box / 2 - 1, _reach(mask)), SOFT))
    powers = []
    for window in (np.asarray(mask), outside):
        own = dataclasses.replace(whole, mask_volume=jnp.asarray(window, jnp.float32))
        power = np.asarray(mean_power(prepare_stack(stack, own, apix), rows))
        powers.append(power / np.mean(window**2))
    share = 1 - powers[1] / np.maximum(powers[0], 1e-30)
    share = np.convolve(np.pad(share, 1, mode="edge"), np.full(3, 1 / 3), "valid")
    shells = np.arange(particles.box // 2 + 1) * (box / (particles.box * pipeline.scale(box)))
    found = np.interp(shells, np.arange(len(share)), share)
    return np.clip(found, LEAST_SHARE, MOST_SHARE)


def _reach(mask: Array) -> float:
    """Radius up to which a mask is mostly open."""
    box = mask.shape[-1]
    volume = float(np.mean(np.asarray(mask) > 0.5)) * box**3
    return (3 * volume / (4 * np.pi)) ** (1 / 3)
