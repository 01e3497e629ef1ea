"""Maps by stochastic gradient descent from particles alone: resolution, agreement, time.

python benchmarks/sgd.py --out=sgd.json
python benchmarks/sgd.py --n=16 --box=24 --apix=28 --steps=6 --rounds=1 --seeds=2 --costs=

The particles are those of benchmarks/generate.py (a ribosome, CTF-realistic), whose flags hold
here too. Maps: of the best of several seeds, as it is and refined with all particles, by FSC 0.5
with the truth. Costs: seconds of one seed, compilation apart.
"""

import resource
import time

import generate as alone
import numpy as np
from _common import C1, SEED, load_map, plant, refinement
from _report import launch, numbers, report
from absl import flags

from sptjax import generate
from sptjax.align import AlignmentSettings
from sptjax.refinement import RefineSettings

F = flags.FLAGS
_SEEDS = flags.DEFINE_integer("seeds", 3, "runs", lower_bound=2)
_STEPS = flags.DEFINE_integer("steps", 90, "batches of a run", lower_bound=2)
_BATCH = flags.DEFINE_integer("batch", 24, "particles of a step", lower_bound=1)


def settings(seeds: int, seed: int) -> generate.SgdSettings:
    """Of a descent."""
    return generate.SgdSettings(
        seeds=seeds, seed=seed, steps=_STEPS.value, batch=_BATCH.value, search_vox=alone.SEARCH
    )


def map_of(truth: np.ndarray) -> dict:
    """Resolution of the map and of the one refined from it."""
    set_ = plant(truth[None], F.n, F.snr, 3.0, apix=F.apix, seed=SEED.value)
    material = generate.prepare(set_.stack, set_.sampling, F.apix)
    begun = time.perf_counter()
    found = generate.generate_sgd(material, material.usable, settings(_SEEDS.value, SEED.value))
    seconds = time.perf_counter() - begun
    one = found.maps[0]
    *_, (state, _, _) = refinement(
        one.map[None], set_.load(), set_.stack, set_.sampling,
        RefineSettings(AlignmentSettings(), C1, F.apix), F.rounds,
    )  # fmt: skip
    return {
        "particles": len(one.indices),
        "snr": F.snr,
        "seconds": seconds,
        "scores": "/".join(f"{x:.1f}" for x in found.score),
        "agreement": "/".join(f"{x:.2f}" for x in found.agreement),
        "converged": found.converged,
        "map_A": alone.resolved(one.map, truth),
        "refined_A": alone.resolved(state.maps[0], truth),
    }


def cost(count: int, truth: np.ndarray) -> dict:
    """Seconds of one seed that is compiled already."""
    set_ = plant(truth[None], count, 0.1, 3.0, apix=None, seed=SEED.value)
    material = generate.prepare(set_.stack, set_.sampling, F.apix)
    generate.generate_sgd(material, material.usable[: max(_BATCH.value, 2)], settings(1, 0))
    begun = time.perf_counter()
    generate.generate_sgd(material, material.usable, settings(1, 1))
    seconds = time.perf_counter() - begun
    seen = _STEPS.value * min(_BATCH.value, count) + count
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"particles": count, "seconds": seconds, "particles_per_s": count / seconds,
            "alignments_per_s": seen / seconds, "peak_GiB": peak}  # fmt: skip


def main() -> None:
    """Both tables."""
    truth = load_map("emd_3420", F.box, F.apix)
    tables = {"maps": [map_of(truth)]}
    if F.costs:
        tables["costs"] = [cost(int(n), truth) for n in numbers(F.costs)]
    report(tables)


if __name__ == "__main__":
    launch(main)
