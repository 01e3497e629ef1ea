"""Slow NumPy definitions: a rotated particle by real-space interpolation, and its projections."""

import numpy as np
from scipy import ndimage


def _resampled(volume, points):
    """Values at (x, y, z) points relative to the centre voxel; zero outside the box."""
    place = points[..., ::-1] + volume.shape[0] // 2
    return ndimage.map_coordinates(
        np.asarray(volume, np.float64), np.moveaxis(place, -1, 0), order=3, mode="constant"
    )


def _grid(n):
    axis = np.arange(n) - n // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    return np.stack([x, y, z], -1).astype(np.float64)


def particle(volume, turn, shift):
    """``V(x) = map(R x + t)``, axis by axis as the formula says."""
    return _resampled(volume, _grid(volume.shape[0]) @ np.asarray(turn).T + np.asarray(shift))


def projections(volume, turn, shift, angles_deg):
    """Sums along the beam, ``[tilt, y, u]``: ``p(u, y) = sum_s V(u e_u + y e_y + s e_s)``.

    ``e_u = (cos a, 0, sin a)`` is the detector axis and ``e_s = (-sin a, 0, cos a)`` the beam
    in the frame of the particle, whose tilt axis is y.
    """
    images = []
    for angle in np.radians(angles_deg):
        c, s = np.cos(angle), np.sin(angle)
        to_particle = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])  # columns e_u, e_y, e_s
        points = _grid(volume.shape[0]) @ to_particle.T
        density = _resampled(volume, points @ np.asarray(turn).T + np.asarray(shift))
        images.append(density.sum(0))  # axis z of the grid runs along the beam
    return np.stack(images)
