"""How much of an image survives compression: its spectrum, and size and error by bits."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import scipy.fft

from .io._deflate import deflate
from .io._hdf_pixels import Storage
from .io._inputs import FileImage, open_input
from .io._mapping import choose_mapping
from .io._pieces import chunk_shape, pieces
from .io._scan import scan

_CROP = {1: 1 << 20, 2: 2048, 3: 256}  # longest edge by rank
_MOST_IMAGES = 4
_SHELLS = 32


class Tradeoff(NamedTuple):
    """What a number of bits costs and keeps."""

    bits: int
    ratio: float  # of the size as float32 to the size compressed
    worst_sigma: float  # largest error in standard deviations of the image
    rms_sigma: float


def crops(path: str, *, split: bool | None = None, unsigned: bool = False) -> list[np.ndarray]:
    """The central parts of the first images of a file, float32, small enough for memory.

    Args:
        path: any readable file.
        split: as in :func:`~sptjax.io.compress.compress_file`.
        unsigned: likewise.
    """
    with open_input(path, split=split, unsigned=unsigned) as images:
        return [_central(images.image(i)) for i in range(min(images.count, _MOST_IMAGES))]


def _central(image: FileImage) -> np.ndarray:
    edge = _CROP[len(image.shape)]
    starts = [max(0, (n - edge) // 2) for n in image.shape]
    first, *rest = (slice(a, a + min(n, edge)) for a, n in zip(starts, image.shape))
    planes = [
        image.read((slice(z, z + 1),))[0][tuple(rest)] for z in range(first.start, first.stop)
    ]
    return np.asarray(np.stack(planes), np.float32)


def correlation(originals: Sequence[np.ndarray], restored: Sequence[np.ndarray]) -> np.ndarray:
    """Fourier ring or shell correlation of images with their restored selves, all together.

    Images may have any shape, hence shells are equal steps of the frequency in cycles per
    voxel. Values that are not finite count as the mean; the mean itself is left out.

    Args:
        originals: images of rank 1 to 3.
        restored: the same, restored.

    Returns:
        ``[32]``: shell ``s`` holds frequencies from ``s / 64`` to ``(s + 1) / 64``; NaN where
        there are none.
    """
    sums = np.zeros((3, _SHELLS))
    for pair in zip(originals, restored):
        f, g = (np.asarray(scipy.fft.rfftn(_levelled(x))) for x in pair)
        axes = [np.fft.fftfreq(n) for n in pair[0].shape[:-1]]
        axes.append(np.fft.rfftfreq(pair[0].shape[-1]))
        grid = np.meshgrid(*axes, indexing="ij", sparse=True)
        shell = (np.sqrt(sum(np.square(x) for x in grid)) * 2 * _SHELLS).astype(int)
        shell = np.broadcast_to(shell, f.shape).reshape(-1).copy()
        shell[0] = _SHELLS  # the mean, which is not counted
        for row, product in zip(sums, (f * g.conj(), f * f.conj(), g * g.conj())):
            row += np.bincount(shell, np.real(product).reshape(-1), _SHELLS + 1)[:_SHELLS]
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[0] / np.sqrt(sums[1] * sums[2])


def _levelled(image: np.ndarray) -> np.ndarray:
    finite = np.isfinite(image)
    mean = image[finite].mean(dtype=np.float64) if finite.any() else 0.0
    return np.where(finite, image - mean, 0.0)


def tradeoffs(images: Sequence[np.ndarray], bits: Sequence[int]) -> Iterator[Tradeoff]:
    """Size and error of images by the number of bits, nothing being written.

    Args:
        images: float32.
        bits: 2 to 16.
    """
    scans = [scan(image) for image in images]
    for number in bits:
        packed, worst, squares, values = 0, 0.0, 0.0, 0
        for image, found in zip(images, scans):
            mapping = choose_mapping(found, number)
            storage = Storage(mapping.dtype, 1, mapping, measure=True)
            rows = chunk_shape(image.shape, mapping.dtype.itemsize)[-2:][0]
            for _, part in pieces((slice(0, len(image)),), image, rows):
                codes, _ = storage.encode(part)
                packed += len(deflate(codes, 1))
                largest, total = storage.error(part, codes)
                scale = found.sigma or 1.0
                worst, squares = max(worst, largest / scale), squares + total / scale**2
            values += image.size
        yield Tradeoff(number, 4 * values / packed, worst, (squares / values) ** 0.5)
