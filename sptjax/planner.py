"""How much memory a run takes, and how it is made to fit.

The prediction counts what grows with the particles, the box and the classes, and adds what a
process takes before it has read anything. Coefficients that do not fit in memory go to a file
(:mod:`sptjax.rows`); if even a batch does not fit, batches get smaller.
"""

import dataclasses
import os
import pathlib

import numpy as np

from . import fourier
from ._chunk import devices, on_cpu
from ._errors import InputError
from .align import BATCH_BYTES
from .averaging import BLOCKS, lanes
from .classify import widest_band
from .resample import padded_box
from .rows import IN_MEMORY, Storage

PROGRAM = 630e6  # Python, JAX and the compiled programs of a run on a CPU, measured
DEVICE = 550e6  # programs of each further device of a CPU, measured
USED_SHARE = 0.8  # of the free memory, unless a limit is stated
READ = (32, 16, 8, 4, 2, 1)  # raw volumes in a batch, as the working memory is halved
_GB = 1e9


@dataclasses.dataclass(frozen=True)
class Size:
    """What the memory of a run depends on.

    Attributes:
        particles: how many.
        box: of the raw particles, voxels.
        copies: boxes of the copies that are aligned (coarse, fine, full), voxels.
        classes: references of a half.
        halves: 2 if halves have references of their own, else 1.
        own_sampling: whether every particle has a sampling grid of its own.
        split: whether first classes come from the differences between the particles.
        half: coefficients are kept as pairs of bfloat16.
        processes: that share the particles.
    """

    particles: int
    box: int
    copies: tuple[int, ...]
    classes: int
    halves: int = 1
    own_sampling: bool = False
    split: bool = False
    half: bool = False
    processes: int = 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a run uses memory.

    Attributes:
        storage: of the coefficients.
        batch_bytes: working memory of a batch of the alignment.
        read: raw volumes in a batch.
        memory: predicted peak, bytes.
        disk: size of the file of coefficients, bytes.
        limit: what may be used, bytes.
    """

    storage: Storage
    batch_bytes: int
    read: int
    memory: float
    disk: float
    limit: float

    def __str__(self) -> str:
        where = "in memory"
        if self.storage.folder is not None:
            where = f"{self.disk / _GB:.1f} GB in {self.storage.folder}"
        return (
            f"memory: {self.memory / _GB:.1f} GB of {self.limit / _GB:.1f} GB expected at most,"
            f" coefficients {where}, {self.read} particles at a time"
        )


def available() -> float:
    """Bytes of memory that are free for this process."""
    free = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    meminfo = pathlib.Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = float(lines["MemAvailable"].split()[0]) * 1024
    group = pathlib.Path("/sys/fs/cgroup")
    try:
        most = (group / "memory.max").read_text().strip()
        used = (group / "memory.current").read_text().strip()
        free = min(free, float(most) - float(used))  # "max" is no number: no limit
    except (OSError, ValueError):
        pass
    return free


def coefficient_bytes(size: Size) -> float:
    """Of the coefficients of all particles in all copies, and of their sampling.

    Args:
        size: of the run.
    """
    each = IN_MEMORY.bytes_each(np.complex64) / (2 if size.half else 1)
    each += 4 * size.own_sampling
    own = -(-size.particles // size.processes)
    return float(sum(own * _ball(box) * each for box in size.copies))


def working_bytes(size: Size, batch_bytes: int, read: int) -> float:
    """Of the largest stage of a run, without the coefficients.

    Args:
        size: of the run.
        batch_bytes: working memory of a batch of the alignment.
        read: raw volumes in a batch.
    """
    voxels, half_grid = size.box**3, size.box**2 * (size.box // 2 + 1)
    volume = 4 * voxels
    # two batches of raw volumes (one is read ahead), their finite copies, half transforms and
    # coefficients, with grids of their own perhaps
    reading = read * (2 * volume + 2 * volume + 8 * half_grid + 24 * _ball(size.box))
    reading += 3 * read * volume * size.own_sampling
    copy = max(size.copies)
    tables = size.classes * 2 * 8 * padded_box(copy, 2.0) ** 3
    tables *= len(devices()) if on_cpu() else 1  # every device of a CPU has its own in this memory
    aligning = batch_bytes + tables
    groups = 2 * size.classes
    sums = groups * half_grid * 12
    # sums, what some become while a batch is added, and as many padded particles
    averaging = (BLOCKS + lanes()) * sums + read * 3 * volume
    averaging += lanes() * 8 * padded_box(size.box, 2.0) ** 3
    measuring = sums + 14 * size.classes * volume
    splitting = 3 * 12 * size.particles * _split_ball(size) if size.split else 0
    # references, maps and halves of the state before and after a round
    state = (size.halves + 6) * 2 * size.classes * volume
    poses = size.particles * size.classes * 52 * 4
    return state + poses + max(reading, aligning, averaging, measuring, splitting)


def make(size: Size, *, limit: float, folder: pathlib.Path | None) -> Plan:
    """The fastest way that fits.

    Args:
        size: of the run.
        limit: bytes that may be used.
        folder: where a file of coefficients may go; None: nowhere.

    Raises:
        InputError: nothing fits; the numbers are said.
    """
    kept = coefficient_bytes(size)
    for place in (None, folder) if folder is not None else (None,):
        resident = kept if place is None else 0.0
        for halvings, read in enumerate(READ):
            batch_bytes = BATCH_BYTES >> halvings
            memory = program_bytes() + resident + working_bytes(size, batch_bytes, read)
            if memory <= limit:
                return Plan(
                    Storage(place, size.half), batch_bytes, read, memory,
                    0.0 if place is None else kept, limit,
                )  # fmt: skip
    least = program_bytes() + working_bytes(size, BATCH_BYTES >> len(READ) - 1, READ[-1])
    raise InputError(
        f"{size.particles} particles of {size.box} voxels and {size.classes} references need"
        f" {least / _GB:.1f} GB of memory and {kept / _GB:.1f} GB for coefficients, and"
        f" {limit / _GB:.1f} GB may be used (--memory, --scratch, --shrink, fewer references)"
    )


def program_bytes() -> float:
    """Of Python, JAX and what it compiles for every device; an accelerator holds its own."""
    return PROGRAM + DEVICE * (len(devices()) - 1 if on_cpu() else 0)


def _ball(box: int) -> int:
    return fourier.half_ball_size(box // 2 - 2)


def _split_ball(size: Size) -> int:
    return fourier.half_ball_size(widest_band(size.particles, size.box))
