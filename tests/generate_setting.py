"""Planted particles and references of comparison that the tests of the generators share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from alignment_setting import APIX, BOX, Volumes, volumes_of

from sptjax import fourier, generate, resample, resolution, rotation, simulate
from sptjax._types import Pose
from sptjax.particles import Sampling

GEOMETRY = simulate.TiltSeries(-60, 60, snr=1.5)


def sampling(geometry=GEOMETRY):
    return Sampling(np.asarray(simulate.sampled_region(BOX, geometry), np.float32))


@functools.cache
def planted(count=8, snr=1.5, seed=0, reach=1.0):
    """Particles of one asymmetric phantom: its map, their poses, and the material."""
    geometry = simulate.TiltSeries(-60, 60, snr=snr)
    poses = simulate.random_poses(jax.random.key(seed), count, reach)
    truth = simulate.phantom(BOX)
    volumes = np.asarray(volumes_of(truth[None], np.zeros(count, int), poses, geometry, seed + 1))
    material = generate.prepare(Volumes(volumes), sampling(geometry), APIX)
    return truth, poses, volumes, material


def spread_deg(rotations, poses):
    """Angles between ``R_i`` and the truth up to one common rotation, degrees, ``[n]``."""
    frame = np.einsum("nij,nkj->nik", rotations, np.asarray(poses.rotation, np.float64))
    u, _, v = np.linalg.svd(frame.mean(0))
    common = u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v
    cosine = (np.einsum("ij,nij->n", common, frame) - 1) / 2
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def mean_fsc(a, b, last=8):
    """Mean FSC of shells 1 ... last."""
    curve = np.asarray(resolution.fsc(jnp.asarray(a), jnp.asarray(b)))
    return float(np.nanmean(curve[1 : last + 1]))


def fsc_in_frame(result, truth, poses, rows):
    """FSC to the truth, brought into the frame that the poses of a result share with it.

    The frame is that of the particle whose pose is nearest to the others' mean, so that a result
    with scattered poses is not helped by it.
    """
    known = Pose(poses.rotation[rows], poses.shift[rows])
    angle = spread_deg(result.rotation, known)
    best = int(np.argmin(angle))
    own = Pose(
        jnp.asarray(result.rotation[best], jnp.float32),
        jnp.asarray(result.shift[best], jnp.float32),
    )
    to_map = rotation.compose(own, rotation.invert(Pose(known.rotation[best], known.shift[best])))
    moved = np.asarray(resample.transform(jnp.asarray(truth, jnp.float32), to_map))
    return mean_fsc(result.map, moved)


def lowpassed(volume, last=8):
    gain = jnp.asarray(np.arange(BOX // 2 + 1) <= last, jnp.float32)
    return np.asarray(fourier.radial_filter(jnp.asarray(volume), gain))
