"""Run folders: numbering under races, manifests, and rounds that survive damage and kills."""

import concurrent.futures
import pathlib
import shutil
import subprocess
import sys
import zipfile
from typing import Any

import numpy as np
import pytest

from sptjax import workdir
from sptjax._errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[1]


def manifest(program="refinemulti", **options):
    argv = ["experiments/refinemulti.py", "--align=a:b=1", "--input=my particles.hdf"]
    return workdir.describe(program, argv, options, seed=7, device="1 x cpu")


# ---------------------------------------------------------------- reserve, latest


def test_reserve_numbers_from_01_and_fills_the_first_gap(tmp_path):
    stem = tmp_path / "deep" / "er" / "spt"
    assert [workdir.reserve(stem).name for _ in range(3)] == ["spt_01", "spt_02", "spt_03"]
    shutil.rmtree(f"{stem}_02")
    assert workdir.reserve(str(stem) + "/").name == "spt_02"
    (tmp_path / "deep" / "er" / "spt_04").write_text("a file takes the name too")
    assert workdir.reserve(stem).name == "spt_05"


def test_reserve_goes_past_99(tmp_path):
    for number in range(1, 100):
        (tmp_path / f"run_{number:02d}").mkdir()
    assert workdir.reserve(tmp_path / "run").name == "run_100"


def test_concurrent_jobs_never_share_a_folder(tmp_path):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: workdir.reserve(tmp_path / "spt").name, range(40)))
    assert sorted(made) == [f"spt_{number:02d}" for number in range(1, 41)]


def test_reserve_refuses_impossible_places(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for stem in (file / "spt", file / "deeper" / "spt", "/proc/sptjax/spt", "/proc/spt"):
        with pytest.raises(InputError, match="cannot create this folder"):
            workdir.reserve(stem)
    for stem in ("", ".", "..", "/"):
        with pytest.raises(InputError, match="--path="):
            workdir.reserve(stem)


def test_latest_is_the_run_started_last_whatever_its_number(tmp_path):
    stem = tmp_path / "spt"
    with pytest.raises(InputError, match="no run to resume"):
        workdir.latest(stem)
    first, second = workdir.reserve(stem), workdir.reserve(stem)
    workdir.write_manifest(first, manifest())
    assert workdir.latest(stem) == first  # the second died before it began
    workdir.write_manifest(second, manifest())
    assert workdir.latest(stem) == second
    shutil.rmtree(first)
    workdir.write_manifest(workdir.reserve(stem), manifest())
    assert workdir.latest(stem) == first  # number 01 again, started after 02
    assert workdir.latest(second) == second
    other = workdir.reserve(tmp_path / "spt_other")
    workdir.write_manifest(other, manifest())
    assert workdir.latest(stem) == first
    with pytest.raises(InputError, match="no run to resume"):
        workdir.latest(tmp_path)


# ---------------------------------------------------------------- manifest


def test_manifest_round_trips_and_says_what_was_run(tmp_path):
    wrote = manifest(delta=np.float32(12.5), nref=3, ref=None, tilts=(1, 2), out=tmp_path)
    workdir.write_manifest(tmp_path, wrote)
    read = workdir.read_manifest(tmp_path)
    assert read == wrote
    assert read.options == dict(delta=12.5, nref=3, ref=None, tilts=[1, 2], out=str(tmp_path))
    assert read.command.endswith("--align=a:b=1 '--input=my particles.hdf'")
    assert (read.seed, read.device) == (7, "1 x cpu")
    assert read.versions["numpy"] == np.__version__
    assert set(read.versions) == {"sptjax", "jax", "jaxlib", "numpy", "python"}


def test_parameters_file_has_the_documented_lines(tmp_path):
    wrote = manifest(delta=12.0, sym="c3")
    workdir.write_manifest(tmp_path, wrote)
    text = (tmp_path / "parameters_refinemulti.txt").read_text()
    assert text == f"{wrote.started}\ndelta=12.0\nsym=c3\n\n{wrote.command}\n"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"program": "x"}'])
