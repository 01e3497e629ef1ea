"""Planted particles that the tests of the aligners share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.transform import Rotation

from sptjax import simulate, symmetry
from sptjax._types import Pose
from sptjax.align import Found, View
from sptjax.particles import Sampling, load_particles

BOX, APIX, KMAX = 24, 10.0, 10
C1 = symmetry.parse("c1")
WEDGE = simulate.TiltSeries(-60, 60, snr=0.3)


@dataclasses.dataclass
class Volumes:
    """A stack in memory."""

    volumes: np.ndarray

    @property
    def box(self):
        return self.volumes.shape[-1]

    def __len__(self):
        return len(self.volumes)

    def read(self, indices):
        return self.volumes[indices]


def volumes_of(maps, classes, poses, geometry, seed=1):
    maps, classes = jnp.asarray(maps, jnp.float32), jnp.asarray(classes, jnp.int32)
    key = jax.random.key(seed)
    return simulate.white_wedge_particles(maps, classes, poses, geometry, key)


def particles_of(volumes, geometry, kmax=KMAX):
    region = np.asarray(simulate.sampled_region(volumes.shape[-1], geometry))
    return load_particles(Volumes(np.asarray(volumes)), Sampling(region), kmax)


def planted(maps, classes, poses, geometry=WEDGE):
    """The view of particles at these poses."""
    return View(particles_of(volumes_of(maps, classes, poses, geometry), geometry), maps)


def truth_of(poses: Pose) -> Found:
    """Planted poses as start poses against one reference."""
    n = len(poses.rotation)
    turn, shift = np.asarray(poses.rotation)[:, None], np.asarray(poses.shift)[:, None]
    return Found(turn, shift, np.zeros((n, 1), np.float32))


def moved(found: Found, degrees: float, vox: float, seed=0) -> Found:
    """Every pose turned about a random axis by an angle, and shifted by a length."""
    rng = np.random.default_rng(seed)
    axes, ways = rng.normal(size=(2, *found.shift.shape))
    axes, ways = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (axes, ways))
    flat = np.radians(degrees) * axes.reshape(-1, 3)
    turns = Rotation.from_rotvec(flat).as_matrix().reshape(found.rotation.shape)
    turned = (turns @ found.rotation).astype(np.float32)
    return Found(turned, (found.shift + vox * ways).astype(np.float32), found.score)


def errors(found: Found, poses: Pose, column=0, group=C1):
    """Angles in degrees, modulo the symmetry, and distances of the particle's places in voxels."""
    turn, shift = found.rotation[:, column], found.shift[:, column]
    angle = symmetry.angle_deg_modulo(jnp.asarray(poses.rotation), jnp.asarray(turn), group)
    places = [
        -np.einsum("nji,nj->ni", np.asarray(r), np.asarray(t))
        for r, t in ((turn, shift), (poses.rotation, poses.shift))
    ]
    return np.asarray(angle), np.linalg.norm(places[0] - places[1], axis=1)
