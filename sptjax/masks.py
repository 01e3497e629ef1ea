"""Soft masks: 1 in the molecule, 0 in the solvent, a raised cosine between."""

import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from ._errors import InputError
from ._types import Volume


def sphere(box: int, radius_vox: float, soft_edge_vox: float = 0.0) -> Volume:
    """Sphere about the centre voxel: 1 up to the radius, then a raised cosine down to 0.

    Args:
        box: side of the cube, voxels.
        radius_vox: distance up to which (inclusive) the mask is 1.
        soft_edge_vox: width of the edge outside the radius; 0 is a sharp mask.

    Raises:
        InputError: a negative radius or edge.
    """
    if radius_vox < 0 or soft_edge_vox < 0:
        raise InputError(
            f"A spherical mask needs radius and soft edge >= 0, got {radius_vox} and"
            f" {soft_edge_vox} voxels."
        )
    axis = np.arange(box) - box // 2
    square = axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2
    return jnp.asarray(_raised_cosine(np.sqrt(square) - radius_vox, soft_edge_vox), jnp.float32)


def automask(
    volume: Volume | np.ndarray,
    smooth_vox: float = 2.0,
    threshold_sigma: float = 4.0,
    dilate_vox: float = 3.0,
    soft_edge_vox: float = 5.0,
) -> Volume:
    """Soft mask around the molecule of a map, for FSC.

    The map is smoothed by a Gaussian; voxels above ``median + threshold_sigma * sigma`` count
    as density, where sigma is 1.4826 times the median absolute deviation (the solvent's, as
    long as the molecule fills less than about half the box) and at least a twentieth of the
    density range, which serves maps without noise. The largest connected piece is kept, its
    cavities are filled, and it is dilated and given a raised-cosine edge. Runs on the host.

    Args:
        volume: density, higher in the molecule than in the solvent.
        smooth_vox: standard deviation of the Gaussian, voxels.
        threshold_sigma: threshold above the median in robust standard deviations.
        dilate_vox: how far the mask reaches beyond the thresholded surface.
        soft_edge_vox: width of the edge outside that.

    Raises:
        InputError: the map is constant or not finite, so that nothing stands out of it.
    """
    density = np.asarray(volume, np.float64)
    if not np.isfinite(density).all():
        raise InputError("The automask needs a finite map, but this one holds NaN or infinity.")
    smooth = ndimage.gaussian_filter(density, smooth_vox, mode="nearest")
    median = np.median(smooth)
    sigma = 1.4826 * np.median(np.abs(smooth - median))
    top = np.percentile(smooth, 99.9) - median
    threshold = median + max(threshold_sigma * sigma, 0.05 * top)
    labels = np.zeros(smooth.shape, np.int32)
    ndimage.label(smooth > threshold, output=labels)
    if labels.max() == 0:
        raise InputError(
            f"The automask found no density above {threshold_sigma:g} sigma of the solvent."
        )
    largest = 1 + np.argmax(np.bincount(labels.ravel())[1:])
    molecule = ndimage.binary_fill_holes(labels == largest)
    distance = np.asarray(ndimage.distance_transform_edt(~np.asarray(molecule)))
    return jnp.asarray(_raised_cosine(distance - dilate_vox, soft_edge_vox), jnp.float32)


def _raised_cosine(beyond: np.ndarray, width: float) -> np.ndarray:
    """1 where ``beyond <= 0``, 0 from ``width`` on, half a cosine between."""
    if width == 0:
        return (beyond <= 0).astype(np.float64)
    return 0.5 + 0.5 * np.cos(np.pi * np.clip(beyond / width, 0, 1))
