"""Classes at fixed poses: every particle is brought into the reference frame once, then sorted.

A mixture of ``c`` maps is fitted to whitened coefficients ``x_i = w_i V + noise`` of unit
variance, where ``w_i`` in 0 ... 1 says how well particle ``i`` has seen a frequency. Missing
coefficients contribute nothing. Class maps are drawn towards the common mean,

``m_c = (sum_j r_jc x_j + tau mean) / (sum_j r_jc w_j + tau)``,

and every particle is left out of the maps that it is compared with. Without that its own noise,
which is part of its class average, ties it to whatever class it happens to be in: with a few
hundred particles that outweighs the differences between conformations. For the same reason the
leave-one-out likelihood chooses between starts and between strengths ``tau``. The labels of the
others are fitted, so that even two groups of one kind gain something: classes count as real if
they gain clearly more than the same fit does after the differences between the particles and
their mean were given random phases.
"""

import dataclasses
from collections.abc import Callable, Iterable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float
from scipy.cluster.vq import kmeans2

from . import average, fourier
from ._chunk import padded_batches, read_ahead
from ._types import Pose
from .distributed import ALONE, Hosts
from .particles import Sampling, Stack

Progress = Callable[[Iterable, str], Iterable]
VARIATIONS = (0.02, 0.1, 0.5)  # power of class differences over that of the mean map
BUDGET_BYTES = 2**30
BEYOND_DOUBT = 1.6  # 86 % of 200 particles right, 27 % of their poses wrong: 1.7
CLEARLY = 1.25  # one class of 200 particles: 1.1; classes told apart with 87 %: 1.4


def widest_band(count: int, box: int) -> int:
    """Last shell that fits into memory for ``count`` particles, at most ``box / 2 - 2``."""
    kmax = box // 2 - 2
    while kmax > 4 and 12 * count * fourier.half_ball_size(kmax) > BUDGET_BYTES:
        kmax -= 1
    return kmax


class AlignedBand(eqx.Module):
    """Particles in the reference frame: whitened coefficients of the half ball."""

    data: Complex[Array, "n k"]
    weight: Float[Array, "n k"]  # 0 ... 1
    signal: Float[Array, " k"]  # power of the mean map over that of the noise, by shell
    scale: Float[Array, " k"] | None = None  # by which transforms were multiplied to be whitened


@dataclasses.dataclass(frozen=True)
class Split:
    """Result of :func:`split`."""

    responsibility: np.ndarray  # [n, c], rows sum to one
    gain: float  # leave-one-out log-likelihood over that of one class, per particle
    chance: float  # the same where there are no classes

    @property
    def supported(self) -> bool:
        """Whether the particles tell these classes apart."""
        return self.gain > CLEARLY * max(self.chance, 0.0)

    @property
    def beyond_doubt(self) -> bool:
        """Whether they tell them apart even if poses are wrong."""
        return self.gain > BEYOND_DOUBT * max(self.chance, 0.0)

    @property
    def classes(self) -> np.ndarray:
        """Most likely class of every particle, ``[n]``."""
        return np.argmax(self.responsibility, 1)


def align_band(
    stack: Stack,
    sampling: Sampling,
    indices: np.ndarray,
    rotation: np.ndarray,
    shift: np.ndarray,
    kmax: int,
    *,
    batch: int = 16,
    hosts: Hosts = ALONE,
    progress: Progress = lambda items, _: items,
) -> AlignedBand:
    """Coefficients of posed particles up to shell ``kmax``, whitened shell by shell.

    Args:
        stack: the particles.
        sampling: wedge or weights.
        indices: ``[n]``, which of them.
        rotation: ``[len(indices), 3, 3]``, particle to reference.
        shift: ``[len(indices), 3]``, voxels.
        kmax: last shell, Fourier pixels.
        batch: volumes in memory at a time.
        hosts: the processes that share the work.
        progress: wraps the iteration over batches.
    """
    vectors = fourier.half_ball(kmax)
    data = np.empty((len(indices), len(vectors)), np.complex64)
    weight = np.empty(data.shape, np.float32)
    points = jnp.asarray(vectors, jnp.float32)
    rows = np.arange(*hosts.block(len(indices)))
    read = lambda item: (  # noqa: E731
        stack.read(indices[item[0]]),
        sampling.grids(indices[item[0]]),
    )
    batches = progress(list(padded_batches(rows, batch)), "aligned coefficients")
    for (here, real), (volumes, grids) in read_ahead(read, batches):
        volumes, grids = jnp.asarray(volumes), jnp.asarray(grids)
        pose = Pose(jnp.asarray(rotation[here]), jnp.asarray(shift[here]))
        if not sampling.premultiplied:
            volumes = average.apply_sampling(volumes, grids)
        x, w = average.posed_coefficients(volumes, pose, grids, points)
        data[here[:real]], weight[here[:real]] = np.asarray(x)[:real], np.asarray(w)[:real]
    data, weight = hosts.joined(data), hosts.joined(weight)
    top = weight.max()
    weight /= top if top > 0 else 1
    shells = np.rint(np.linalg.norm(vectors, axis=1)).astype(int)
    power = np.bincount(shells, (np.abs(data) ** 2).sum(0), minlength=kmax + 1)
    seen = np.bincount(shells, weight.sum(0), minlength=kmax + 1)
    scale = np.sqrt(np.maximum(seen, 1e-30) / np.maximum(power, 1e-30)).astype(np.float32)
    data *= scale[shells]
    together = np.abs(data.sum(0)) ** 2 - (np.abs(data) ** 2).sum(0)
    pairs = weight.sum(0) ** 2 - (weight**2).sum(0)
    signal = np.bincount(shells, together) / np.maximum(np.bincount(shells, pairs), 1e-30)
    signal = np.maximum(signal, 1e-6).astype(np.float32)
    parts = (data, weight, signal[shells], scale[shells])
    return AlignedBand(*(jnp.asarray(x) for x in parts))


