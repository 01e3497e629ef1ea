"""Wedge-weighted Fourier average by direct sums: no interpolation of the particles."""

import numpy as np
from scipy import ndimage


def half_frequencies(box):
    """(kx, ky, kz) of the NumPy rfftn layout."""
    full = np.rint(np.fft.fftfreq(box, 1 / box))
    z, y, x = np.meshgrid(full, full, np.arange(box // 2 + 1), indexing="ij")
    return np.stack([x, y, z], -1)


def transform_at(volume, frequencies):
    """Fourier transform about the centre voxel at any frequencies ``[k, 3]``, by its definition."""
    box = len(volume)
    axis = np.arange(box) - box // 2
    wave = [np.exp(-2j * np.pi / box * frequencies[:, i : i + 1] * axis) for i in range(3)]
    return np.einsum("zyx,kx,ky,kz->k", volume, *wave, optimize=True)


def sums(particles, rotations, shifts, groups, weights, sampling, number):
    """Numerator and weight of every group, one particle and one frequency list at a time."""
    box = particles.shape[-1]
    grid = half_frequencies(box)
    inside = np.linalg.norm(grid, axis=-1) <= box / 2
    numerator = np.zeros((number, *inside.shape), complex)
    weight = np.zeros((number, *inside.shape))
    for i, group in enumerate(groups):
        turned = np.array([rotations[i].T @ q for q in grid[inside]])
        phase = np.exp(-2j * np.pi / box * grid[inside] @ shifts[i])
        numerator[group][inside] += weights[i] * transform_at(particles[i], turned) * phase
        where = (turned + box // 2)[:, ::-1].T
        known = ndimage.map_coordinates(sampling[i], where, order=1, mode="grid-wrap")
        weight[group][inside] += weights[i] * known
    return numerator, weight


def inverse(coefficients):
    """Map of half-grid coefficients whose origin is the centre voxel."""
    box = len(coefficients)
    shift = np.exp(-2j * np.pi / box * half_frequencies(box).sum(-1) * (box // 2))
    return np.fft.irfftn(coefficients * shift, (box,) * 3, axes=(0, 1, 2))