def test_a_bad_manifest_is_named(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json: this is not the manifest"):
        workdir.read_manifest(tmp_path)


def test_resume_refuses_options_that_change_the_result(tmp_path):
    started: dict[str, Any] = dict(delta=12, mass=float("nan"), path="spt", iter=4, tilts=(1, 2))
    workdir.write_manifest(tmp_path, manifest(**started))
    workdir.check_resume(tmp_path, started)
    workdir.check_resume(tmp_path, started | {"path": "x", "iter": 9, "verbose": 2, "delta": 12.0})
    with pytest.raises(InputError, match=r"--delta \(was 12, is 15\)\.$"):
        workdir.check_resume(tmp_path, started | {"delta": 15})
    with pytest.raises(InputError, match=r'--nref \(was absent, is 3\), --sym .*is "c2"\)'):
        workdir.check_resume(tmp_path, started | {"sym": "c2", "nref": 3})
    with pytest.raises(InputError, match=r"--tilts \(was \[1, 2\], is absent\)"):
        workdir.check_resume(tmp_path, {k: v for k, v in started.items() if k != "tilts"})
    with pytest.raises(InputError, match="--iter"):
        workdir.check_resume(tmp_path, started | {"iter": 9}, free=())


# ---------------------------------------------------------------- rounds

META = {"resolution": 0.1 + 0.2, "names": ["a", "b"], "converged": False, "none": None}


def assert_bit_exact(read, wrote):
    assert list(read) == list(wrote)
    for name, array in wrote.items():
        assert read[name].dtype == array.dtype
        assert read[name].shape == array.shape
        assert read[name].tobytes() == array.tobytes()


def test_rounds_come_back_bit_for_bit(tmp_path, rng):
    volumes = rng.normal(size=(2, 3, 4)).astype(np.float32)
    volumes[0, 0, :3] = np.nan, -0.0, np.inf
    arrays = {
        "file": volumes,  # a name that numpy.savez cannot take
        "references/0": np.asfortranarray(volumes.astype(">f8")),
        "half": volumes.astype(np.float16)[::2, ::-1],
        "complex": volumes + 1j,
        "classes": np.arange(5, dtype=np.int8),
        "scalar": np.float64(2.5),
        "empty": np.zeros((0, 3)),
        "words": np.array(["α", "longer"]),
        "table": np.array([(1, 2.0)], dtype=[("i", "i4"), ("x", "f8")]),
    }
    path = workdir.save_round(tmp_path, 3, arrays, META)
    assert path == tmp_path / "state_3.npz"
    state = workdir.load_last_round(tmp_path)
    assert state is not None
    assert (state.index, state.meta, state.skipped) == (3, META, ())
    assert_bit_exact(state.arrays, arrays)
    with np.load(path) as plain:
        assert np.array_equal(plain["classes"], arrays["classes"])
    assert [p.name for p in tmp_path.iterdir()] == ["state_3.npz"]


def test_the_newest_round_is_the_highest_number_not_the_last_name(tmp_path):
    assert workdir.load_last_round(tmp_path) is None
    for index in (10, 9, 2):
        workdir.save_round(tmp_path, index, {}, {"i": index})
    (tmp_path / "state_11.npz.tmp").write_text("half")
    (tmp_path / "state_final.npz").write_text("not ours")
    state = workdir.load_last_round(tmp_path)
    assert state is not None
    assert (state.index, state.meta) == (10, {"i": 10})


def test_what_the_file_cannot_keep_is_refused(tmp_path):
    for array in (np.array([None]), np.zeros(2, "V2")):
        with pytest.raises(TypeError, match="'x'"):
            workdir.save_round(tmp_path, 0, {"x": array}, {})
    with pytest.raises(TypeError, match="JSON"):
        workdir.save_round(tmp_path, 0, {}, {"x": object()})
    assert list(tmp_path.iterdir()) == []


def test_any_damage_is_recognised_and_the_round_before_is_used(tmp_path):
    old, new = {"x": np.arange(3)}, {"x": np.arange(4), "y": np.ones(2, np.float32)}
    workdir.save_round(tmp_path, 0, old, {})
    path = workdir.save_round(tmp_path, 1, new, META)
    whole = path.read_bytes()
    damaged = [whole[:length] for length in range(0, len(whole), 25)]
    for position in range(len(whole)):
        content = bytearray(whole)
        content[position] ^= 1 << position % 8 if position % 2 else 0xFF
        damaged.append(bytes(content))
    rejected = 0
    for content in damaged:
        path.write_bytes(content)
        state = workdir.load_last_round(tmp_path)
        assert state is not None
        if state.skipped:  # otherwise the byte was a date or a flag of the archive
            rejected += 1
            assert (state.index, state.skipped) == (0, ("state_1.npz",))
            assert_bit_exact(state.arrays, old)
        else:
            assert (state.index, state.meta) == (1, META)
            assert_bit_exact(state.arrays, new)
    assert rejected > 0.7 * len(damaged)


def test_a_state_under_another_number_is_not_believed(tmp_path):
    workdir.save_round(tmp_path, 4, {}, {}).rename(tmp_path / "state_5.npz")
    assert workdir.load_last_round(tmp_path) is None


def test_a_consistent_archive_with_altered_content_fails_the_checksum(tmp_path):
    path = workdir.save_round(tmp_path, 0, {"x": np.arange(3.0)}, {})
    with np.load(path) as saved:
        meta = saved["meta.json"]
    for x in (np.array([0.0, 1.0, 3.0]), np.arange(3.0)[:, None], np.arange(3).view("f8")):
        np.savez(path, x=x)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("meta.json", meta)
        assert workdir.load_last_round(tmp_path) is None


# ---------------------------------------------------------------- log


def test_log_lines_survive_half_a_line(tmp_path):
    assert workdir.read_lines(tmp_path, "log.jsonl") == []
    workdir.append_line(tmp_path, "log.jsonl", {"round": 0, "score": np.float32(0.5)})
    log = tmp_path / "log.jsonl"
    log.write_bytes(log.read_bytes() + b'{"round": 1, "sc')
    assert [line["round"] for line in workdir.read_lines(tmp_path, "log.jsonl")] == [0]
    workdir.append_line(tmp_path, "log.jsonl", {"round": 1, "occupancy": np.array([3, 4])})
    assert workdir.read_lines(tmp_path, "log.jsonl") == [
        {"round": 0, "score": 0.5},
        {"round": 1, "occupancy": [3, 4]},
    ]
    log.write_bytes(b'{"rou')
    workdir.append_line(tmp_path, "log.jsonl", {})
    assert log.read_bytes() == b"{}\n"


# One process that starts runs and kills them; each run saves rounds as fast as it can.
KILLER = """
import os, pathlib, random, signal, sys, time
import numpy as np
from sptjax import workdir

def run(folder):
    for index in range(10**6):
        x = np.random.default_rng(index).normal(size=20_000)
        workdir.save_round(folder, index, {"x": x}, {"index": index})
        workdir.append_line(folder, "log.jsonl", {"round": index})

random.seed(0)
for trial in range(15):
    folder = workdir.reserve(pathlib.Path(sys.argv[1]) / "run")
    child = os.fork()
    if child == 0:
        run(folder)
    while not (folder / "log.jsonl").exists():
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.08))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_a_kill_at_any_moment_leaves_a_readable_folder(tmp_path):
    command = [sys.executable, "-c", KILLER, str(tmp_path)]
    subprocess.run(command, check=True, timeout=30, cwd=ROOT)
    folders = sorted(tmp_path.iterdir())
    assert len(folders) == 15
    for folder in folders:
        state = workdir.load_last_round(folder)
        assert state is not None
        assert state.skipped == ()
        x = np.random.default_rng(state.index).normal(size=20_000)
        assert_bit_exact(state.arrays, {"x": x})
        rounds = [line["round"] for line in workdir.read_lines(folder, "log.jsonl")]
        assert rounds == list(range(len(rounds)))
        assert rounds[-1] in (state.index, state.index - 1)  # the state is written before the line
        workdir.append_line(folder, "log.jsonl", {"round": "resumed"})
        assert workdir.read_lines(folder, "log.jsonl")[-1] == {"round": "resumed"}
