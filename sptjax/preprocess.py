"""Particles and references prepared for the alignment; averages are made of the raw volumes.

Copies of particles are made by a :class:`Pipeline` when they are read, and never stored. Shifts
found on them are :meth:`Pipeline.scale` times as many raw voxels, and rotations are the same.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ._chunk import batch_size, padded_batches
from ._errors import InputError
from ._pipeline import Pipeline as Pipeline
from ._types import Status, Volume, Volumes
from .particles import Sampling, Stack, check_volumes
from .processors import match_to, radial_power
from .processors._auto_mask import Auto3d
from .processors._filters import LowpassGauss

_BUDGET = 1 << 30  # bytes of a batch on the device
_VOLUMES_AT_A_TIME = 10  # that a pipeline holds for each that it copies, about


# ---------------------------------------------------------------- particles


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedStack:
    """The copies of a stack, made when they are read. Made by :func:`prepare_stack`."""

    raw: Stack
    pipeline: Pipeline
    raw_apix: float  # angstrom

    @property
    def box(self) -> int:
        """Edge of the copies, voxels."""
        return self.pipeline.output(self.raw.box, self.raw_apix)[0]

    @property
    def apix(self) -> float:
        """Voxel size of the copies, angstrom."""
        return self.pipeline.output(self.raw.box, self.raw_apix)[1]

    def __len__(self) -> int:
        return len(self.raw)

    def name(self, index: int) -> str:
        """Where the raw volume is from, as its stack says."""
        named = getattr(self.raw, "name", "particle {}".format)
        return named(index)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Copies of the volumes, float32 ``[len(indices), z, y, x]``.

        What is wrong with a raw volume shows in its copy whatever the steps are: one that holds
        NaN or infinity gives NaN, one without contrast gives zeros.
        """
        indices = np.asarray(indices)
        copies = np.empty((len(indices), *(self.box,) * 3), np.float32)
        most = batch_size(4 * _VOLUMES_AT_A_TIME * self.raw.box**3, _BUDGET, 32)
        done = 0
        for part, real in padded_batches(indices, max(min(most, len(indices)), 1)):
            volumes = self.raw.read(part)
            status = check_volumes(volumes)[:real]
            here = copies[done : done + real]
            here[:] = np.asarray(self.pipeline(volumes, self.raw_apix))[:real]
            here[status == Status.NONFINITE] = np.nan
            here[status == Status.CONSTANT] = 0
            done += real
        return copies


def prepare_stack(stack: Stack, pipeline: Pipeline, apix: float) -> Stack:
    """Copies of a stack, or the stack itself if the pipeline does nothing.

    Args:
        stack: the raw particles.
        pipeline: what to do to them.
        apix: their voxel size, angstrom.

    Raises:
        InputError: as :meth:`Pipeline.check`.
    """
    if pipeline.trivial:
        return stack
    pipeline.check(stack.box, apix)
    return PreparedStack(stack, pipeline, apix)


@dataclasses.dataclass(frozen=True, eq=False)
class _ResampledGrids:
    """Sampling grids of the copies, from the grids of the raw particles."""

    raw: Stack
    rows: np.ndarray  # [m, n]

    @property
    def box(self) -> int:
        return len(self.rows)

    def __len__(self) -> int:
        return len(self.raw)

    def read(self, indices: np.ndarray) -> np.ndarray:
        return _resampled(np.maximum(self.raw.read(indices), 0), self.rows)


def prepared_sampling(sampling: Sampling, pipeline: Pipeline, box: int) -> Sampling:
    """Sampling of the copies: the same frequencies in 1/angstrom.

    Shrinking cuts the centre out of a grid; its Nyquist planes become 0, as there the copies
    are. Clipping makes the grid coarser (padding, finer), interpolated linearly. What mask and
    filters do to the sampling is left out: filters are part of signal and noise alike.

    Args:
        sampling: of the raw particles.
        pipeline: what is done to them.
        box: their edge, voxels.

    Raises:
        InputError: as :meth:`Pipeline.output`, or grids of another box.
    """
    grids = sampling.shared if sampling.stack is None else sampling.stack
    found = grids.shape[-1] if isinstance(grids, np.ndarray) else grids.box if grids else box
    if found != box:
        raise InputError(f"the sampling has a box of {found} voxels, but the particles of {box}.")
    small, scale = pipeline.output(box, 1.0)
    if (small, scale) == (box, 1.0):
        return sampling
    rows = _frequency_rows(box, small, scale)
    if sampling.stack is not None:
        return dataclasses.replace(sampling, stack=_ResampledGrids(sampling.stack, rows))
    assert sampling.shared is not None
    return dataclasses.replace(sampling, shared=_resampled(sampling.shared, rows))


