"""What the particles of an average have seen: of the sphere of directions, and of Fourier space.

Every frequency of an average is the mean over the particles that sampled it (see
:mod:`sptjax.average`); a wedge that is missing in every particle is missing in their average too
where their orientations do not fill it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.ndimage import map_coordinates
from scipy import ndimage
from scipy.spatial import KDTree

from ._chunk import padded_batches
from ._errors import InputError
from .averaging import Assigned
from .particles import Sampling
from .symmetry import Symmetry

REACH_DEG = 15.0  # a direction farther than this from any view counts as unseen
UNSAMPLED = 0.01  # share of the particles below which a frequency counts as unsampled

_WIDTH_DEG = 8.0  # of the kernel that smooths the density of views
_CELLS = 5000  # points of the sphere at which more views than that are counted
_GRID = 32  # largest grid on which the sampling is accumulated


# ---------------------------------------------------------------- directions


@dataclasses.dataclass(frozen=True)
class Views:
    """Viewing directions of some particles on a grid of the sphere.

    Attributes:
        count: directions.
        longitude_deg: ``[u]``, about z from x, -180 to 180.
        latitude_deg: ``[v]``, -90 to 90.
        density: ``[v, u]``, smoothed by 8 degrees; 1 if they were spread evenly.
        distance_deg: ``[v, u]``, to the nearest of them.
        largest_gap_deg: largest such distance.
        unseen: share of the sphere farther than ``REACH_DEG`` from all of them.
        unseen_at_random: expected share for as many at random.
    """

    count: int
    longitude_deg: np.ndarray
    latitude_deg: np.ndarray
    density: np.ndarray
    distance_deg: np.ndarray
    largest_gap_deg: float
    unseen: float
    unseen_at_random: float


def views(directions: np.ndarray) -> Views:
    """Density and gaps of directions.

    Args:
        directions: ``[n, 3]``, of any length but 0.

    Raises:
        InputError: they are not three-dimensional vectors.
    """
    directions = np.asarray(directions, float)
    if directions.ndim != 2 or directions.shape[1] != 3:
        raise InputError(f"Directions are vectors [n, 3], not an array {directions.shape}.")
    length = np.linalg.norm(directions, axis=1, keepdims=True)
    if not (length > 0).all():
        raise InputError("A direction of length 0 points nowhere.")
    directions, count = directions / length, len(directions)
    longitude, latitude = np.linspace(-180, 180, 73), np.linspace(-90, 90, 37)
    shape = (len(latitude), len(longitude))
    if not count:
        far = np.full(shape, 180.0)
        return Views(0, longitude, latitude, np.zeros(shape), far, 180.0, 1.0, 1.0)
    cells, tree = _spiral(_CELLS), KDTree(directions)
    u, v = np.radians(longitude)[None, :], np.radians(latitude)[:, None]
    flat = np.broadcast_to(np.sin(v), shape)
    shown = np.stack([np.cos(v) * np.cos(u), np.cos(v) * np.sin(u), flat], 2).reshape(-1, 3)
    places, counted = directions, np.ones(count)
    if count > _CELLS:
        places = cells
        counted = np.bincount(KDTree(cells).query(directions)[1], minlength=_CELLS)
    sharp = 1 / np.radians(_WIDTH_DEG) ** 2  # von Mises-Fisher
    even = (1 - np.exp(-2 * sharp)) / (2 * sharp)
    density = np.exp(sharp * (shown @ places.T - 1)) @ counted / (count * even)
    away = _angle_deg(tree.query(cells)[0])
    cap = (1 - np.cos(np.radians(REACH_DEG))) / 2
    return Views(
        count,
        longitude,
        latitude,
        density.reshape(shape),
        _angle_deg(tree.query(shown)[0]).reshape(shape),
        float(away.max()),
        float((away > REACH_DEG).mean()),
        float((1 - cap) ** count),
    )


def _spiral(count: int) -> np.ndarray:
    """Points spread evenly over the sphere on Fibonacci's spiral, ``[count, 3]``."""
    z = 1 - (2 * np.arange(count) + 1) / count
    turn = np.arange(count) * np.pi * (3 - 5**0.5)
    ring = np.sqrt(1 - z**2)
    return np.stack([ring * np.cos(turn), ring * np.sin(turn), z], 1)


def _angle_deg(chord: np.ndarray) -> np.ndarray:
    """Angle between unit vectors whose ends are so far apart."""
    return np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1)))


# ---------------------------------------------------------------- Fourier space


