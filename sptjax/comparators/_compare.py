"""The two uses of a comparator: two volumes, or coefficients on a half ball."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Int

from .. import fourier
from .._errors import InputError
from .._types import Volume
from ._pair import Comparator, Pair, PerFrequency, Scalar
from ._regions import FSCTomo
from ._voxels import CCC, SqEuclidean

FLAT = 1e-12  # a variance below this share of the mean square is rounding: a constant volume


def compare(
    comparator: Comparator,
    a: Volume,
    b: Volume,
    *,
    apix: float = 1.0,
    wedge_a: Volume | None = None,
    wedge_b: Volume | None = None,
    mask: Volume | None = None,
) -> Scalar:
    """Score of two real volumes over the whole of Fourier space. Larger is better.

    Args:
        comparator: how to compare.
        a: ``[z, y, x]``, cubic (EMAN2's *this*: the particle).
        b: the same shape (EMAN2's *with*: the reference).
        apix: voxel size, angstrom.
        wedge_a: region that ``a`` samples, 0 to 1, zero frequency at ``n // 2``; all if None.
        wedge_b: region that ``b`` samples.
        mask: compare the voxels where it is above 0.5 only.

    Raises:
        InputError: volumes of different or unequal edges; ``fsc.tomo:compat=1`` without a wedge.
    """
    box = a.shape[-1]
    grids = [g for g in (b, wedge_a, wedge_b, mask) if g is not None]
    if a.shape != (box,) * 3 or any(g.shape != a.shape for g in grids):
        shapes = ", ".join(str(g.shape) for g in (a, *grids))
        raise InputError(f"A comparison needs cubes of one size, not {shapes}.")
    thresholded = isinstance(comparator, FSCTomo) and comparator.compat
    if thresholded and wedge_a is None and wedge_b is None:
        raise InputError("fsc.tomo:compat=1 measures amplitudes in a missing wedge: give a wedge.")
    vectors = fourier.half_grid(box)
    voxels = jnp.float32(box**3)
    if mask is not None:
        inside = (mask > 0.5).astype(a.dtype)
        voxels = jnp.maximum(inside.sum(), 1)
        fitted = isinstance(comparator, SqEuclidean) and comparator.normto
        if fitted or isinstance(comparator, CCC):
            a, b = (v - (v * inside).sum() / voxels for v in (a, b))
        a, b = a * inside, b * inside
    ones = jnp.ones(a.shape, a.dtype)
    region_a, region_b = (
        fourier.half_from_centred(ones if w is None else w).ravel() for w in (wedge_a, wedge_b)
    )
    radius = np.linalg.norm(vectors, axis=-1).ravel()
    kx, kz = vectors[..., 0].ravel(), vectors[..., 2].ravel()
    spectrum_a = _spectrum(a)
    return comparator.score(
        Pair(
            a=spectrum_a,
            b=_spectrum(b),
            estimate=spectrum_a,
            # per noise power of a coefficient when voxels have noise of variance 1
            overlap=region_a * region_b * jnp.asarray((radius > 0) / box**3, jnp.float32),
            missing_a=region_a <= 0,
            missing_b=region_b <= 0,
            count=jnp.asarray(fourier.hermitian_count(box).ravel()),
            distinct=jnp.asarray(~((kx == 0) & (kz < 0) & (2 * kz > -box))),
            radius=jnp.asarray(radius, jnp.float32),
            voxels=voxels,
            box=box,
            apix=apix,
        )
    )


def ball_score(
    comparator: Comparator,
    data: Complex[Array, " k"],
    model: Complex[Array, " k"],
    weight: PerFrequency,
    vectors: Int[Array, "k 3"],
    box: int,
    apix: float,
) -> Scalar:
    """Score of one particle against a reference in its frame, on a half ball. Larger is better.

    Equals :func:`compare` for complete data whose mean is 0 and whose frequencies all lie in the
    ball. Differentiable in ``data``, ``model`` and ``weight`` wherever the score is smooth.

    Args:
        comparator: how to compare.
        data: coefficients of the particle, multiplied by their sampling.
        model: coefficients of the reference, not weighted.
        weight: sampling of the particle (wedge, sum of CTF^2), >= 0.
        vectors: frequencies of :func:`sptjax.fourier.half_ball`.
        box: edge of the volumes, voxels.
        apix: voxel size, angstrom.
    """
    seen = weight > 0
    observed = jnp.where(seen, data, 0)
    everywhere = jnp.ones(weight.shape, bool)
    return comparator.score(
        Pair(
            a=observed,
            b=model,
            estimate=observed / jnp.where(seen, weight, 1).astype(data.dtype),
            overlap=jnp.where(seen, weight, 0),
            missing_a=~seen,
            missing_b=~everywhere,
            count=jnp.full_like(weight, 2.0),
            distinct=everywhere,
            radius=jnp.linalg.norm(jnp.asarray(vectors, weight.dtype), axis=-1),
            voxels=jnp.float32(box**3),
            box=box,
            apix=apix,
        )
    )


def _spectrum(volume: Volume) -> Complex[Array, " k"]:
    """Transform, half grid, without the rounding errors of a mean or of a constant volume."""
    mean = volume.mean()
    contrast = volume - mean
    flat = jnp.mean(contrast**2) <= FLAT * jnp.mean(volume**2)
    spectrum = fourier.rfftn(jnp.where(flat, 0, contrast)).ravel()
    return spectrum.at[0].set((mean * volume.size).astype(spectrum.dtype))
