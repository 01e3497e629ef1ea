"""Searches for a few particles on one device and on all: to run in a process of its own."""

import sys

import jax
import numpy as np
from alignment_setting import BOX, C1, planted

from sptjax import simulate
from sptjax._chunk import use_only
from sptjax.align import (
    AlignmentSettings,
    Found,
    RotateTranslate3D,
    RotateTranslate3DTree,
    align_particles,
)

GRID = RotateTranslate3D(delta=40, dphi=40, search=2, refine=False)
TREE = AlignmentSettings(search_vox=3)
SEARCHES = {
    "one by all": TREE,
    "two by halves": TREE,
    "exhaustive": AlignmentSettings(aligner=GRID),
    "maxima": AlignmentSettings(aligner=GRID, peaks=2, save_peaks=True),
    "near": AlignmentSettings(aligner=RotateTranslate3DTree(maxang=15.0, maxshift=2.0)),
}
PARTS = ("rotation", "shift", "score")


def main(path: str) -> None:
    """What all searches find, into one file."""
    maps = np.stack([simulate.phantom(BOX, state) for state in (0, 1)])
    poses = simulate.random_poses(jax.random.key(4), 2, 2.0)
    view = planted(maps, np.zeros(2), poses)
    turn, shift = (np.stack([np.asarray(x)] * 2, 1) for x in (poses.rotation, poses.shift))
    found = {"truth": np.asarray(poses.rotation), "devices": np.asarray(len(jax.devices()))}
    for name, settings in SEARCHES.items():
        count = 2 if name.startswith("two") else 1
        start = Found(turn[:count], shift[:count], np.zeros((count, 2)))
        for label, devices in (("alone", jax.devices()[:1]), ("all", jax.devices())):
            use_only(devices)
            best = align_particles(
                view.particles, np.arange(count), maps, (C1, C1), settings,
                expected_score=12.0, start=None if settings.searches else start,
            )  # fmt: skip
            for part in PARTS:
                found[f"{name}, {label}: {part}"] = getattr(best, part)
    np.savez(path, allow_pickle=False, **found)


if __name__ == "__main__":
    main(sys.argv[1])
