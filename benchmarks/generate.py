"""References from particles alone: what they resolve, and what they cost.

python benchmarks/generate.py --out=generate.json
python benchmarks/generate.py --methods=bt --n=8 --box=24 --apix=28 --costs= --symmetric= --hac_n=4

Maps: CTF-realistic particles (3 um, +-60 degrees) of a ribosome; every method makes a map from
particles alone, which is refined with all of them and then compared with the truth, once it is
turned onto it. Symmetry: axes of noisy particles against the planted ones. Costs: seconds on
white-noise particles, compilation apart; pairs per second of hac are those of the first --pairs
of its first round, which compares all with all.
"""

import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
from _common import C1, SEED, Planted, load_map, plant, refinement, turned_onto
from _report import launch, numbers, report
from absl import flags

from sptjax import generate, resample, resolution, symmetry
from sptjax._types import Pose
from sptjax.align import AlignmentSettings, align_to_symmetry
from sptjax.refinement import RefineSettings

_METHODS = flags.DEFINE_list("methods", ["bt", "hac"], "generators: bt, hac")
_N = flags.DEFINE_integer("n", 200, "particles of the map", lower_bound=4)
_HAC_N = flags.DEFINE_integer("hac_n", 32, "of them that hac classifies", lower_bound=3)
_BOX = flags.DEFINE_integer("box", 64, "voxels")
_APIX = flags.DEFINE_float("apix", 10.48, "angstrom per voxel")
_SNR = flags.DEFINE_float("snr", 0.05, "per projection")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "of refinement from the map", lower_bound=1)
_COSTS = flags.DEFINE_string("costs", "64,256,1024", "particles whose time is measured")
_PAIRS = flags.DEFINE_integer("pairs", 2048, "pairs of hac whose time is measured")
_SYMMETRIC = flags.DEFINE_list("symmetric", ["groel", "trpv1"], "maps of the axis search")
_SYM_N = flags.DEFINE_integer("sym_n", 50, "particles of the axis search", lower_bound=2)
_SYM_SNR = flags.DEFINE_float("sym_snr", 0.3, "variance of the map over that of the noise")
SEARCH = 5.0
GROUPS = {"groel": "d7", "trpv1": "c4"}
DIAMETER = {"groel": 160.0, "trpv1": 150.0}  # angstrom


def on_axes(volume: np.ndarray, own: symmetry.Symmetry) -> np.ndarray:
    """A map moved to the axes of its symmetry and averaged over it."""
    key = jax.random.key(SEED.value)
    pose, score = align_to_symmetry(jnp.asarray(volume, jnp.float32), own, key=key)
    print(f"on the axes of {own.name}: correlation with its mean {float(score):.3f}", flush=True)
    every = symmetry.copies(pose, own)
    move = jax.jit(resample.transform)
    mates = [move(jnp.asarray(volume), Pose(r, t)) for r, t in zip(every.rotation, every.shift)]
    return np.mean(np.asarray(mates), 0)


def made(method: str, material: generate.Material, rows: np.ndarray) -> generate.Generated:
    """A map by one method."""
    if method == "bt":
        return generate.tree_reference(
            generate.binary_tree(material, rows, generate.TreeSettings(search_vox=SEARCH))
        )
    return generate.hac_reference(
        generate.classify_ascending(material, rows, generate.HacSettings(search_vox=SEARCH))
    )


def resolved(volume: np.ndarray, truth: np.ndarray) -> float:
    """Angstrom at which the FSC with the truth falls below 0.5."""
    moved = turned_onto(volume, truth)
    curve = np.asarray(resolution.fsc(jnp.asarray(moved), jnp.asarray(truth)))
    return resolution.resolution_angstrom(curve, _APIX.value, 0.5)


