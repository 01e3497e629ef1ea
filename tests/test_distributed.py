"""Several processes or devices find what one finds."""

import itertools
import os
import pathlib
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import script_runs

from sptjax import workdir
from sptjax.distributed import ALONE, Hosts, block_edges

SCRIPT = script_runs.EXPERIMENTS / "refinemulti.py"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return script_runs.small_set(tmp_path_factory.mktemp("distributed"))


def start(small, path, *options, devices=1):
    """A run of two rounds in a process of its own."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    words = [
        f"--input={small.particles}",
        f"--ref={small.ref(0)},{small.ref(1)}",
        f"--path={path}",
        "--wedge=-60,60",
        "--search=3",
        "--iter=2",
        "--noplots",
    ]
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *words, *options],
        env=os.environ | {"XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def processes(small, path, count, *options):
    """The same run in several processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = [f"--coordinator=localhost:{port}", f"--num_processes={count}", *options]
    return [start(small, path, *common, f"--process_id={i}") for i in range(count)]


def finish(*started):
    said = [process.communicate(timeout=900)[0] for process in started]
    assert [p.returncode for p in started] == [0] * len(started), "\n".join(said)
    return said


def last(path):
    return workdir.load_last_round(pathlib.Path(f"{path}_01")).arrays


@pytest.fixture(scope="module")
def alone(small):
    path = small.folder / "alone"
    finish(start(small, path))
    return last(path)


# ---------------------------------------------------------------- blocks


@pytest.mark.parametrize("n", [0, 1, 5, 24, 1001])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_blocks_cover_the_stack_and_begin_even(n, count):
    edges = block_edges(n, count)
    assert edges[0] == 0
    assert edges[-1] == n
    assert sorted(edges) == edges
    assert all(edge % 2 == 0 for edge in edges[:-1])
    sizes = np.diff(edges)
    assert sizes.max() - sizes.min() <= 3
    assert [Hosts(i, count).block(n) for i in range(count)] == list(itertools.pairwise(edges))
    halves = block_edges(n, 2 * count)
    assert set(edges) <= set(halves)  # sums of halves of blocks are sums of blocks


def test_alone_nothing_is_sent():
    array = np.arange(6.0)
    assert ALONE.joined(array) is array
    assert ALONE.total([array])[0] is array
    assert ALONE.same(array) is array
    assert ALONE.same_text("folder") == "folder"
    ALONE.wait("nothing")


# ---------------------------------------------------------------- runs


def same(found, alone):
    """Up to the rounding of the noise, whose sums are made of other batches."""
    assert set(found) == set(alone)
    for name, value in alone.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(found[name], value, rtol=2e-6, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.long
def test_two_processes_find_what_one_finds(small, alone):
    """One folder, written by the first process, which alone speaks."""
    path = small.folder / "two"
    said = finish(*processes(small, path, 2))
    assert "round 2/2" in said[0]
    assert "round" not in said[1]
    assert not pathlib.Path(f"{path}_02").exists()
    same(last(path), alone)


@pytest.mark.long
def test_two_devices_find_the_bits_of_one(small, alone):
    path = small.folder / "devices"
    finish(start(small, path, devices=2))
    found = last(path)
    for name, value in alone.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.slow
def test_three_processes_find_what_one_finds(small, alone):
    """Their sums are rounded otherwise, and poses climb on these."""
    path = small.folder / "three"
    finish(*processes(small, path, 3))
    found = last(path)
    np.testing.assert_array_equal(found["classes"], alone["classes"])
    np.testing.assert_allclose(found["score"], alone["score"], rtol=1e-4)
    np.testing.assert_allclose(found["references"], alone["references"], atol=5e-3)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_and_the_run_resumes(small, alone):
    path = small.folder / "dies"
    started = processes(small, path, 2)
    folder = pathlib.Path(f"{path}_01")
    while not (folder / "state_1.npz").exists():
        assert started[0].poll() is None, started[0].communicate()[0]
        try:
            started[0].wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            continue
    started[1].send_signal(signal.SIGKILL)
    said = started[0].communicate(timeout=300)[0]
    started[1].communicate()
    assert started[0].returncode != 0
    assert "process" in said
    finish(*processes(small, path, 2, "--resume"))
    same(last(path), alone)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--coordinator=localhost:1"], "belong together"),
        (
            ["--coordinator=localhost:1", "--num_processes=2", "--process_id=2"],
            "there are 2 processes, from 0 on",
        ),
        (["--parallel=mpi:none"], "mpi:N with N of at least 1"),
    ],
)
def test_contradictions_are_refused(small, tmp_path, options, message):
    process = start(small, tmp_path / "run", *options)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 1
    assert message in said
    assert not list(tmp_path.iterdir())
