"""Fourier shell correlation, voxel by voxel over the full transform."""

import numpy as np


def fsc(a, b):
    """FSC of the shells 0 ... n // 2; both Friedel partners counted, which changes nothing."""
    box = len(a)
    f, g = np.fft.fftn(a), np.fft.fftn(b)
    cross, power_f, power_g = (np.zeros(box) for _ in range(3))
    for index in np.ndindex(*a.shape):
        k = [(i + box // 2) % box - box // 2 for i in index]
        shell = round(np.sqrt(k[0] ** 2 + k[1] ** 2 + k[2] ** 2))
        if shell < box:
            cross[shell] += (f[index] * np.conj(g[index])).real
            power_f[shell] += abs(f[index]) ** 2
            power_g[shell] += abs(g[index]) ** 2
    keep = slice(0, box // 2 + 1)
    return cross[keep] / np.sqrt(power_f[keep] * power_g[keep])