def maps(set_: Planted, truth: np.ndarray) -> list[dict]:
    """Each method: angstrom of its map and of the refined one."""
    rows = []
    for method in _METHODS.value:
        begun = time.perf_counter()
        material = generate.prepare(set_.stack, set_.sampling, _APIX.value)
        used = np.arange(len(material) if method == "bt" else min(_HAC_N.value, len(material)))
        one = made(method, material, used)
        seconds = time.perf_counter() - begun
        settings = RefineSettings(AlignmentSettings(), C1, _APIX.value)
        *_, (state, _, _) = refinement(
            one.map[None], set_.load(), set_.stack, set_.sampling, settings, _ROUNDS.value
        )
        rows.append(
            {
                "method": method, "particles": len(one.indices), "seconds": seconds,
                "map_A": resolved(one.map, truth), "refined_A": resolved(state.maps[0], truth),
            }
        )  # fmt: skip
    return rows


def axes(name: str) -> dict:
    """Share of particles whose axis is found within 2 degrees and half a voxel."""
    own = symmetry.parse(GROUPS[name])
    apix = DIAMETER[name] / (0.6 * _BOX.value)
    truth = on_axes(load_map(name, _BOX.value, apix), own)
    set_ = plant(truth[None], _SYM_N.value, _SYM_SNR.value, 3.0, apix=None, seed=SEED.value)
    material = generate.prepare(set_.stack, set_.sampling, apix)
    settings = generate.SymmetrySettings(own, search_vox=SEARCH)
    begun = time.perf_counter()
    found = generate.put_on_axes(material, np.arange(len(material)), settings)
    seconds = time.perf_counter() - begun
    turn, shift = set_.truth.rotation[:, 0], set_.truth.shift[:, 0]
    frame = found.rotation @ turn.swapaxes(1, 2)
    place = -np.einsum("nij,nj->ni", frame, shift) + found.shift
    tilt = np.degrees(np.arccos(np.clip(np.abs(frame[:, 2, 2]), 0, 1)))
    off = np.linalg.norm(place[:, :2] if own.name[0] == "c" else place, axis=1)
    return {
        "map": name, "symmetry": own.name, "particles": len(tilt),
        "axis_deg_median": float(np.median(tilt)), "off_vox_median": float(np.median(off)),
        "found": float(np.mean((tilt < 2) & (off < 0.5))), "particles_per_s": len(tilt) / seconds,
    }  # fmt: skip


def costs(count: int, truth: np.ndarray) -> list[dict]:
    """Seconds and memory of bt and of the pairs of hac."""
    set_ = plant(truth[None], count, 0.1, 3.0, apix=None, seed=SEED.value)
    material = generate.prepare(set_.stack, set_.sampling, _APIX.value)
    objects = material.singles(np.arange(count))
    search = generate.plan_pairs(material, objects, SEARCH)
    every = np.stack(np.triu_indices(count, 1), 1)

    def pairs(most: int) -> None:
        generate.align_pairs(material, objects, every[:most], search)

    work = {
        "bt": (lambda: made("bt", material, np.arange(count)), count, "particles_per_s"),
        "hac": (lambda: pairs(_PAIRS.value), min(_PAIRS.value, len(every)), "pairs_per_s"),
    }
    table = []
    for method in _METHODS.value:
        run, done, unit = work[method]
        run() if method == "bt" else pairs(16)  # compiles: a tree has a plan for every level
        begun, used = time.perf_counter(), time.process_time()
        run()
        seconds, used = time.perf_counter() - begun, time.process_time() - used
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        row = {"method": method, "particles": count, "all_pairs": len(every), "measured": done}
        table.append(
            row | {"seconds": seconds, "cpu": used, unit: done / seconds, "peak_GiB": peak}
        )
    return table


def main() -> None:
    """All tables."""
    truth = load_map("emd_3420", _BOX.value, _APIX.value)
    set_ = plant(truth[None], _N.value, _SNR.value, 3.0, apix=_APIX.value, seed=SEED.value)
    tables = {"maps": maps(set_, truth)}
    symmetric = [name for name in _SYMMETRIC.value if name]
    if symmetric:
        tables["axes"] = [axes(name) for name in symmetric]
    counts = [int(x) for x in numbers(_COSTS.value)] if _COSTS.value else []
    if counts:
        tables["costs"] = [row for n in counts for row in costs(n, truth)]
    report(tables)


if __name__ == "__main__":
    launch(main)
