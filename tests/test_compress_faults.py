"""Nothing is lost: kills, full disks, read-only folders, damaged input, concurrent readers."""

import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import h5py
import numpy as np
import pytest
from oracles import eman2_hdf as eman2

from sptjax._errors import InputError
from sptjax.io import (
    Compression,
    LstEntry,
    compress_file,
    read_hdf,
    write_hdf,
    write_lst,
    write_mrc,
)
from sptjax.io import _hdf_pixels as pixels
from sptjax.io import compress as module
from sptjax.io._pieces import SLAB_BYTES

F = np.float32
SCRIPT = pathlib.Path(__file__).resolve().parents[1] / "experiments" / "compress.py"


def stack(rng, count=6, shape=(12, 60, 64)):
    return [rng.normal(0, 1, shape).astype(F) for _ in range(count)]


def line(*words):
    return [sys.executable, str(SCRIPT), *map(str, words)]


def test_case_19_a_second_run_changes_nothing(tmp_path, rng):
    images = stack(rng, 2)
    write_hdf(tmp_path / "a.hdf", images, 2.0, {"own": 3})
    os.chmod(tmp_path / "a.hdf", 0o640)
    outcome = compress_file(tmp_path / "a.hdf", tmp_path / "a.hdf", Compression(7))
    assert outcome.bytes_out < outcome.bytes_in / 3
    looks = eman2.raw_attributes, eman2.raw_chunks
    once = [look(tmp_path / "a.hdf", index) for look in looks for index in range(2)]
    compress_file(tmp_path / "a.hdf", tmp_path / "a.hdf", Compression(7))
    assert [look(tmp_path / "a.hdf", index) for look in looks for index in range(2)] == once
    assert (tmp_path / "a.hdf").stat().st_mode & 0o777 == 0o640
    compress_file(tmp_path / "a.hdf", tmp_path / "a.hdf", Compression(6))
    assert eman2.header(tmp_path / "a.hdf")["stored_renderbits"] == 6


def test_case_19_links_are_followed(tmp_path, rng):
    write_hdf(tmp_path / "a.hdf", stack(rng, 1), 2.0)
    (tmp_path / "link.hdf").symlink_to(tmp_path / "a.hdf")
    compress_file(tmp_path / "link.hdf", tmp_path / "link.hdf", Compression(7))
    assert (tmp_path / "link.hdf").is_symlink()
    assert eman2.header(tmp_path / "a.hdf")["stored_renderbits"] == 7


@pytest.mark.parametrize("place", ["deflate", "check_pixels"])
def test_case_19_a_failure_leaves_the_original(tmp_path, rng, monkeypatch, place):
    write_hdf(tmp_path / "a.hdf", stack(rng), 2.0)
    before = (tmp_path / "a.hdf").read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pixels if place == "deflate" else module, place, fail)
    with pytest.raises(InputError, match=r"Cannot write .*a\.hdf: No space left"):
        compress_file(tmp_path / "a.hdf", tmp_path / "a.hdf", threads=2)
    assert (tmp_path / "a.hdf").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.hdf"]


def test_wrong_bytes_on_disk_are_noticed(tmp_path, rng, monkeypatch):
    write_hdf(tmp_path / "a.hdf", stack(rng), 2.0)
    before = (tmp_path / "a.hdf").read_bytes()
    honest, calls = pixels.deflate, []

    def wrong(codes, level):
        calls.append(codes)
        if len(calls) == 7:
            codes = codes.copy()
            codes[0, 0] ^= 1
        return honest(codes, level)

    monkeypatch.setattr(pixels, "deflate", wrong)
    with pytest.raises(InputError, match="reads back differently"):
        compress_file(tmp_path / "a.hdf", tmp_path / "a.hdf")
    assert (tmp_path / "a.hdf").read_bytes() == before