def _frequency_rows(box: int, small: int, scale: float) -> np.ndarray:
    """Linear interpolation along an axis of a centred Fourier grid, ``[small, box]``."""
    wanted = np.round((np.arange(small) - small // 2) * (box / (small * scale)), 9)
    low = np.floor(wanted).astype(int)
    part = wanted - low
    rows = np.zeros((small, box), np.float32)
    line = np.arange(small)
    np.add.at(rows, (line, (low + box // 2) % box), 1 - part)
    np.add.at(rows, (line, (low + 1 + box // 2) % box), part)
    if scale > 1 and small % 2 == 0:
        rows[0] = 0
    return rows


def _resampled(grids: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Grids ``[..., z, y, x]`` with the interpolation applied along z, y and x."""
    return np.einsum("...zyx,az,by,cx->...abc", grids, rows, rows, rows, optimize=True)


# ---------------------------------------------------------------- references


def mean_power(stack: Stack, indices: np.ndarray, batch: int = 16) -> Float[Array, " s"]:
    """Mean radial power (:func:`sptjax.processors.radial_power`) of some particles.

    Args:
        stack: particles, as the references are compared with.
        indices: ``[n]``, which; those that are constant or not finite are left out.
        batch: volumes in memory at a time.

    Raises:
        InputError: none of the particles is usable.
    """
    total, count = 0.0, 0.0
    for part, real in padded_batches(np.asarray(indices), min(batch, max(len(indices), 1))):
        volumes = stack.read(part)
        counted = (check_volumes(volumes) == Status.OK) & (np.arange(len(part)) < real)
        power = _power_sum(jnp.asarray(volumes), jnp.asarray(counted))
        total = total + np.asarray(power, np.float64)
        count += counted.sum()
    if count == 0:
        raise InputError(f"none of {len(indices)} particles is usable.")
    return jnp.asarray(total / count, jnp.float32)


@jax.jit
def _power_sum(volumes: Volumes, counted: Bool[Array, " b"]) -> Float[Array, " s"]:
    powers = jax.vmap(radial_power)(volumes)
    return jnp.where(counted[:, None], powers, 0.0).sum(0)


@jax.jit
def match_spectra(references: Volumes, target_power: Float[Array, " s"]) -> Volumes:
    """Give references the radial power of the particles (EMAN2 ``filter.matchto``).

    Frequency zero gets the gain of the first shell: the mean density of particles says nothing
    about the reference, and taking it over would lift the solvent from its level 0.

    Args:
        references: ``[c, m, m, m]``, in the sampling of the particles.
        target_power: :func:`mean_power` of the particles.

    Raises:
        InputError: the power belongs to another box.
    """

    def matched(volume: Volume) -> Volume:
        own = radial_power(volume)
        share = jnp.where(own[1] > 0, target_power[1] / jnp.where(own[1] > 0, own[1], 1.0), 1.0)
        return match_to(volume, target_power.at[0].set(share * own[0]))

    return jax.vmap(matched)(references)


@eqx.filter_jit
def automask_reference(volume: Volume, apix: float) -> Volume:
    """Soft mask of the molecule in a reference (``--automask``).

    The reference is low-passed to 40 angstrom; from its ten brightest voxels the mask grows
    through all that is above mean + 0.2 sigma, then by ``g - 2`` layers and a soft edge of ``g``,
    ``g = max(5, n // 12)`` (EMAN2 ``mask.auto3d``; ``e2classaverage --automask`` in 2-D).

    Args:
        volume: density, higher in the molecule than in the solvent.
        apix: voxel size, angstrom.
    """
    smooth = LowpassGauss(cutoff_freq=1 / 40)(volume, apix)
    edge = max(5, volume.shape[-1] // 12)
    grow = Auto3d(sigma=0.2, nmaxseed=10, nshells=edge - 2, nshellsgauss=edge, return_mask=True)
    return grow(smooth, apix)
