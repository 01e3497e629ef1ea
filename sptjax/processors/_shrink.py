"""Processors that change the box by sampling more coarsely (EMAN2 ``math.*shrink`` and others).

Shrinking by blocks moves the centre: block ``i`` covers the voxels ``n i ... n i + n - 1``, so
that the centre of the result lies ``(n - 1) / 2`` voxels above that of the volume on each axis.
A pose found on the shrunken volume is corrected by the caller; ``math.fft.resample`` needs none.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .. import fourier
from .._errors import InputError
from .._types import Volume
from ._base import Processor, key


def _check_factor(n: int) -> None:
    if n < 2:
        raise InputError(f"n must be a whole number of at least 2, not {n}.")


def _blocks(volume: Volume, n: int) -> Float[Array, "z y x k"]:
    """Members of every n**3 block; voxels that fill no block are left out."""
    z, y, x = (size // n for size in volume.shape)
    whole = volume[: z * n, : y * n, : x * n].reshape(z, n, y, n, x, n)
    return whole.transpose(0, 2, 4, 1, 3, 5).reshape(z, y, x, n**3)


class MeanShrink(Processor):
    """Mean of blocks of ``n**3`` voxels (``math.meanshrink``)."""

    n: int = key()

    def __check_init__(self):
        _check_factor(self.n)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return _blocks(volume, self.n).mean(-1)

    def output_box(self, box: int) -> int:
        """A whole number of blocks."""
        return box // self.n

    def output_apix(self, apix: float, box: int) -> float:
        """Edge of a block."""
        return apix * self.n


class MedianShrink(Processor):
    """Upper median of blocks of ``n**3`` voxels (``math.medianshrink``)."""

    n: int = key()

    def __check_init__(self):
        _check_factor(self.n)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return jnp.sort(_blocks(volume, self.n), -1)[..., self.n**3 // 2]

    def output_box(self, box: int) -> int:
        """A whole number of blocks."""
        return box // self.n

    def output_apix(self, apix: float, box: int) -> float:
        """Edge of a block."""
        return apix * self.n


class _OfBlocks(Processor):
    """Processors that take one value of the ``search**3`` voxels from each ``n``-th on."""

    n: int = key(default=2)
    search: int = key(default=2)

    def __check_init__(self):
        _check_factor(self.n)
        _check_search(self.search)

    def output_box(self, box: int) -> int:
        """Every n-th voxel."""
        return box // self.n

    def output_apix(self, apix: float, box: int) -> float:
        """Every n-th voxel."""
        return apix * self.n


class MaxShrink(_OfBlocks):
    """Largest of the ``search**3`` voxels from each ``n``-th on (``math.maxshrink``)."""

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return _largest(volume, self.n, self.search)


class MinShrink(_OfBlocks):
    """Smallest of the ``search**3`` voxels from each ``n``-th on (``math.minshrink``)."""

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return -_largest(-volume, self.n, self.search)


def _check_search(search: int) -> None:
    if search < 1:
        raise InputError(f"search must be at least 1, not {search}.")


def _largest(volume: Volume, n: int, search: int) -> Volume:
    """Windows that leave the box are cut off at its end."""
    sizes = [size // n for size in volume.shape]
    ends = [max(0, (s - 1) * n + search - size) for s, size in zip(sizes, volume.shape)]
    found = lax.reduce_window(
        volume, -jnp.inf, lax.max, (search,) * 3, (n,) * 3, [(0, end) for end in ends]
    )
    return found[tuple(slice(s) for s in sizes)]


class FourierResample(Processor):
    """Another sampling of the same box, by cropping or padding in Fourier space.

    EMAN2: ``math.fft.resample``. The new box is ``floor(N / n + 1/2)``, the centre voxel stays the
    centre voxel and the mean density is kept. EMAN2 multiplies the density by ``(N / N')**3``,
    which ``compat`` does too, and keeps voxel 0 instead, the same thing for even boxes. The
    Nyquist planes of the smaller box are left out (EMAN2 keeps one of each pair).

    Attributes:
        n: above 1 shrinks, below 1 enlarges.
        compat: scale the density as EMAN2.
    """

    n: float = key()
    compat: bool = key(default=False)

    def __check_init__(self):
        if self.n <= 0:
            raise InputError(f"n must be positive, not {self.n:g}.")

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        old, new = volume.shape[-1], self.output_box(volume.shape[-1])
        resampled = fourier.fourier_resample(volume, new)
        return resampled * (old / new) ** 3 if self.compat else resampled

    def output_box(self, box: int) -> int:
        """Nearest whole number of voxels."""
        return int(box / self.n + 0.5)

    def output_apix(self, apix: float, box: int) -> float:
        """The box keeps its size in angstrom."""
        return apix * box / self.output_box(box)


REGISTRY = {
    "math.meanshrink": MeanShrink,
    "math.medianshrink": MedianShrink,
    "math.maxshrink": MaxShrink,
    "math.minshrink": MinShrink,
    "math.fft.resample": FourierResample,
}