def test_case_19_readers_see_the_old_or_the_new_file(tmp_path, rng):
    images = stack(rng)
    write_hdf(tmp_path / "a.hdf", images, 2.0)
    done, seen = threading.Event(), []

    def read():
        while not done.is_set():
            seen.append(np.abs(read_hdf(tmp_path / "a.hdf", 5)[0] - images[5]).max())

    reader = threading.Thread(target=read)
    reader.start()
    for bits in (9, 8, 7, 6):
        compress_file(tmp_path / "a.hdf", tmp_path / "a.hdf", Compression(bits))
    done.set()
    reader.join()
    assert len(seen) > 3
    assert max(seen) < 0.2


def killed(folder, original, rng, times):
    """Compress in place and kill at random moments; returns how often it had finished."""
    finished = 0
    begun = time.perf_counter()
    shutil.copy(original, folder / "a.hdf")
    subprocess.run(line(folder / "a.hdf", "--bits=9"), check=True)
    whole, new = time.perf_counter() - begun, (folder / "a.hdf").read_bytes()
    old = original.read_bytes()
    for _ in range(times):
        shutil.copy(original, folder / "a.hdf")
        process = subprocess.Popen(line(folder / "a.hdf", "--bits=9"))
        time.sleep(whole * rng.uniform(0.3, 1.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = (folder / "a.hdf").read_bytes()
        assert now in (old, new)
        finished += now == new
    return finished


def big(folder, rng):
    folder.mkdir()
    write_hdf(folder.parent / "original.hdf", stack(rng, 4, (12, 300, 300)), 2.0)
    return folder.parent / "original.hdf"


def test_kill(tmp_path, rng):
    finished = killed(tmp_path / "k", big(tmp_path / "k", rng), random.Random(1), 4)
    assert finished <= 4


@pytest.mark.slow
def test_kill_many_times(tmp_path, rng):
    finished = killed(tmp_path / "k", big(tmp_path / "k", rng), random.Random(2), 60)
    assert 0 < finished < 60


def test_no_room(tmp_path, rng):
    """Files cannot grow beyond 200 kB: the script fails, says why, and leaves the original."""
    write_hdf(tmp_path / "a.hdf", stack(rng), 2.0)
    write_mrc(tmp_path / "b.mrc", np.zeros((4, 4), F), 2.0)
    before = (tmp_path / "a.hdf").read_bytes()

    limit = "trap '' XFSZ; ulimit -f 195; exec \"$@\""  # blocks of 1024 bytes
    words = ["bash", "-c", limit, "bash", *line(tmp_path / "a.hdf", tmp_path / "b.mrc")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert f"Cannot write {tmp_path / 'a.hdf'}" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "a.hdf").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.hdf", "b.hdf", "b.mrc"]


def mounted(folder, options, command):
    """Run a shell command with a small file system of its own at a folder."""
    shell = f"mount -t tmpfs -o {options} none {folder} && {command}"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", shell], capture_output=True, text=True)
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip("no file system can be mounted here")
    return done


def test_full_disk(tmp_path, rng):
    write_hdf(tmp_path / "o.hdf", stack(rng), 2.0)
    disk = tmp_path / "disk"
    disk.mkdir()
    size = (tmp_path / "o.hdf").stat().st_size
    command = (
        f"cp {tmp_path}/o.hdf {disk}/a.hdf && {sys.executable} {SCRIPT} {disk}/a.hdf;"
        f" echo status $?; cmp {tmp_path}/o.hdf {disk}/a.hdf && echo same; ls -A {disk}"
    )
    done = mounted(disk, f"size={size + 200_000}", command)
    assert "No space left" in done.stderr
    assert done.stdout.split() == ["status", "1", "same", "a.hdf"]


def test_read_only_output(tmp_path, rng):
    write_hdf(tmp_path / "o.hdf", stack(rng, 1), 2.0)
    disk = tmp_path / "disk"
    disk.mkdir()
    command = f"{sys.executable} {SCRIPT} {tmp_path}/o.hdf --outpath={disk}; echo status $?"
    done = mounted(disk, "ro", command)
    assert "not writable" in done.stderr
    assert done.stdout.split() == ["status", "1"]


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("bits", [-1, 8])
def test_truncated_input(tmp_path, rng, share, bits):
    write_hdf(tmp_path / "o.hdf", stack(rng, 3), 2.0)
    compress_file(tmp_path / "o.hdf", tmp_path / "a.hdf", Compression(bits))
    whole = (tmp_path / "a.hdf").read_bytes()
    (tmp_path / "a.hdf").write_bytes(whole[: int(share * len(whole))])
    cut = (tmp_path / "a.hdf").read_bytes()
    with pytest.raises(InputError):
        compress_file(tmp_path / "a.hdf", tmp_path / "a.hdf", Compression(5))
    assert (tmp_path / "a.hdf").read_bytes() == cut
    assert {p.name for p in tmp_path.iterdir()} == {"a.hdf", "o.hdf"}


def test_a_hole_in_a_stack_is_named(tmp_path, rng):
    write_hdf(tmp_path / "a.hdf", stack(rng, 3), 2.0)
    with h5py.File(tmp_path / "a.hdf", "r+") as file:
        del file["MDF/images/1"]
    with pytest.raises(InputError, match="image 1 is missing"):
        compress_file(tmp_path / "a.hdf", tmp_path / "a.hdf")


@pytest.mark.parametrize("other", ["dataset", "attribute", "group"])
def test_a_file_that_holds_more_is_not_replaced(tmp_path, rng, other):
    for name, place in (("eman.hdf", "MDF/images/0/image"), ("bare.hdf", "data")):
        with h5py.File(tmp_path / name, "w") as file:
            file[place] = rng.normal(0, 1, (8, 9, 10)).astype(F)
            if name == "eman.hdf":
                file["MDF/images"].attrs["imageid_max"] = np.array([0], "i4")
            if other == "dataset":
                file[f"{pathlib.PurePath(place).parent}/angles"] = np.arange(4.0)
            elif other == "attribute":
                file.attrs["experiment"] = "a name"
            else:
                file.create_group("notes").attrs["experiment"] = "a name"
        before = (tmp_path / name).read_bytes()
        with pytest.raises(InputError, match=r"not replaced.*(angles|experiment|notes)"):
            compress_file(tmp_path / name, tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
        compress_file(tmp_path / name, tmp_path / "o.hdf")
        compress_file(tmp_path / "o.hdf", tmp_path / "o.hdf", Compression(7))
        assert eman2.header(tmp_path / "o.hdf")["stored_renderbits"] == 7


def test_a_file_with_a_header_that_is_not_kept_is_not_replaced(tmp_path, rng):
    write_hdf(tmp_path / "a.hdf", stack(rng, 2), 2.0)
    with h5py.File(tmp_path / "a.hdf", "r+") as file:
        file["MDF/images/1"].attrs["EMAN.names"] = ["several", "texts"]
    before = (tmp_path / "a.hdf").read_bytes()
    with pytest.raises(InputError, match=r"not replaced.*EMAN\.names"):
        compress_file(tmp_path / "a.hdf", tmp_path / "a.hdf")
    assert (tmp_path / "a.hdf").read_bytes() == before
    assert compress_file(tmp_path / "a.hdf", tmp_path / "b.hdf").lost == ("EMAN.names",)


def test_files_of_a_list_are_not_replaced_by_it(tmp_path, rng):
    write_hdf(tmp_path / "a.hdf", stack(rng, 3), 2.0)
    before = (tmp_path / "a.hdf").read_bytes()
    write_lst(tmp_path / "a.lst", [LstEntry(tmp_path / "a.hdf", 1)])
    with pytest.raises(InputError, match=r"a\.lst lists images of it"):
        compress_file(tmp_path / "a.lst", tmp_path / "a.hdf")
    assert (tmp_path / "a.hdf").read_bytes() == before


PEAK = """
import resource, sys, numpy as np
from sptjax.io import Compression, compress_file
import sptjax.io.compress
def peak():
    with open("/proc/self/status") as status:
        return next(int(l.split()[1]) * 1024 for l in status if l.startswith("VmHWM"))
compress_file(sys.argv[2], sys.argv[3], Compression(10), threads=2)
before = peak()
compress_file(sys.argv[1], sys.argv[3], Compression(int(sys.argv[4])), threads=int(sys.argv[5]))
print(peak() - before)
"""


def growth(folder, volume, bits, threads):
    """Bytes of memory that a large file takes beyond a small one."""
    write_mrc(folder / "small.mrc", np.ones((2, 8, 8), F), 2.0)
    words = [volume, folder / "small.mrc", folder / "o.hdf", bits, threads]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *map(str, words)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


ALLOCATED = """
import sys, tracemalloc
from sptjax.io import Compression, compress_file
small, volume, target, threads, cut = sys.argv[1:]
settings = Compression(no_outliers=cut == "cut")
compress_file(small, target, settings, threads=int(threads))
tracemalloc.start()
compress_file(volume, target, settings, threads=int(threads))
print(tracemalloc.get_traced_memory()[1])
"""


@pytest.mark.parametrize(("threads", "cut"), [(1, "all"), (2, "all"), (4, "all"), (1, "cut")])
def test_memory_is_a_slab_and_four_rows_of_chunks(tmp_path, rng, threads, cut):
    """What NumPy and Python allocate, for a volume of three slabs; without outliers or not."""
    write_hdf(tmp_path / "v.hdf", stack(rng, 1, (48, 512, 512)), 1.0)
    write_hdf(tmp_path / "small.hdf", stack(rng, 1), 1.0)
    names = [tmp_path / name for name in ("small.hdf", "v.hdf", "o.hdf")]
    words = [sys.executable, "-c", ALLOCATED, *map(str, names), str(threads), cut]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    peak = int(done.stdout)
    row = 4 * 64 * 512 * 4  # as float32: 64 lines of 512 voxels, four times
    assert peak < SLAB_BYTES + threads * row + 1e6


@pytest.mark.parametrize("options", [{}, {"no_outliers": True}, {"limits": (-1, 2)}, {"bits": 0}])
def test_progress_adds_up_to_the_file(tmp_path, rng, options):
    write_hdf(tmp_path / "a.hdf", stack(rng, 3), 2.0)
    told = []
    compress_file(
        tmp_path / "a.hdf", tmp_path / "b.hdf", Compression(**options), progress=told.append
    )
    assert len(told) >= 6
    assert sum(told) == pytest.approx(1)


@pytest.mark.parametrize("threads", [1, 2])
def test_memory_of_the_process(tmp_path, threads):
    """An HDF volume of 130 MB: no memory mapping hides what is read."""
    rng = np.random.default_rng(1)
    plane = rng.normal(0, 1, (512, 512)).astype(F)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        dataset = file.create_dataset("v", (130, 512, 512), "f4")
        for z in range(130):
            dataset[z] = np.roll(plane, 7 * z)
    assert growth(tmp_path, tmp_path / "v.h5", 10, threads) < 3 * SLAB_BYTES


@pytest.mark.slow
def test_case_26_a_volume_beyond_memory(tmp_path):
    """3000 x 3000 x 1200 voxels, 43 GB as floats, nearly all zero."""
    shape = (1200, 3000, 3000)
    rng = np.random.default_rng(3)
    blocks = {(z, y): rng.normal(0, 1, (2, 16, 64)).astype(F) for z, y in ((7, 40), (1190, 2900))}
    with h5py.File(tmp_path / "v.h5", "w") as file:
        dataset = file.create_dataset("v", shape, "f4", chunks=(1, 200, 3000), compression=1)
        for (z, y), block in blocks.items():
            dataset[z : z + 2, y : y + 16, 100:164] = block
    assert growth(tmp_path, tmp_path / "v.h5", 8, 2) < 5e8
    header = eman2.header(tmp_path / "o.hdf")
    assert (header["nz"], header["ny"], header["nx"]) == shape
    low, high, _ = eman2.limits(tmp_path / "o.hdf")
    scale = F(1) / F(255) * (F(high) - F(low))
    with h5py.File(tmp_path / "o.hdf") as file:
        codes = file["MDF/images/0/image"]
        for (z, y), block in blocks.items():
            found = codes[z : z + 2, y : y + 16, 100:164].astype(F) * scale + F(low)
            assert np.abs(found - block).max() <= 0.501 * scale
        assert not (codes[600, 1000:1010].astype(F) * scale + F(low)).any()
