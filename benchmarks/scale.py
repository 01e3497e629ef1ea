"""Time and memory against the number of particles, devices and processes.

python benchmarks/scale.py --out=scale.json
python benchmarks/scale.py --counts=32,64 --box=24 --devices=1 --processes=1

Particles are made when they are read (a few simulated ones, each with noise of its own), so that
no stack limits their number; their coefficients go to a file. Every row is one process, or one set
of processes, of its own: reading, then one round (global search, one reference, gold-standard
halves) after a first one that compiled everything. Peak memory stands beside what the planner
predicted. One process takes all cores; for strong and weak scaling every process is bound to a
core of its own.
"""

import json
import os
import pathlib
import resource
import socket
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from _common import C1, SEED, plant
from _report import launch, report
from absl import flags

from sptjax import distributed, planner
from sptjax._errors import InputError
from sptjax.align import AlignmentSettings
from sptjax.copies import Pipelines, load_copies
from sptjax.phantom import phantom
from sptjax.refinement import RefineSettings, refine_round
from sptjax.rows import Storage
from sptjax.state import initial_state

F = flags.FLAGS
_BOX = flags.DEFINE_integer("box", 48, "voxels")
_COUNTS = flags.DEFINE_list("counts", ["100", "1000", "10000"], "particles")
_SHARED = flags.DEFINE_integer("shared", 512, "particles that devices or processes share")
_DEVICES = flags.DEFINE_list("devices", ["1", "2"], "forced devices of the host")
_PROCESSES = flags.DEFINE_list("processes", ["1", "2"], "processes")
_SEARCH = flags.DEFINE_integer("search", 4, "half width of the searched cube, voxels")
_RUN = flags.DEFINE_string("run", None, "JSON of one measurement (used inside)")

APIX, SNR, DIFFERENT = 12.0, 0.1, 16


# A process joins the others before anything computes, and importing this file does.
JOIN = """
import runpy, sys
from sptjax import distributed
address, count, index = sys.argv[1:4]
del sys.argv[:4]
distributed.join(address, int(count), int(index))
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Endless:
    """Particles made when they are read."""

    def __init__(self, some: np.ndarray, count: int) -> None:
        self._some, self._count = some, count
        self.box: int = some.shape[-1]

    def __len__(self) -> int:
        return self._count

    def read(self, indices: np.ndarray) -> np.ndarray:
        """float32 ``[b, z, y, x]``, the same for the same index."""
        rows = [int(i) for i in np.asarray(indices)]
        out = self._some[[i % DIFFERENT for i in rows]].copy()
        for one, i in zip(out, rows):
            draw = np.random.Generator(np.random.SFC64(i))
            one += one.std() * draw.standard_normal(one.shape, np.float32)
        return out


def measure(work: dict) -> dict:
    """One row, in this process."""
    hosts = distributed.ALONE
    if work["processes"] > 1:
        hosts = distributed.Hosts(work["index"], work["processes"])
    map_ = phantom(_BOX.value)[None]
    planted = plant(map_, DIFFERENT, SNR, 2.0, apix=APIX, seed=SEED.value)
    stack = Endless(planted.stack.volumes, work["count"])
    settings = RefineSettings(
        AlignmentSettings(search_vox=_SEARCH.value), C1, APIX, gold_standard=True
    )
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        copies = load_copies(
            stack, planted.sampling, Pipelines(), APIX,
            storage=Storage(pathlib.Path(folder)), hosts=hosts,
        )  # fmt: skip
        read = time.perf_counter() - begun
        state = initial_state(map_, len(stack), gold_standard=True, expected_score=15.0)
        if work["count"] <= 2 * _SHARED.value:  # many particles compile in no time of theirs
            refine_round(state, copies, stack, planted.sampling, settings)
        begun, used = time.perf_counter(), time.process_time()
        refine_round(state, copies, stack, planted.sampling, settings)
        seconds, used = time.perf_counter() - begun, time.process_time() - used
    size = planner.Size(work["count"], _BOX.value, (_BOX.value,), 1, 2, processes=work["processes"])
    predicted = planner.program_bytes() + planner.working_bytes(size, 768 * 2**20, planner.READ[0])
    return {
        "particles": work["count"],
        "processes": work["processes"],
        "devices": jax.local_device_count(),
        "read_ms_each": 1e3 * read / work["count"],
        "round_ms_each": 1e3 * seconds / work["count"],
        "round_cpu_ms_each": 1e3 * used * work["processes"] / work["count"],
        "peak_GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "predicted_GB": predicted / 1e9,
    }


def apart(count: int, *, devices: int = 1, processes: int = 1, bound: bool = False) -> dict:
    """One row, from processes of their own, each bound to one core if asked."""
    cores = sorted(os.sched_getaffinity(0)) if bound else []
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    started = []
    for index in range(processes):
        work = {"count": count, "processes": processes, "index": index}
        command = [
            str(pathlib.Path(__file__).resolve()),
            *sys.argv[1:],
            f"--run={json.dumps(work)}",
        ]
        if processes > 1:
            command = ["-c", JOIN, address, str(processes), str(index), *command]
        if bound:
            os.sched_setaffinity(0, {cores[index % len(cores)]})
        started.append(
            subprocess.Popen(
                [sys.executable, *command], env=environment, stdout=subprocess.PIPE, text=True
            )
        )
    if bound:
        os.sched_setaffinity(0, cores)
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise InputError(f"a measurement of {count} particles failed")
    row = json.loads(said[0].splitlines()[-1])
    print(row, flush=True)
    return row


def main() -> None:
    """All rows, or one."""
    if _RUN.value:
        print(json.dumps(measure(json.loads(_RUN.value))))
        return
    processes = [int(p) for p in _PROCESSES.value]
    report(
        {
            "particles": [apart(int(n)) for n in _COUNTS.value],
            "devices": [apart(_SHARED.value, devices=int(d)) for d in _DEVICES.value],
            "strong": [apart(_SHARED.value, processes=p, bound=True) for p in processes],
            "weak": [apart(_SHARED.value * p, processes=p, bound=True) for p in processes],
        }
    )


if __name__ == "__main__":
    launch(main)
