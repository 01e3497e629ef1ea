"""Compression of a movie and a tomogram: CPU time and size against HDF5's own gzip.

python benchmarks/compress.py --repeats=5 --out=compress.json

The writers get the same integer codes, made beforehand: h5py with gzip in EMAN2's chunks, and
the chunks of sptjax deflated on threads. Whole files (MRC in, statistics, limits, codes, deflate,
flush, with and without reading back) are compared with h5py gzip 1 after the same choice of codes
by NumPy. All are called in turn; CPU seconds are those of the process, minima over the repeats.
Two bounds are no writers: the entropy of the codes, and one Huffman code for all of them.
"""

import functools
import heapq
import pathlib
import tempfile
import time
import zlib

import h5py
import mrcfile
import numpy as np
import scipy.fft
from _report import launch, report
from absl import flags

from sptjax.io import Compression, compress_file
from sptjax.io import _hdf_pixels as pixels
from sptjax.io._deflate import FASTEST, deflate
from sptjax.io._mapping import Mapping, choose_mapping, encode
from sptjax.io._pieces import workers
from sptjax.io._scan import scan

_FRAMES = flags.DEFINE_integer("frames", 50, "of the movie", lower_bound=1)
_DOSE = flags.DEFINE_list("dose", ["1", "2", "4"], "electrons per pixel and frame")
_BITS = flags.DEFINE_list("bits", ["4", "5"], "of the movies")
_REPEATS = flags.DEFINE_integer("repeats", 5, "how often everything is timed", lower_bound=1)
_SCRATCH = flags.DEFINE_string("scratch", None, "folder for the files")


class _Array:
    """An array in place of an image in a file."""

    depth = 1

    def __init__(self, values: np.ndarray) -> None:
        self.shape, self._values = values.shape, values

    def read(self, region: tuple[slice, ...]) -> np.ndarray:
        return self._values[region]


def movie(dose: float, frames: int) -> np.ndarray:
    """Independent counts, as int8."""
    rng = np.random.default_rng(1)
    return rng.poisson(dose, (frames, 1855, 1919)).astype(np.int8)


def tomogram() -> np.ndarray:
    """Noise, low-passed at 0.3 cycles per voxel, 128 sections of 512 x 512."""
    rng = np.random.default_rng(2)
    spectrum = scipy.fft.rfftn(rng.standard_normal((128, 512, 512), np.float32), workers=2)
    axes = [np.fft.fftfreq(128), np.fft.fftfreq(512), np.fft.rfftfreq(512)]
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    spectrum *= np.exp(-(z**2 + y**2 + x**2) / (2 * 0.12**2)).astype(np.float32)
    return scipy.fft.irfftn(spectrum, (128, 512, 512), workers=2).astype(np.float32)


def bounds(codes: np.ndarray) -> dict[str, float]:
    """Bytes of the codes if each is coded for itself: at best, and in whole bits."""
    counts = np.bincount(codes.reshape(-1))
    counts = counts[counts > 0]
    heap, whole = counts.tolist(), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        heapq.heappush(heap, both)
        whole += both
    best = -float(np.sum(counts * np.log2(counts / codes.size)))
    return {"entropy of the codes": best / 8, "one Huffman code": whole / 8}


def by_h5py(path: pathlib.Path, codes: np.ndarray, level: int) -> None:
    """One dataset, gzip inside HDF5, chunks of 8 rows as EMAN2 makes them."""
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "image", data=codes, chunks=(1, 8, codes.shape[2]), compression="gzip",
            compression_opts=level,
        )  # fmt: skip


def by_us(
    path: pathlib.Path, codes: np.ndarray, mapping: Mapping, threads: int, library: object
) -> None:
    """One dataset, chunks deflated outside HDF5."""
    with h5py.File(path, "w") as file, workers(threads) as work:
        pixels.deflate = functools.partial(deflate, library=library)
        storage = pixels.Storage(mapping.dtype, 1, None)
        pixels.write_pixels(file.create_group("i"), _Array(codes), storage, work)
        pixels.deflate = deflate


