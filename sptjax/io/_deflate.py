"""Zlib streams for HDF5 chunks of noise, made faster and smaller than by gzip level 1.

Pixels of cryo-EM images are nearly independent, so that looking for repeated strings costs
time and space: Huffman codes alone do better, and run lengths where an image is masked. Bytes
of one significance are kept together (HDF5's shuffle filter) and each such plane is a deflate
block of its own, with its own code table and its own strategy. Any HDF5 library reads the
result as plain gzip.

zlib-ng is used if it is installed (the optional extra ``fast``), otherwise Python's zlib.
"""

import importlib
import zlib
from typing import Any

import numpy as np

_REPEATED_BYTE = np.uint64(0x0101010101010101)
_HUFFMAN_BELOW, _RUNS_ABOVE = 0.1, 0.2  # fraction of words that repeat one byte
_EVERY = 4  # word that is looked at
_HEADER = b"\x78\x01"
_MEMORY = 9


def _load() -> Any:
    """zlib-ng, or the standard library's zlib with the same functions."""
    try:
        return importlib.import_module("zlib_ng.zlib_ng")
    except ImportError:
        return zlib


FASTEST: Any = _load()


def deflate(chunk: np.ndarray, level: int, library: Any = FASTEST) -> bytes:
    """A zlib stream of a chunk, shuffled if its items have several bytes.

    Args:
        chunk: the whole chunk, contiguous, little-endian.
        level: 0 stored; 1 as described above; 2 to 9 also try strings of that level and keep
            what is shorter.
        library: with the functions of :mod:`zlib`.
    """
    planes = _planes(chunk.reshape(-1).view(f"u{chunk.itemsize}"))
    if level == 0:
        return library.compress(planes, 0)
    ends = [*(False for _ in planes[1:]), True]
    parts = [_plane(plane, final, library) for plane, final in zip(planes, ends)]
    checksum = library.adler32(planes).to_bytes(4, "big")
    short = b"".join([_HEADER, *parts, checksum])
    if level == 1:
        return short
    return min(short, library.compress(planes, level), key=len)


def _planes(words: np.ndarray) -> np.ndarray:
    """The bytes of unsigned numbers, the lowest of all first."""
    if words.itemsize == 1:
        return words[None]
    planes = np.empty((words.itemsize, words.size), np.uint8)
    for place, plane in enumerate(planes):
        plane[:] = words >> (8 * place) if place else words
    return planes


def _plane(plane: np.ndarray, final: bool, library: Any) -> bytes:
    """Raw deflate blocks of one plane, ending on a byte; the last ones end the stream."""
    share = _repeated(plane)
    tried = []
    if share <= _RUNS_ABOVE:
        tried.append(library.Z_HUFFMAN_ONLY)
    if share >= _HUFFMAN_BELOW:
        tried.append(library.Z_RLE)
    return min((_blocks(plane, final, strategy, library) for strategy in tried), key=len)


def _blocks(plane: np.ndarray, final: bool, strategy: int, library: Any) -> bytes:
    packer = library.compressobj(1, library.DEFLATED, -15, _MEMORY, strategy)
    ending = library.Z_FINISH if final else library.Z_SYNC_FLUSH
    return packer.compress(plane) + packer.flush(ending)


def _repeated(plane: np.ndarray) -> float:
    """Fraction of aligned 8-byte words that repeat one byte, of a sample."""
    words = plane[: plane.size // 8 * 8].view(np.uint64)[::_EVERY]
    if not words.size:
        return 1.0
    return np.count_nonzero(words == (words & np.uint64(0xFF)) * _REPEATED_BYTE) / words.size
