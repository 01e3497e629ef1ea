"""Bootstrap of averages: what the voxels of a map would be with other particles of its kind.

A replicate is the average of as many particles as the class has, drawn from it with
replacement, at the same poses and weights: a particle drawn ``m`` times weighs ``m w``. The
mean and the variance over the replicates tell, per voxel, how far the map can be trusted and
where the particles differ (Penczek, Yang, Frank & Spahn 2006, J. Struct. Biol. 154:168).
EMAN2's ``--resample``, for which this stands, averages a single draw.

Every particle contributes a transform and its sampling, which do not depend on the draw. So the
sums of a block of replicates are one product: replicates x particles times particles x
frequencies. A block needs about ``32 box^3`` bytes per replicate; when the replicates do not
fit, the particles are read once per block.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from . import average, fourier
from ._chunk import batch_size, padded_batches
from ._errors import InputError
from ._types import Pose, Volume, Volumes
from .average import FourierSums
from .averagers import Mean, variance

BLOCK_BYTES = 2**30  # for the sums and maps of one block


class Batch(NamedTuple):
    """Particles of one batch.

    Without poses the volumes are aligned and the sampling is rotated with them. With poses they
    are as read, and are interpolated once as by :func:`sptjax.average.add`.
    """

    indices: Int[np.ndarray, " b"]  # numbers of the particles, -1 pads a ragged batch
    volumes: Volumes  # [b, z, y, x]
    sampling: Float[Array, "z y x"] | Volumes | None = None  # centred Fourier grids
    poses: Pose | None = None


class Spread(NamedTuple):
    """Mean over the replicates, and the variance of one replicate about it (``B - 1``)."""

    mean: Volume
    variance: Volume


def bootstrap_weights(
    key: PRNGKeyArray, members: Bool[np.ndarray, " n"], count: int
) -> Float[Array, "count n"]:
    """How often each particle is drawn for each replicate.

    Replicate ``r`` depends on the key, the members and ``r`` only.

    Args:
        key: the randomness.
        members: which of the ``n`` particles to draw from, as many as there are each time.
        count: number of replicates.
    """
    chosen = jnp.asarray(np.flatnonzero(members), jnp.int32)

    def one(replicate):
        draw = jax.random.randint(jax.random.fold_in(key, replicate), chosen.shape, 0, len(chosen))
        return jnp.zeros(len(members), jnp.float32).at[chosen[draw]].add(1.0)

    return jax.vmap(one)(jnp.arange(count))


def bootstrap(
    key: PRNGKeyArray,
    members: Bool[np.ndarray, " n"],
    batches: Callable[[], Iterable[Batch]],
    box: int,
    count: int = 32,
    *,
    weights: Float[np.ndarray, " n"] | None = None,
    block: int | None = None,
    finish: Callable[[FourierSums], Volumes] = average.finish,
) -> Spread:
    """Mean and variance per voxel over replicates of one average.

    Neither the size of the batches nor that of the blocks changes what is drawn.

    Args:
        key: the randomness.
        members: which of ``n`` particles the average is made of (a class, a half of it, those
            that were kept).
        batches: called once per block of replicates, gives the batches of one pass. Every
            member must come exactly once; other particles are skipped.
        box: edge of the volumes.
        count: number of replicates, at least 2.
        weights: ``w_i >= 0`` of all ``n`` particles, default 1. Weight 0 skips the particle
            after it was drawn, whatever its voxels are.
        block: replicates whose sums are held at a time, default as many as fit into 1 GiB.
        finish: maps of the sums of a block, one group per replicate: whatever made the average
            itself of its sums (symmetry, floor).

    Raises:
        InputError: fewer than 3 members or 2 replicates, or a pass that misses or repeats a
            member.
    """
    members = np.asarray(members, bool)
    if members.sum() < 3:
        raise InputError(f"A bootstrap needs 3 particles or more, not {members.sum()}.")
    if count < 2:
        raise InputError(f"A bootstrap needs 2 replicates or more, not {count}.")
    draws = bootstrap_weights(key, members, count)
    if weights is not None:
        draws = draws * jnp.asarray(weights, jnp.float32)[None]
    size = min(count, block or batch_size(32 * box**3, BLOCK_BYTES, count))
    averager = Mean()
    moments = averager.start(box)
    for replicates, real in padded_batches(np.arange(count), size):
        sums = _one_pass(draws[replicates], members, batches(), box)
        group = np.where(np.arange(size) < real, 0, -1)
        moments = averager.add(moments, finish(sums), jnp.asarray(group, jnp.int32))
    return Spread(moments.mean[0], variance(moments)[0] * (count / (count - 1)))


def _one_pass(
    draws: Float[Array, "r n"],
    members: Bool[np.ndarray, " n"],
    batches: Iterable[Batch],
    box: int,
) -> FourierSums:
    """Sums of every replicate of a block, one group each."""
    sums = average.empty(box, draws.shape[0])
    seen = np.zeros(len(members), int)
    for batch in batches:
        indices = np.asarray(batch.indices)
        if indices.max() >= len(members):
            raise InputError(f"There is no particle {indices.max()} among {len(members)}.")
        np.add.at(seen, indices[indices >= 0], 1)
        times = jnp.where((indices >= 0)[None], draws[:, indices], 0)
        sums = _accumulate(sums, _contributions(batch, times.any(0), box), times)
    wrong = np.flatnonzero(members & (seen != 1))
    if len(wrong):
        raise InputError(
            f"A pass over the particles gave {len(wrong)} members never or more than once,"
            f" the first is {wrong[0]}."
        )
    return sums


def _contributions(batch: Batch, use: Bool[Array, " b"], box: int) -> FourierSums:
    """What every particle adds to a sum at weight 1, one group each; 0 if it is not used."""
    if batch.volumes.shape[1:] != (box,) * 3:
        raise InputError(f"Particles of {batch.volumes.shape[1:]} voxels, the box is {box}.")
    if batch.poses is None:
        return _aligned(batch.volumes, batch.sampling, use)
    number = len(batch.indices)
    return average.add(
        average.empty(box, number),
        batch.volumes,
        batch.poses,
        jnp.where(use, jnp.arange(number), -1),
        sampling=batch.sampling,
    )


@jax.jit
def _aligned(volumes: Volumes, sampling: Array | None, use: Bool[Array, " b"]) -> FourierSums:
    """Contributions of aligned volumes: their transforms, without interpolation."""
    box = volumes.shape[-1]
    inside = 4 * (fourier.half_grid(box) ** 2).sum(-1) <= box * box
    taken = use[:, None, None, None] & inside[None]
    spectra = fourier.rfftn(jnp.roll(volumes, (-(box // 2),) * 3, (1, 2, 3)))
    known = jnp.ones((box, box, box), jnp.float32) if sampling is None else sampling
    known = jnp.broadcast_to(fourier.half_from_centred(known), spectra.shape)
    count = use.astype(jnp.int32)
    return FourierSums(jnp.where(taken, spectra, 0), jnp.where(taken, known, 0), count)


@jax.jit
def _accumulate(sums: FourierSums, each: FourierSums, times: Float[Array, "r b"]) -> FourierSums:
    """Sums of the replicates, with every particle as often as it was drawn."""

    def total(values):
        return jnp.tensordot(times, values, 1, precision="highest")

    numerator = lax.complex(total(each.numerator.real), total(each.numerator.imag))
    count = (times > 0).sum(1, dtype=jnp.int32)
    return average.merge(sums, FourierSums(numerator, total(each.weight), count))
