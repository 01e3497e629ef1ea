"""The score by its definition: float64 sums over voxels and over the whole ball."""

import itertools

import numpy as np


def transform(volume, points):
    """``sum_x f(x) exp(-2 pi i k.(x - c) / n)`` at any (kx, ky, kz), origin ``n // 2``."""
    volume = np.asarray(volume, np.float64)
    box = volume.shape[0]
    axis = np.arange(box) - box // 2
    points = np.asarray(points, np.float64)
    x, y, z = (np.exp(-2j * np.pi / box * points[:, i, None] * axis) for i in range(3))
    return np.einsum("zyx,kz,ky,kx->k", volume, z, y, x, optimize=True)


def model(reference, points, rotation, shift):
    """Transform of the particle ``V(x) = reference(R (x - s))``."""
    box = np.asarray(reference).shape[0]
    turned = np.asarray(points, np.float64) @ np.asarray(rotation, np.float64).T
    phase = np.exp(-2j * np.pi / box * (np.asarray(points) @ np.asarray(shift, np.float64)))
    return transform(reference, turned) * phase


def matched(reference, coefficients, sampling, noise, points, rotation, shift):
    """Matched filter of ``P = W V + noise`` of power ``N W``; all arrays on the half ball.

    The real and imaginary part of every coefficient carry half of the noise power, and the
    whole ball holds every one of them twice.
    """
    seen = np.asarray(sampling) > 0
    signal = model(reference, points, rotation, shift)[seen]
    data, w, n = (np.asarray(v)[seen] for v in (coefficients, sampling, noise))
    expected = w * signal
    projection = 2 * np.sum((data.conj() * expected).real / (w * n))
    variance = 2 * np.sum(np.abs(expected) ** 2 / (w * n))
    return projection / np.sqrt(variance)


def ccc(reference, coefficients, sampling, points, rotation, shift):
    """Correlation coefficient over the sampled part of the ball (binary sampling)."""
    seen = np.asarray(sampling) > 0
    signal = model(reference, points, rotation, shift)[seen]
    data = np.asarray(coefficients)[seen]
    norm = np.sum(np.abs(data) ** 2) * np.sum(np.abs(signal) ** 2)
    return np.sum((data.conj() * signal).real) / np.sqrt(norm)


def grid(reference, coefficients, sampling, noise, points, rotations, reach):
    """Matched scores ``[n, q, z, y, x]``: all rotations, all whole-voxel shifts within reach."""
    axis = np.arange(-reach, reach + 1)
    shifts = np.array([s[::-1] for s in itertools.product(axis, axis, axis)], np.float64)
    box = np.asarray(reference).shape[0]
    phase = np.exp(-2j * np.pi / box * (shifts @ np.asarray(points).T))
    scores = np.zeros((len(coefficients), len(rotations), len(shifts)))
    for q, rotation in enumerate(np.asarray(rotations)):
        still = model(reference, points, rotation, np.zeros(3))
        for n, (data, w) in enumerate(zip(coefficients, sampling)):
            seen = w > 0
            expected = still[seen] * w[seen]
            power = w[seen] * noise[seen]
            projection = 2 * (phase[:, seen] @ (expected * data[seen].conj() / power)).real
            scores[n, q] = projection / np.sqrt(2 * np.sum(np.abs(expected) ** 2 / power))
    return scores.reshape(*scores.shape[:2], *(len(axis),) * 3)
