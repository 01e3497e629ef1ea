"""Maps to simulate from: a built-in phantom, and files fitted to a box and voxel size."""

import jax.numpy as jnp
import numpy as np

from sptjax import fourier
from sptjax._errors import InputError

_PEAK = 6.05  # highest density of the blobs as summed


def _lobe(rng: np.random.Generator, count: int, centre, axes) -> np.ndarray:
    """Blobs in an ellipsoid: rows of (x, y, z, width, height), lengths in boxes."""
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    place = direction * rng.uniform(0, 1, (count, 1)) ** (1 / 3) * axes + centre
    width = 0.008 * 4 ** rng.uniform(0, 1, count)  # small blobs are denser, as atoms are
    return np.column_stack([place, width, rng.uniform(0.5, 1.5, count) * (0.02 / width) ** 1.2])


def phantom(box: int, state: int = 0) -> np.ndarray:
    """An asymmetric two-lobed particle in the likeness of a ribosome, radius about 0.3 n.

    Args:
        box: size n; the same object at any size, blurred where the voxels are too coarse for it.
        state: 0 whole; 1 without the small lobe; 2 with the small lobe swung by 35 degrees.

    Returns:
        float32 ``[n, n, n]``, highest density about 1, zero outside.

    Raises:
        InputError: an unknown state.
    """
    if state not in (0, 1, 2):
        raise InputError(f"phantom state {state}: 0, 1 and 2 are known")
    rng = np.random.default_rng(1955)
    large = _lobe(rng, 240, (0.02, 0.0, -0.07), (0.2, 0.17, 0.14))
    small = _lobe(rng, 110, (-0.02, 0.03, 0.145), (0.18, 0.09, 0.075))
    stalks = np.array(
        [
            [0.25, 0.06, 0.0, 0.02, 1.2],
            [0.27, 0.09, 0.03, 0.022, 1.2],
            [-0.2, -0.15, -0.04, 0.03, 1.3],
        ]
    )
    if state == 2:
        c, s = np.cos(np.radians(35)), np.sin(np.radians(35))
        small[:, :2] = small[:, :2] @ np.array([[c, s], [-s, c]])
        small[:, 1] += 0.04
    blobs = np.concatenate([large, stalks] if state == 1 else [large, stalks, small])
    width = np.maximum(blobs[:, 3], 0.55 / box)  # a coarse box shows a blurred blob of equal mass
    blobs[:, 4] *= (blobs[:, 3] / width) ** 3
    axis = (np.arange(box) - box // 2) / box
    x, y, z = (np.exp(-0.5 * ((axis - blobs[:, i, None]) / width[:, None]) ** 2) for i in range(3))
    density = np.einsum("b,bz,by,bx->zyx", blobs[:, 4], z, y, x, optimize=True)
    density /= _PEAK
    return np.where(density > 1e-4, density, 0).astype(np.float32)


def _pad_or_crop(volume: np.ndarray, box: int) -> np.ndarray:
    """Same centre voxel in another box; zero outside the old one."""
    before = box // 2 - volume.shape[0] // 2
    padded = np.pad(volume, [(max(before, 0), max(box - volume.shape[0] - before, 0))] * 3)
    start = max(-before, 0)
    return padded[(slice(start, start + box),) * 3]


def fit_map(volume: np.ndarray, old_apix: float, box: int, apix: float) -> np.ndarray:
    """A cubic map in another box and voxel size; its border level (the solvent) becomes zero.

    The map is padded to the size at which Fourier cropping comes closest to the voxel size.

    Args:
        volume: ``[m, m, m]``.
        old_apix: its angstrom per voxel.
        box: edge n of the result, voxels.
        apix: of the result, angstrom per voxel.

    Returns:
        Float32 ``[n, n, n]``.
    """
    faces = [face for v in (volume, volume.T, volume.swapaxes(0, 1)) for face in (v[0], v[-1])]
    volume = volume - np.median(np.stack(faces))
    sizes = np.arange(volume.shape[0], volume.shape[0] + 24)
    new = np.maximum(np.rint(sizes * old_apix / apix).astype(int), 1)
    best = int(np.argmin(np.abs(sizes * old_apix / new - apix)))
    wide = jnp.asarray(_pad_or_crop(volume, sizes[best]), jnp.float32)
    return _pad_or_crop(np.asarray(fourier.fourier_resample(wide, int(new[best]))), box)
