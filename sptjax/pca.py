"""Principal components of posed particles that have not seen all of Fourier space.

A particle in the reference frame is ``x_i = w_i (m + U a_i) + noise``, with the whitened
coefficients ``x`` and the sampling ``w`` of :class:`sptjax.classify.AlignedBand` (noise of
variance ``w``), coordinates ``a_i`` of unit variance and ``q`` eigenvolumes ``U``. All of it is
fitted by expectation-maximisation (probabilistic PCA: Tipping & Bishop 1999, J. R. Stat. Soc. B
61:611; with missing data: Roweis 1998, NIPS 10). Coefficients that a particle has not seen
contribute nothing, neither to its coordinates nor to the eigenvolumes; where all particles have
seen everything, the components are those of an ordinary singular value decomposition.

Eigenvolumes may be confined to a mask in real space and, as the maps of :mod:`sptjax.classify`,
drawn towards zero where the signal is weak. The coordinates are sorted by k-means with restarts.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Int
from scipy.cluster.vq import ClusterError, kmeans2

from . import fourier
from ._errors import InputError
from ._types import Volume
from .classify import AlignedBand, principal_coordinates

VARIATION = 0.1  # power of differences between particles over that of their mean map
RESTARTS = 20
LEAST_SEEN = 0.1  # sampling below which a coefficient counts as missing (edges of a wedge leak)


@dataclasses.dataclass(frozen=True)
class Components:
    """Result of :func:`fit`; whitened coefficients of the half ball, origin at the centre."""

    mean: np.ndarray  # complex [K]
    basis: np.ndarray  # complex [q, K]; orthonormal: 2 Re sum conj(u) v
    coordinates: np.ndarray  # [n, q], of no correlation with each other
    variance: np.ndarray  # [q] of the coordinates, falling
    share: np.ndarray  # [q], variance over that of the particles about the mean, noise included


class MaskedSpace(eqx.Module):
    """Maps that are zero outside a mask, as the half ball of a band sees them."""

    mask: Volume  # of any even box; its field of view is that of the particles
    kmax: int = eqx.field(static=True)  # last shell of the band


def fit(
    band: AlignedBand,
    count: int,
    *,
    key: Array,
    space: MaskedSpace | None = None,
    variation: float | None = VARIATION,
    rounds: int = 60,
) -> Components:
    """Mean, ``count`` eigenvolumes and the coordinates of every particle.

    Args:
        band: posed particles.
        count: eigenvolumes.
        key: of the first guess.
        space: where the eigenvolumes may be other than zero.
        variation: expected power of an eigenvolume over that of the mean map, shell by shell,
            which damps what noise alone explains; None: no such prior.
        rounds: steps of expectation-maximisation.

    Raises:
        InputError: no eigenvolume, or not fewer than particles.
    """
    n = band.data.shape[0]
    if not 1 <= count < n:
        raise InputError(f"{count} components: from 1 to {n - 1} can be found in {n} particles")
    seen = band.weight >= LEAST_SEEN
    data = jnp.where(seen, band.data, 0)
    band = dataclasses.replace(band, data=data, weight=jnp.where(seen, band.weight, 0))
    damping = jnp.zeros_like(band.signal) if variation is None else 1 / (variation * band.signal)
    project = None if space is None else _projector(space)
    mean, basis, coordinates, moment = _fit(
        band, int(count), key, project, damping, jnp.int32(rounds)
    )
    return _principal_axes(band, mean, basis, coordinates, moment)


@eqx.filter_jit
def confined(band: AlignedBand, space: MaskedSpace) -> AlignedBand:
    """Particles without their differences from the mean map outside a mask.

    What noise is left inside has the same product with every map inside as before, so that
    likelihoods of such maps keep their scale.

    Args:
        band: aligned particles.
        space: of the maps inside the mask.
    """
    seen = (band.weight >= LEAST_SEEN).astype(band.data.dtype)
    mean = band.data.sum(0) / (band.weight.sum(0) + 1).astype(band.data.dtype)
    common = band.weight.astype(mean.dtype) * mean[None]
    project = _projector(space)
    rest = lax.map(lambda x: project(x[None])[0], band.data - common)
    return dataclasses.replace(band, data=common + seen * rest)


class _Projector(eqx.Module):
    mask: Volume
    vectors: Int[Array, "k 3"]

    def __call__(self, basis: Complex[Array, "q k"]) -> Complex[Array, "q k"]:
        volumes = fourier.from_ball(basis, self.vectors, self.mask.shape[-1])
        return fourier.ball_coefficients(volumes * self.mask[None], self.vectors)


def _projector(space: MaskedSpace) -> _Projector:
    """The mask on the smallest grid that holds the band."""
    small = fourier.fourier_resample(jnp.asarray(space.mask, jnp.float32), 2 * (space.kmax + 1))
    return _Projector(small, jnp.asarray(fourier.half_ball(space.kmax)))


@eqx.filter_jit
def _fit(band, count: int, key, project, damping, rounds):
    """EM with the mean as a component whose coordinate is always 1."""
    n = band.data.shape[0]
    first = principal_coordinates(band, count, key)
    first = first / jnp.sqrt(jnp.mean(first**2, 0))[None]
    one = jnp.ones((n, 1))
    # at least one particle's worth, so that what hardly any particle has seen stays finite
    prior = 1 + jnp.concatenate([jnp.zeros_like(damping)[None], jnp.tile(damping, (count, 1))])

    def maximise(extended, moments):
        """Eigenvolumes and mean that fit best, frequency by frequency."""
        seen = (band.weight.T @ moments.reshape(n, -1)).reshape(-1, count + 1, count + 1)
        seen = seen + jax.vmap(jnp.diag)(prior.T)
        data = band.data.T @ extended.astype(band.data.dtype)
        solved = jnp.linalg.solve(seen, jnp.stack([data.real, data.imag], -1))
        found = lax.complex(solved[..., 0], solved[..., 1]).T
        if project is None:
            return found
        return jnp.concatenate([found[:1], project(found[1:])])

    def expect(found):
        """Coordinates of every particle, with their second moments."""
        pairs = 2 * (jnp.conj(found)[:, None] * found[None]).real
        gram = (band.weight @ pairs.reshape((count + 1) ** 2, -1).T).reshape(n, count + 1, -1)
        overlap = 2 * (band.data @ jnp.conj(found).T).real
        covariance = jnp.linalg.inv(gram[:, 1:, 1:] + jnp.eye(count)[None])
        coordinates = jnp.einsum("npq,nq->np", covariance, overlap[:, 1:] - gram[:, 1:, 0])
        return coordinates, covariance

    def step(_, carry):
        coordinates, covariance, _ = carry
        extended = jnp.concatenate([one, coordinates], 1)
        moments = extended[:, :, None] * extended[:, None, :]
        moments = moments.at[:, 1:, 1:].add(covariance)
        found = maximise(extended, moments)
        # unit variance of the coordinates: a basis of the same space, from which EM goes faster
        spread = jnp.linalg.cholesky(moments[:, 1:, 1:].mean(0) + 1e-12 * jnp.eye(count))
        scaled = spread.T.astype(found.dtype) @ found[1:]
        found = jnp.concatenate([found[:1], scaled])
        return (*expect(found), found)

    empty = jnp.zeros((count + 1, band.data.shape[1]), band.data.dtype)
    carry = (first, jnp.zeros((n, count, count)), empty)
    coordinates, covariance, found = lax.fori_loop(0, rounds, step, carry)
    moment = (coordinates[:, :, None] * coordinates[:, None, :] + covariance).mean(0)
    return found[0], found[1:], coordinates, moment


def _principal_axes(band, mean, basis, coordinates, moment) -> Components:
    """The same space by an orthonormal basis in which coordinates do not correlate."""
    basis, coordinates = np.asarray(basis, np.complex128), np.asarray(coordinates, np.float64)
    real = np.sqrt(2) * np.concatenate([basis.real, basis.imag], 1)
    q, r = np.linalg.qr(real.T)  # real.T = q r: coordinates along q are r a
    centre = coordinates.mean(0)
    along = (coordinates - centre) @ r.T
    spread = r @ (np.asarray(moment) - np.outer(centre, centre)) @ r.T
    variance, turn = np.linalg.eigh(spread)
    order = np.argsort(-variance)
    variance, turn = np.maximum(variance[order], 0), turn[:, order]
    turned = (q @ turn).T / np.sqrt(2)
    size = basis.shape[1]
    weight = np.asarray(band.weight)
    middle = np.asarray(mean) + np.asarray(centre, np.complex64) @ basis
    rest = np.abs(np.asarray(band.data) - weight * middle) ** 2
    seen = weight.sum(0)
    total = 2 * np.sum(rest.sum(0)[seen > 0] / seen[seen > 0])
    return Components(
        mean=middle.astype(np.complex64),
        basis=(turned[:, :size] + 1j * turned[:, size:]).astype(np.complex64),
        coordinates=(along @ turn).astype(np.float32),
        variance=variance.astype(np.float32),
        share=(variance / total).astype(np.float32),
    )


def kmeans(coordinates: np.ndarray, count: int, *, seed: int, restarts: int = RESTARTS):
    """Classes of points by k-means++, the tightest of several runs, ``int[n]``.

    Classes are numbered by size, the largest first.

    Args:
        coordinates: ``[n, q]``.
        count: classes.
        seed: of the random starts.
        restarts: how many of them.

    Raises:
        InputError: fewer distinct points than classes.
    """
    points = np.asarray(coordinates, np.float64)
    if not 1 <= count <= len(np.unique(points, axis=0)):
        raise InputError(f"{count} classes cannot be made of {len(points)} particles")
    best, least = None, np.inf
    for attempt in range(restarts):
        rng = np.random.default_rng([seed, attempt])
        try:
            centres, labels = kmeans2(points, count, iter=100, minit="++", missing="raise", rng=rng)
        except ClusterError:
            continue
        spread = float(((points - centres[labels]) ** 2).sum())
        if spread < least:
            best, least = labels, spread
    if best is None:
        raise InputError(f"{count} classes: k-means found no partition without an empty class")
    rank = np.argsort(np.argsort(-np.bincount(best, minlength=count), kind="stable"))
    return rank[best].astype(np.int32)