def quantised(path: pathlib.Path, source: np.ndarray, bits: int) -> None:
    """What a plain script does: limits, codes, gzip 1."""
    values = source.astype(np.float32)
    low, high = values.min(), values.max()
    codes = np.rint((values - low) / (high - low) * (2**bits - 1))
    by_h5py(path, codes.astype(np.uint8 if bits <= 8 else np.uint16), 1)


def timed(work: dict, path: pathlib.Path, repeats: int) -> list[dict]:
    """Minima of CPU and wall seconds, and the size of what is written."""
    rows = {name: {"writer": name, "cpu_s": np.inf, "wall_s": np.inf} for name in work}
    for _ in range(repeats):
        for name, function in work.items():
            path.unlink(missing_ok=True)
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            row = rows[name]
            row["cpu_s"] = min(row["cpu_s"], time.process_time() - cpu)
            row["wall_s"] = min(row["wall_s"], time.perf_counter() - wall)
            row["MB"] = path.stat().st_size / 1e6
    first = next(iter(rows.values()))
    for row in rows.values():
        row |= {"CPU gain": first["cpu_s"] / row["cpu_s"], "size": row["MB"] / first["MB"]}
    return list(rows.values())


def compared(source: np.ndarray, bits: int, folder: pathlib.Path, repeats: int) -> list[list[dict]]:
    """Tables of the writers and of whole files."""
    out = folder / "out.hdf"
    mapping = choose_mapping(scan(source), bits)
    codes = np.stack([encode(section, mapping)[0] for section in source])
    work = {f"h5py gzip {n}": functools.partial(by_h5py, out, codes, n) for n in (1, 4, 9)}
    slow = {"h5py gzip 9": work.pop("h5py gzip 9")}
    libraries = {"zlib": zlib, FASTEST.__name__.rpartition(".")[2]: FASTEST}
    for name, library in libraries.items():
        for threads in (1, 2):
            label = f"sptjax, {name}, {threads} thread{'s'[: threads - 1]}"
            work[label] = functools.partial(by_us, out, codes, mapping, threads, library)
    writers = timed(work, out, repeats)
    last = timed(slow, out, 1)[0]
    last |= {"CPU gain": writers[0]["cpu_s"] / last["cpu_s"], "size": last["MB"] / writers[0]["MB"]}
    size = writers[0]["MB"]
    bound = [
        {"writer": name, "MB": n / 1e6, "size": n / 1e6 / size} for name, n in bounds(codes).items()
    ]
    path = folder / "in.mrc"
    mrcfile.write(path, source, voxel_size=2.0, overwrite=True)
    files = {"NumPy, h5py gzip 1": functools.partial(quantised, out, source, bits)}
    for threads in (1, 2):
        for verify in (False, True):
            label = f"compress_file, {threads} thread{'s'[: threads - 1]}"
            files[label + (", read back" if verify else "")] = functools.partial(
                compress_file, path, out, Compression(bits), threads=threads, verify=verify
            )
    return [[*writers, last, *bound], timed(files, out, repeats)]


def main() -> None:
    """Movies of several doses, and a tomogram."""
    tables = {}
    jobs = [(dose, bits) for dose in _DOSE.value for bits in _BITS.value]
    with tempfile.TemporaryDirectory(dir=_SCRATCH.value) as name:
        folder = pathlib.Path(name)
        for dose, bits in jobs:
            title = f"movie, {dose} electrons, {bits} bits"
            source = movie(float(dose), _FRAMES.value)
            found = compared(source, int(bits), folder, _REPEATS.value)
            tables[f"{title}: writers"], tables[f"{title}: whole files"] = found
        writers, files = compared(tomogram(), 10, folder, _REPEATS.value)
        tables["tomogram, 10 bits: writers"], tables["tomogram: whole files"] = writers, files
    report(tables)


if __name__ == "__main__":
    launch(main)
