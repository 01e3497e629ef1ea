"""Rows of numbers in memory and in files, and what reads ahead of them."""

import os
import threading
import time

import ml_dtypes
import numpy as np
import pytest

from sptjax._chunk import read_ahead, side_by_side
from sptjax._errors import InputError
from sptjax.rows import Storage


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("dtype", [np.complex64, np.float32])
def test_rows_come_back(tmp_path, rng, on_disk, half, dtype):
    """Whole or in part, in any order, over many small reads."""
    values = rng.normal(size=(50, 31)).astype(dtype)
    if dtype == np.complex64:
        values += 1j * rng.normal(size=values.shape).astype(np.float32)
    rows = Storage(tmp_path if on_disk else None, half).rows(50, 31, dtype)
    assert len(rows) == 50
    order = rng.permutation(50)
    for part in np.array_split(order, 7):
        rows.write(part, values[part])
    want = values
    if half and dtype == np.complex64:
        pairs = values.view(np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)
        want = pairs.view(np.complex64)
        assert np.abs(want - values).max() < 2**-7 * np.abs(values).max()
    picked = np.array([3, 3, 49, 0])
    for size in (None, 31, 12, 0):
        got = rows.read(picked, size)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, want[picked][:, :size])


def test_a_file_of_rows_leaves_no_name(tmp_path):
    rows = Storage(tmp_path).rows(10, 4, np.float32)
    rows.write(np.arange(10), np.ones((10, 4), np.float32))
    assert os.listdir(tmp_path) == []
    assert rows.read(np.array([9])).tolist() == [[1, 1, 1, 1]]


def test_the_length_is_reserved_at_once(tmp_path):
    with pytest.raises(InputError, match=r"no room for the .* --scratch"):
        Storage(tmp_path).rows(2**22, 2**30, np.float32)  # 16 PiB
    with pytest.raises(InputError, match="--scratch"):
        Storage(tmp_path / "missing").rows(1, 1, np.float32)


def test_threads_share_a_file(tmp_path, rng):
    values = rng.normal(size=(64, 257)).astype(np.float32)
    rows = Storage(tmp_path).rows(64, 257, np.float32)
    rows.write(np.arange(64), values)
    wrong = []

    def check(seed):
        own = np.random.default_rng(seed)
        for _ in range(50):
            picked = own.integers(0, 64, 5)
            if not np.array_equal(rows.read(picked, 200), values[picked, :200]):
                wrong.append(picked)

    threads = [threading.Thread(target=check, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_reading_is_ahead_by_one_and_no_more():
    begun, used = [], []

    def read(item):
        begun.append(item)
        return item * item

    for item, value in read_ahead(read, range(5)):
        assert value == item * item
        deadline = time.monotonic() + 5
        while len(begun) < min(item + 2, 5) and time.monotonic() < deadline:
            time.sleep(0.001)
        used.append((item, len(begun)))
    assert used == [(0, 2), (1, 3), (2, 4), (3, 5), (4, 5)]
    assert list(read_ahead(read, [])) == []


def test_what_fails_ahead_fails_at_its_item():
    def read(item):
        if item == 2:
            raise InputError("particle 2")
        return item

    seen = []
    with pytest.raises(InputError, match="particle 2"):
        seen.extend(item for item, _ in read_ahead(read, range(5)))


@pytest.mark.parametrize(("lanes", "each"), [(1, 1), (1, 3), (2, 2)])
def test_so_many_are_worked_on_at_a_time(lanes, each):
    """In order, never more than the lanes hold, the first of each lane before all others."""
    lock, running, most, finished = threading.Lock(), set(), [], []

    def work(number, item):
        with lock:
            assert number < lanes or set(range(lanes)) <= set(finished)
            running.add(number)
            most.append(len(running))
        time.sleep(0.02 if number else 0.1)
        with lock:
            running.remove(number)
            finished.append(number)
        return item * 2

    found = list(side_by_side(work, range(10), lanes, each, object()))
    assert found == [(i, 2 * i) for i in range(10)]
    assert max(most) == lanes * each


def test_the_first_waits_for_nobody_where_the_work_is_known():
    together = threading.Barrier(2, timeout=5)  # breaks unless two are worked on together
    kind = "test of known work"

    found = list(side_by_side(lambda number, item: item, range(4), 1, 2, kind))
    again = list(side_by_side(lambda number, item: together.wait(), range(4), 1, 2, kind))
    assert [x for _, x in found] == [0, 1, 2, 3]
    assert sorted(x for _, x in again) == [0, 0, 1, 1]


def test_what_fails_beside_others_fails_at_its_item():
    def work(number, item):
        if item == 2:
            raise InputError("particle 2")
        return item

    seen = []
    with pytest.raises(InputError, match="particle 2"):
        seen.extend(item for item, _ in side_by_side(work, range(9), 1, 3, object()))
    assert seen == [0, 1]
