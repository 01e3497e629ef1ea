"""Peak memory of a whole run over many particles on disk, and its number of compilations.

python benchmarks/memory.py --scratch=/tmp --out=memory.json
python benchmarks/memory.py --scratch=/tmp --n=32 --box=32

A stack of a few simulated particles, repeated with fresh noise, is written to the scratch folder
(2,000 particles of 64 voxels: 2 GB) and goes through one gold-standard round of classaverage in a
process of its own, whose peak resident memory is measured. Then a run of 3 rounds with 3
references on a small stack in this process, compilations counted by round.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from _common import C1, ROOT, SEED, plant, refinement
from _report import launch, report
from absl import flags

from sptjax import io
from sptjax._errors import InputError
from sptjax.align import AlignmentSettings
from sptjax.phantom import phantom
from sptjax.refinement import RefineSettings

_N = flags.DEFINE_integer("n", 2000, "particles", lower_bound=8)
_BOX = flags.DEFINE_integer("box", 64, "voxels")
_SCRATCH = flags.DEFINE_string("scratch", None, "folder for the stack", required=True)
_MAKE = flags.DEFINE_string("make", None, "only write the stack into this folder (used inside)")

APIX = 10.0
DIFFERENT = 8  # particles that are simulated; the rest repeats them
COMPILED = "/jax/core/compile/backend_compile_duration"


def make(folder: pathlib.Path) -> None:
    """Write ``particles.hdf`` and ``reference.hdf``."""
    map_, rng = phantom(_BOX.value), np.random.default_rng(SEED.value)
    some = plant(map_[None], DIFFERENT, 0.1, 3.0, apix=APIX, seed=SEED.value).stack.volumes
    with io.HdfWriter(folder / "particles.hdf", APIX) as writer:
        for i in range(_N.value):
            noise = rng.standard_normal(map_.shape, np.float32) * some[0].std()
            writer.append(some[i % DIFFERENT] + noise)
    io.write_hdf(folder / "reference.hdf", map_, APIX)


def child(command: list[str]) -> tuple[float, float, float]:
    """Run a program: peak resident memory in GB, wall seconds, CPU seconds."""
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command])
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise InputError(f"{' '.join(command)} failed")
    seconds = time.perf_counter() - begun
    return used.ru_maxrss * 1024 / 1e9, seconds, used.ru_utime + used.ru_stime


def memory() -> list[dict]:
    """Peak memory of one round."""
    with tempfile.TemporaryDirectory(dir=_SCRATCH.value) as name:
        folder = pathlib.Path(name)
        child([*sys.argv, f"--make={folder}"])
        size = (folder / "particles.hdf").stat().st_size
        options = {
            "input": folder / "particles.hdf",
            "ref": folder / "reference.hdf",
            "path": folder / "run",
            "wedge": "-60,60",
            "search": 4,
            "iter": 1,
        }
        script = ROOT / "experiments" / "classaverage.py"
        command = [str(script), *(f"--{key}={value}" for key, value in options.items())]
        peak, wall, cpu = child(command)
    return [
        {
            "particles": _N.value,
            "box": _BOX.value,
            "stack_gb": size / 1e9,
            "peak_gb": peak,
            "wall_s": wall,
            "cpu_s": cpu,
        }
    ]


def compilations() -> list[dict]:
    """Programs compiled until the end of each round."""
    seen = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration_secs, **_: seen.append(duration_secs) if event == COMPILED else None
    )
    maps = np.stack([phantom(32, state) for state in range(3)])
    planted = plant(maps, 24, 0.3, 2.0, apix=APIX, seed=SEED.value)
    simulation = len(seen)
    settings = RefineSettings(AlignmentSettings(search_vox=3), C1 * 3, APIX)
    rows, before, spent = [], simulation, sum(seen)
    steps = refinement(
        maps, planted.load(), planted.stack, planted.sampling, settings, 3, until_converged=False
    )
    for state, seconds, _ in steps:
        rows.append(
            {
                "round": state.round + 1,
                "compilations": len(seen) - before,
                "compile_s": sum(seen) - spent,
                "round_s": seconds,
            }
        )
        before, spent = len(seen), sum(seen)
    return rows


def main() -> None:
    """Both, or the stack alone."""
    if not pathlib.Path(_SCRATCH.value).is_dir():
        raise InputError(f"--scratch: {_SCRATCH.value} is not a folder")
    if _MAKE.value:
        make(pathlib.Path(_MAKE.value))
        return
    report(
        {
            "peak memory of classaverage, one round": memory(),
            "compilations, 3 rounds, 3 references (the first includes reading and calibration)": (
                compilations()
            ),
        }
    )


if __name__ == "__main__":
    launch(main)
