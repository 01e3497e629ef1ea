"""The Fourier convention, and the only caller of ``jnp.fft``.

``F(k) = sum_x f(x) exp(-2 pi i k.(x - c) / n)`` with the origin at the centre voxel
``c = n // 2``, so that a rotation about the centre acts on ``F`` without phases. Frequencies
``k = (kx, ky, kz)`` are in Fourier pixels (cycles per box). Real volumes have
``F(-k) = conj F(k)``; a *half ball* holds one of each pair, sorted by ``|k|``, so that every
lower band of frequencies is a prefix of it. Frequency zero is never part of a ball.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float, Int

from ._types import Volume


def half_ball(kmax: float, kmin: float = 1.0) -> np.ndarray:
    """Integer frequencies of one Hermitian half of the ball ``kmin <= |k| <= kmax``.

    Returns:
        int32 ``[K, 3]`` as (kx, ky, kz), sorted by ``|k|``; ``kx >= 0`` throughout.
    """
    m = int(np.floor(kmax + 1e-6))
    axis = np.arange(-m, m + 1)
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    k = np.stack([x, y, z], -1).reshape(-1, 3)
    half = (k[:, 0] > 0) | ((k[:, 0] == 0) & ((k[:, 1] > 0) | ((k[:, 1] == 0) & (k[:, 2] > 0))))
    square = (k * k).sum(1)
    k = k[half & (square <= kmax * kmax + 1e-6) & (square >= kmin * kmin - 1e-6)]
    return k[np.argsort((k * k).sum(1), kind="stable")].astype(np.int32)


@functools.lru_cache(maxsize=256)
def half_ball_size(kmax: float) -> int:
    """Number of entries of ``half_ball(kmax)``: the length of that prefix of a larger ball."""
    return len(half_ball(kmax))


def rfftn(volume: Float[Array, "*b z y x"]) -> Complex[Array, "*b z y h"]:
    """Forward transform, origin at voxel 0 (NumPy layout, half axis x).

    Args:
        volume: real, cubic or not, with any leading axes.
    """
    return jnp.fft.rfftn(volume, axes=(-3, -2, -1))


def irfftn(coefficients: Complex[Array, "*b z y h"], box: int) -> Float[Array, "*b z y x"]:
    """Inverse of :func:`rfftn` for a cubic box.

    Args:
        coefficients: layout of :func:`rfftn`, ``h = n // 2 + 1``.
        box: edge n of the result, voxels.
    """
    return jnp.fft.irfftn(coefficients, s=(box, box, box), axes=(-3, -2, -1))


def fft_centred(volume: Volume) -> Complex[Array, "z y x"]:
    """Full transform with the origin at the centre voxel, zero frequency at ``n // 2``.

    Args:
        volume: ``[n, n, n]``.
    """
    return jnp.fft.fftshift(jnp.fft.fftn(jnp.fft.ifftshift(volume)))


def half_grid(box: int) -> np.ndarray:
    """Frequencies (kx, ky, kz) of the :func:`rfftn` layout, int32 ``[n, n, n // 2 + 1, 3]``.

    Args:
        box: edge n, voxels.
    """
    full = np.fft.fftfreq(box, 1 / box)
    half = np.arange(box // 2 + 1)
    z, y, x = np.meshgrid(full, full, half, indexing="ij")
    return np.rint(np.stack([x, y, z], -1)).astype(np.int32)


def centre_phase(vectors: Float[Array, "*b 3"], box: int) -> Complex[Array, "*b"]:
    """Factor that moves the origin of coefficients from voxel 0 to the centre voxel.

    Args:
        vectors: frequencies (kx, ky, kz), Fourier pixels.
        box: edge n, voxels.
    """
    angle = (2 * jnp.pi * (box // 2) / box) * vectors.sum(-1)
    return lax.complex(jnp.cos(angle), jnp.sin(angle))


def ball_coefficients(
    volumes: Float[Array, "n z y x"], vectors: Int[Array, "k 3"]
) -> Complex[Array, "n k"]:
    """Coefficients of every volume at the half-ball frequencies, origin at the centre voxel.

    Args:
        volumes: ``[n, z, y, x]``, cubic.
        vectors: integer (kx, ky, kz) with ``kx >= 0`` and ``|k| <= box / 2``.
    """
    box = volumes.shape[-1]
    spectrum = rfftn(volumes).reshape(volumes.shape[0], -1)
    kx, ky, kz = vectors[:, 0], vectors[:, 1], vectors[:, 2]
    index = ((kz % box) * box + ky % box) * (box // 2 + 1) + kx
    phase = centre_phase(vectors.astype(jnp.float32), box)
    return spectrum[:, index] * phase[None, :]


def from_ball(
    values: Complex[Array, "n k"], vectors: Int[Array, "k 3"], box: int
) -> Float[Array, "n z y x"]:
    """Real volumes with these half-ball coefficients and no others.

    The inverse of :func:`ball_coefficients`, in any box.

    Args:
        values: coefficients, origin at the centre voxel.
        vectors: integer (kx, ky, kz) of one Hermitian half, ``|k| < box / 2``.
        box: edge of the volumes.
    """
    kx, ky, kz = vectors[:, 0], vectors[:, 1], vectors[:, 2]
    values = values * jnp.conj(centre_phase(vectors.astype(jnp.float32), box))[None]
    row, mirror = ((k[1] % box) * box + k[0] % box for k in ((ky, kz), (-ky, -kz)))
    on_plane = jnp.where(kx == 0, mirror * (box // 2 + 1), box**3)
    flat = jnp.zeros((values.shape[0], box * box * (box // 2 + 1)), values.dtype)
    flat = flat.at[:, row * (box // 2 + 1) + kx].set(values)
    flat = flat.at[:, on_plane].set(jnp.conj(values), mode="drop")
    return irfftn(flat.reshape(-1, box, box, box // 2 + 1), box)


def ball_samples(grids: Float[Array, "n z y x"], vectors: Int[Array, "k 3"]) -> Float[Array, "n k"]:
    """Values of centred Fourier-space grids (zero frequency at ``n // 2``) at the frequencies.

    Args:
        grids: cubic.
        vectors: frequencies (kx, ky, kz), whole Fourier pixels.
    """
    box = grids.shape[-1]
    kx, ky, kz = ((vectors[:, i] + box // 2) % box for i in range(3))
    return grids.reshape(grids.shape[0], -1)[:, (kz * box + ky) * box + kx]


def half_from_centred(grid: Float[Array, "*b z y x"]) -> Float[Array, "*b z y h"]:
    """A Hermitian-even centred grid (zero frequency at ``n // 2``) in the layout of rfftn."""
    box = grid.shape[-1]
    corner = jnp.fft.ifftshift(grid, axes=(-3, -2, -1))
    return corner[..., : box // 2 + 1]


def shell_index(box: int) -> np.ndarray:
    """Nearest shell ``round(|k|)`` of every :func:`rfftn` voxel, int32 ``[n, n, n // 2 + 1]``.

    Args:
        box: edge n, voxels.
    """
    return np.rint(np.linalg.norm(half_grid(box), axis=-1)).astype(np.int32)


def hermitian_count(box: int) -> np.ndarray:
    """How many voxels of the full transform each half-grid voxel stands for (1 or 2).

    Args:
        box: edge n, voxels.

    Returns:
        Int32 ``[n, n, n // 2 + 1]``.
    """
    count = np.full((box, box, box // 2 + 1), 2.0, np.float32)
    count[..., 0] = 1.0
    if box % 2 == 0:
        count[..., -1] = 1.0
    return count


def shell_mean(values: Float[Array, "z y h"], box: int) -> Float[Array, " s"]:
    """Mean over the shells 0 ... n // 2 of a half-grid quantity, Friedel partners counted.

    Args:
        values: layout of :func:`rfftn`.
        box: edge n, voxels.

    Returns:
        ``n // 2 + 1`` means.
    """
    shells = np.minimum(shell_index(box), box // 2 + 1).ravel()
    weight = jnp.asarray(hermitian_count(box).ravel())
    total = jnp.zeros(box // 2 + 2).at[shells].add(values.ravel() * weight)
    count = np.bincount(np.asarray(shells), hermitian_count(box).ravel())
    return (total / jnp.asarray(count, jnp.float32))[: box // 2 + 1]


def radial_filter(
    volume: Float[Array, "*b z y x"], gain: Float[Array, " s"]
) -> Float[Array, "*b z y x"]:
    """Multiply by a radial gain given at the shells 0 ... n // 2, interpolated linearly.

    Frequencies beyond the last shell (the corners) are set to zero.

    Args:
        volume: cubic, with any leading axes.
        gain: ``n // 2 + 1`` factors.
    """
    box = volume.shape[-1]
    radius = jnp.asarray(np.linalg.norm(half_grid(box), axis=-1), jnp.float32)
    table = jnp.interp(radius, jnp.arange(gain.shape[0], dtype=jnp.float32), gain, right=0.0)
    gain = table.reshape((1,) * (volume.ndim - 3) + (box, box, -1))
    spectrum = rfftn(volume)
    return irfftn(spectrum * gain.astype(spectrum.dtype), box)


def fourier_resample(volume: Volume, box: int) -> Volume:
    """Crop or pad in Fourier space to another box, keeping the centre voxel and the mean density.

    The voxel size becomes ``apix * n_old / box`` (EMAN2 ``math.fft.resample``, with the
    density preserved).

    Args:
        volume: cubic.
        box: edge of the result, voxels.
    """
    old = volume.shape[-1]
    spectrum = jnp.fft.fftshift(jnp.fft.fftn(jnp.fft.ifftshift(volume)))
    small = min(old, box)
    # the even Nyquist plane has no partner in the other box: leave it out
    low = -((small - 1) // 2)
    keep = slice(old // 2 + low, old // 2 - low + 1)
    put = slice(box // 2 + low, box // 2 - low + 1)
    cropped = jnp.zeros((box,) * 3, spectrum.dtype)
    cropped = cropped.at[put, put, put].set(spectrum[keep, keep, keep])
    scale = (box / old) ** 3
    return jnp.fft.fftshift(jnp.fft.ifftn(jnp.fft.ifftshift(cropped)).real) * scale