def sampled(
    assigned: Assigned,
    sampling: Sampling,
    symmetries: tuple[Symmetry, ...],
    box: int,
    *,
    batch: int = 64,
) -> np.ndarray:
    """Share of its particles that sampled every frequency of an average.

    Grids of more than 32 voxels are taken at every so many frequencies. Weights that are not
    between 0 and 1 (sums of CTF squared) are divided by the largest of a particle.

    Args:
        assigned: particles with poses, classes and weights.
        sampling: what each has seen.
        symmetries: of the averages, one per class.
        box: of the particles, even.
        batch: particles at a time.

    Returns:
        ``[c, m, m, m]`` with the zero frequency at voxel ``m // 2``; 0 outside of the Nyquist
        sphere, and for classes without particles.
    """
    edge, count = min(box, _GRID), len(symmetries)
    pick = np.rint((np.arange(edge) - edge // 2) * (box / edge)).astype(int) + box // 2
    axis = np.arange(edge) - edge // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    inside = x**2 + y**2 + z**2 <= (edge // 2 - 1) ** 2
    points = jnp.asarray(np.stack([x[inside], y[inside], z[inside]], 1), jnp.float32)
    total = jnp.zeros((count, len(points)), jnp.float32)
    for here, real in padded_batches(np.arange(len(assigned.indices)), batch):
        grids = np.asarray(sampling.grids(assigned.indices[here]))[..., pick, :, :]
        grids = grids[..., pick, :][..., pick]
        most = grids.reshape(*grids.shape[:-3], -1).max(-1)[..., None, None, None]
        weight = np.where(np.arange(len(here)) < real, assigned.weight[here], 0.0)
        total = _added(
            total,
            jnp.asarray(grids / np.maximum(most, 1e-30), jnp.float32),
            jnp.asarray(assigned.rotation[here], jnp.float32),
            jnp.asarray(assigned.classes[here], jnp.int32),
            jnp.asarray(weight, jnp.float32),
            points,
        )
    whole = np.bincount(assigned.classes, assigned.weight, minlength=count)
    found: np.ndarray = np.zeros((count, *inside.shape), np.float32)
    found[:, inside] = np.asarray(total) / np.maximum(whole, 1e-30)[:, None]
    symmetric = [_symmetrised(found[c], own, inside) for c, own in enumerate(symmetries)]
    return np.stack(symmetric)


@jax.jit
def _added(total, grids, turns, classes, weights, points):
    middle = grids.shape[-1] // 2

    def step(carry, item):
        turn, own, weight, grid = item
        grid = grids if grid is None else grid
        places = points @ turn + middle  # R^T q in the frame of the particle
        seen = map_coordinates(grid, list(places.T[::-1]), order=1)
        return carry.at[own].add(weight * seen), None

    own = grids if grids.ndim == 4 else None
    return lax.scan(step, total, (turns, classes, weights, own))[0]


def _symmetrised(grid: np.ndarray, symmetry: Symmetry, inside: np.ndarray) -> np.ndarray:
    """Mean over the copies that symmetry makes of every frequency."""
    if len(symmetry) == 1:
        return grid
    points = np.argwhere(inside)[:, ::-1] - grid.shape[0] // 2  # x, y, z
    copies = [
        ndimage.map_coordinates(grid, (points @ turn + grid.shape[0] // 2).T[::-1], order=1)
        for turn in np.asarray(symmetry.operators)
    ]
    found = np.zeros_like(grid)
    found[inside] = np.mean(copies, 0)
    return found


def unsampled_share(grid: np.ndarray) -> float:
    """Share of the Nyquist sphere that less than one particle in a hundred has sampled.

    Args:
        grid: ``[m, m, m]``, of one average, from :func:`sampled`.
    """
    radius = _radius(len(grid))
    inside = radius <= len(grid) // 2 - 1
    return float((grid[inside] < UNSAMPLED).mean())


def shell_statistics(grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and least value of every shell 0 to ``m // 2 - 1`` of a grid ``[m, m, m]``."""
    radius = _radius(len(grid))
    inside = radius <= len(grid) // 2 - 1
    shell, values = np.rint(radius[inside]).astype(int), grid[inside]
    mean = np.bincount(shell, values) / np.bincount(shell)
    return mean, ndimage.minimum(values, shell, np.arange(len(mean)))


def _radius(edge: int) -> np.ndarray:
    axis = np.arange(edge) - edge // 2
    return np.sqrt(sum(a**2 for a in np.meshgrid(axis, axis, axis, indexing="ij")))
