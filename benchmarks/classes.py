"""Classification: class accuracy against noise, from phase-randomised copies of one reference.

python benchmarks/classes.py --out=classes.json
python benchmarks/classes.py --n=8 --rounds=1 --snr=0.2 --pairs=50S

Two pairs of maps in one frame: 50S assembly intermediates D and E, and 70S against 50S from an
atomic model. Particles of both in equal parts come from the tilt-series simulator; the first
references are copies of the first map, each with random phases of its own beyond 60 A (the
defaults of refinemulti), or with --start=maps both maps, low-passed at the same limit. Accuracy is
that of the better of the two namings. --assign=hard,soft compares averages of particles in their
best class with averages of particles in all likely poses and classes, by probability.
"""

import jax
import jax.numpy as jnp
import numpy as np
from _common import (
    C1,
    SEED,
    data_file,
    load_map,
    plant,
    pose_error,
    read_atoms,
    refinement,
    splat,
)
from _report import launch, numbers, report
from absl import flags

from sptjax import fourier, resolution
from sptjax._errors import InputError
from sptjax.align import AlignmentSettings
from sptjax.refinement import RefineSettings

_N = flags.DEFINE_integer("n", 200, "particles, half of each class", lower_bound=4)
_ROUNDS = flags.DEFINE_integer("rounds", 8, "at most", lower_bound=1)
_PAIRS = flags.DEFINE_string("pairs", "50S,70S", "50S (D against E), 70S (70S against 50S)")
_SNR = flags.DEFINE_string("snr", "0.2,0.1,0.05", "per projection")
_BOX = flags.DEFINE_integer("box", 32, "voxels")
_SHIFT = flags.DEFINE_float("shift", 2.0, "largest planted shift, voxels")
_START = flags.DEFINE_enum("start", "copies", ["copies", "maps"], "first references")
_ASSIGN = flags.DEFINE_string("assign", "hard", "hard, soft or both, comma separated")
_SEARCH = flags.DEFINE_integer("search", 3, "half width of the searched cube, voxels")

RANDOM_BEYOND = 60.0  # angstrom
MODES = 8  # of every particle, where they are averaged by probability
SMALL_SUBUNIT = "5 B D F A H J C S O K M I L N R T G Q E P".split()  # chains of 7p6z


def pair(name: str) -> tuple[np.ndarray, float]:
    """Two maps ``[2, n, n, n]`` and their voxel size."""
    if name == "50S":
        return np.stack([load_map(f"50S_{x}", _BOX.value, 13.1) for x in "DE"]), 13.1
    if name == "70S":
        apix = 12.0 * 32 / _BOX.value
        chains, xyz, electrons = read_atoms(data_file("models/7p6z.cif.gz"))
        xyz = xyz - (xyz.min(0) + xyz.max(0)) / 2
        large = ~np.isin(chains, SMALL_SUBUNIT)
        whole = splat(xyz, electrons, _BOX.value, apix, normalise=False)
        part = splat(xyz[large], electrons[large], _BOX.value, apix, normalise=False)
        return np.stack([whole, part]) / whole.std(), apix
    raise InputError(f"--pairs={name}: known are 50S and 70S")


def copies(map_: np.ndarray, apix: float) -> np.ndarray:
    """Two copies of a map with different phases beyond the limit."""
    shell = map_.shape[-1] * apix / RANDOM_BEYOND
    key = jax.random.key(SEED.value)
    return np.stack(
        [
            np.asarray(
                resolution.phase_randomise(jax.random.fold_in(key, i), jnp.asarray(map_), shell)
            )
            for i in range(2)
        ]
    )


def lowpassed(maps: np.ndarray, apix: float) -> np.ndarray:
    """Both maps up to the limit."""
    shells = np.arange(maps.shape[-1] // 2 + 1)
    gain = jnp.asarray(shells <= maps.shape[-1] * apix / RANDOM_BEYOND, jnp.float32)
    return np.asarray(fourier.radial_filter(jnp.asarray(maps), gain))


def measure(name: str, maps: np.ndarray, apix: float, snr: float, assign: str) -> list[dict]:
    """One row per round."""
    planted = plant(maps, _N.value, snr, _SHIFT.value, apix=apix, seed=SEED.value)
    particles = planted.load()
    alignment = AlignmentSettings(search_vox=_SEARCH.value)
    soft, given = assign == "soft", _START.value == "maps"
    settings = RefineSettings(alignment, C1 * 2, apix, soft=soft, modes=MODES if soft else 0)
    rows = []
    steps = refinement(
        lowpassed(maps, apix) if given else copies(maps[0], apix),
        particles,
        planted.stack,
        planted.sampling,
        settings,
        _ROUNDS.value,
        told_apart=given,
    )
    for state, seconds, calibration in steps:
        right = np.mean(state.classes == planted.classes)
        angle, shift = pose_error(*state.pose, planted.truth)
        rows.append(
            {
                "pair": name,
                "snr": snr,
                "start": _START.value,
                "assign": assign,
                "round": state.round + 1,
                "accuracy": max(right, 1 - right),
                "told_apart": state.told_apart,
                "class_sizes": "/".join(map(str, np.bincount(state.classes, minlength=2))),
                "median_deg": np.median(angle),
                "within_10_deg": np.mean(angle < 10),
                "median_vox": np.median(shift),
                "mean_score": state.score.max(1).mean(),
                "expected_score": calibration.expected_score,
                "seconds": seconds,
            }
        )
    return rows


def main() -> None:
    """All pairs at all noise levels."""
    rows = []
    for name in _PAIRS.value.split(","):
        maps, apix = pair(name)
        for snr in numbers(_SNR.value):
            for assign in _ASSIGN.value.split(","):
                rows += measure(name, maps, apix, snr, assign)
                right = rows[-1]["accuracy"]
                print(f"{name} at {snr:g}, {assign}: accuracy {right:.3f}", flush=True)
    last = [r for r, after in zip(rows, [*rows[1:], None]) if not after or after["round"] == 1]
    report({"rounds": rows, "last rounds": last})


if __name__ == "__main__":
    launch(main)
