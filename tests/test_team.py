"""Devices that share one batch: who works with whom, and that they find what one device finds."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from team_searches import PARTS, SEARCHES

from sptjax._team import teams

DEVICES = 4
PROGRAM = pathlib.Path(__file__).with_name("team_searches.py")


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, [8]), (2, [4, 4]), (3, [2, 2, 2]), (5, [1] * 5), (8, [1] * 8), (99, [1] * 8), (0, [8])],
)
def test_devices_in_teams(count, sizes):
    """Teams of one size, nobody twice; at least as many particles as devices need none."""
    made = teams(list("abcdefgh"), count)
    assert [len(team) for team in made] == sizes
    members = [device for team in made for device in team]
    assert len(set(members)) == len(members)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("team") / "found.npz"
    flags = f"--xla_force_host_platform_device_count={DEVICES}"
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(path)], env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.mark.long
@pytest.mark.parametrize("search", SEARCHES)
def test_a_team_finds_what_one_device_finds(found, search):
    """Up to the rounding of sums over other chunks of rotations."""
    assert found["devices"] == DEVICES
    alone, several = ([found[f"{search}, {x}: {part}"] for part in PARTS] for x in ("alone", "all"))
    for part, one, all_ in zip(PARTS, alone, several):
        assert one.shape[1] == 2
        np.testing.assert_allclose(all_, one, rtol=2e-6, atol=1e-5, err_msg=part)


@pytest.mark.long
def test_what_they_find_is_right(found):
    turns = found["two by halves, all: rotation"][:, 0] @ found["truth"].swapaxes(-1, -2)
    angle = np.degrees(np.arccos(np.clip((np.trace(turns, axis1=-2, axis2=-1) - 1) / 2, -1, 1)))
    assert angle.max() < 8