def split(
    band: AlignedBand,
    count: int,
    *,
    key: Array,
    starts: int = 8,
    rounds: int = 40,
) -> Split:
    """Mixture of ``count`` classes, the best of several fits by leave-one-out likelihood.

    Half of the starts are random, half k-means in the space of the leading principal
    coordinates (missing coefficients apart, every particle's product with itself left out).

    Args:
        band: posed particles.
        count: classes.
        key: of the random starts.
        starts: fits per strength of ``VARIATIONS``.
        rounds: expectation-maximisation steps of a fit.
    """
    n = band.data.shape[0]
    seeds = jax.random.split(key, starts)
    first = [jax.random.dirichlet(k, jnp.ones(count), (n,)) for k in seeds[: (starts + 1) // 2]]
    coordinates = np.asarray(principal_coordinates(band, max(count - 1, 1), seeds[-1]))
    for i in range(starts // 2):
        _, labels = kmeans2(coordinates, count, minit="++", rng=i)
        first.append(jnp.asarray(0.9 * np.eye(count)[labels] + 0.1 / count, jnp.float32))
    found, gain = _best_fit(band, jnp.stack(first), rounds)
    null = _scrambled(band, jax.random.fold_in(key, 1))
    _, chance = _best_fit(null, jnp.stack(first[:2]), rounds)
    return Split(found, gain, chance)


def _best_fit(
    band: AlignedBand, first: Float[Array, "s n c"], rounds: int
) -> tuple[np.ndarray, float]:
    """Responsibilities of the best start and strength, and their gain per particle."""
    n = band.data.shape[0]
    alone = float(_fit(band, jnp.ones((1, n, 1)), 1 / band.signal, 1)[1][0])
    best, top = None, -np.inf
    for variation in VARIATIONS:
        found, value = _fit(band, first, 1 / (variation * band.signal), rounds)
        which = int(np.nanargmax(value))
        if best is None or value[which] > top:
            best, top = np.asarray(found[which]), float(value[which])
    assert best is not None
    return best, (top - alone) / n


@eqx.filter_jit
def _scrambled(band: AlignedBand, key: Array) -> AlignedBand:
    """Particles whose differences from the mean have random phases: no classes are left."""
    mean = band.data.sum(0) / (band.weight.sum(0) + 1).astype(band.data.dtype)
    common = band.weight.astype(mean.dtype) * mean[None]
    angle = jax.random.uniform(key, common.shape, maxval=2 * jnp.pi)
    turn = lax.complex(jnp.cos(angle), jnp.sin(angle))
    return AlignedBand(common + (band.data - common) * turn, band.weight, band.signal)


@eqx.filter_jit
def _fit(
    band: AlignedBand, first: Float[Array, "s n c"], tau: Float[Array, " k"], rounds: int
) -> tuple[Float[Array, "s n c"], Float[Array, " s"]]:
    """Expectation-maximisation from every start: responsibilities, leave-one-out likelihood."""

    def one(start):
        def step(_, carry):
            found = _expect(band, carry[0], tau)
            return jax.nn.softmax(found, 1), jax.nn.logsumexp(found, 1).sum()

        return lax.fori_loop(0, rounds, step, (start, jnp.float32(0)))

    return lax.map(one, first)


def _expect(
    band: AlignedBand, share: Float[Array, "n c"], tau: Float[Array, " k"]
) -> Float[Array, "n c"]:
    """Log-likelihood of every particle in every class, itself left out, with class priors."""
    total = (band.data.sum(0), band.weight.sum(0))
    data = jnp.einsum("nc,nk->ck", share.astype(band.data.dtype), band.data)
    weight = share.T @ band.weight
    prior = jnp.log(share.sum(0) + 1) - jnp.log(share.sum() + share.shape[1])

    def one(item):
        x, w, own = item
        mean = ((total[0] - x) / (total[1] - w + 1).astype(x.dtype))[None]
        sums = data - own[:, None].astype(x.dtype) * x[None] + tau[None].astype(x.dtype) * mean
        model = sums / (weight - own[:, None] * w[None] + tau[None]).astype(x.dtype)
        fit = 2 * (jnp.conj(x)[None] * model).real - w[None] * jnp.abs(model) ** 2
        return fit.sum(-1)

    return lax.map(one, (band.data, band.weight, share), batch_size=64) + prior[None]


@eqx.filter_jit
def principal_coordinates(band: AlignedBand, count: int, key: Array) -> Float[Array, "n c"]:
    """Leading coordinates of the differences from the mean, by subspace iteration.

    Every particle's product with itself is left out.

    Args:
        band: aligned particles.
        count: of coordinates, c.
        key: of the random start.
    """
    mean = band.data.sum(0) / (band.weight.sum(0) + 1).astype(band.data.dtype)
    rest = band.data - band.weight.astype(mean.dtype) * mean[None]
    own = jnp.sum(jnp.abs(rest) ** 2, 1)

    def step(_, basis):
        back = jnp.conj(rest) @ (rest.T @ basis.astype(rest.dtype))
        return jnp.linalg.qr(back.real - own[:, None] * basis)[0]

    start = jax.random.normal(key, (rest.shape[0], count + 2))
    return lax.fori_loop(0, 30, step, jnp.linalg.qr(start)[0])[:, :count]
