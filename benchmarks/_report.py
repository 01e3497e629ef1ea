"""Timing in turn, tables, and the record of where numbers come from."""

import dataclasses
import datetime
import importlib.metadata
import json
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags

from sptjax._errors import InputError

_OUT = flags.DEFINE_string("out", None, "write the results here, as JSON")
_ROOT = pathlib.Path(__file__).resolve().parent.parent


@dataclasses.dataclass
class Timing:
    """Seconds of repeated calls, the first (which compiles) apart."""

    result: Any
    first: float
    wall: list[float] = dataclasses.field(default_factory=list)
    cpu: list[float] = dataclasses.field(default_factory=list)

    def columns(self, n: int) -> dict[str, float]:
        """Milliseconds per particle, smallest and median."""
        wall, cpu = (np.array(x) * 1e3 / n for x in (self.wall, self.cpu))
        return {
            "wall_min_ms": wall.min(),
            "wall_median_ms": float(np.median(wall)),
            "cpu_min_ms": cpu.min(),
            "cpu_median_ms": float(np.median(cpu)),
        }


def interleaved(work: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
    """Call every function once to compile, then all of them in turn, ``repeats`` times."""
    out = {}
    for name, function in work.items():
        begun = time.perf_counter()
        result = jax.block_until_ready(function())
        out[name] = Timing(result, time.perf_counter() - begun)
    for _ in range(repeats):
        for name, function in work.items():
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(function())
            out[name].wall.append(time.perf_counter() - wall)
            out[name].cpu.append(time.process_time() - cpu)
    return out


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows under the union of their columns."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = [[_cell(row.get(name, "")) for name in names] for row in rows]
    width = [max(len(x) for x in column) for column in zip(names, *text)]
    for line in [names, *text]:
        print("  ".join(x.rjust(w) for x, w in zip(line, width)), flush=True)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def report(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Print tables and where they come from; write both to ``--out``."""
    git = ["git", "-C", str(_ROOT), "rev-parse", "--short", "HEAD"]
    packages = ("jax", "jaxlib", "numpy", "equinox")
    about = {
        "command": shlex.join(sys.argv),
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {platform.machine()}",
        "versions": {p: importlib.metadata.version(p) for p in packages},
    }
    for name, rows in tables.items():
        print(f"\n{name}")
        print_table(rows)
    print("\n" + "; ".join(f"{k}: {v}" for k, v in about.items()))
    if _OUT.value:
        path = pathlib.Path(_OUT.value)
        path.write_text(json.dumps({**about, "tables": tables}, indent=1, default=_plain) + "\n")


def numbers(text: str) -> list[float]:
    """Comma-separated numbers of a flag."""
    return [float(x) for x in text.split(",")]


def launch(main: Callable[[], None]) -> None:
    """Run a script; bad input is one sentence and status 1."""

    def guarded(argv: Sequence[str]) -> None:
        try:
            if len(argv) > 1:
                raise InputError(f"unexpected argument {argv[1]}; options are --name=value")
            main()
        except InputError as error:
            sys.exit(f"{pathlib.Path(sys.argv[0]).name}: {error}")

    app.run(guarded)
