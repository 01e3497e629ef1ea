"""Maps from the forty real ribosomes alone, by every generator, against the published map.

python benchmarks/alone.py --out=alone.json
python benchmarks/alone.py --methods=bt --particles=8 --rounds=1

No reference and no pose goes in. Each map is turned onto the published one, by a search of all
poses, and compared with it shell by shell: as it was made, and after rounds of refinement with
all particles.
"""

import time

import jax.numpy as jnp
import numpy as np
import real
from _common import C1, SEED, refinement, turned_onto
from _report import launch, report
from absl import flags

from sptjax import generate, resolution
from sptjax.align import AlignmentSettings
from sptjax.particles import load_particles
from sptjax.refinement import RefineSettings

F = flags.FLAGS
_METHODS = flags.DEFINE_list("methods", ["bt", "hac", "sgd"], "generators: bt, hac, sgd")
LAST = 9  # shell


def made(method: str, material: generate.Material) -> generate.Generated:
    """A map by one method, of as many particles as it takes."""
    rows, search = material.usable, float(F.search)
    if method == "bt":
        tree = generate.binary_tree(material, rows, generate.TreeSettings(search_vox=search))
        return generate.tree_reference(tree)
    if method == "hac":
        settings = generate.HacSettings(search_vox=search)
        return generate.hac_reference(generate.classify_ascending(material, rows, settings))
    settings = generate.SgdSettings(seed=SEED.value, steps=90, search_vox=search)
    found = generate.generate_sgd(material, rows, settings)
    print(f"sgd: agreement of the seeds {np.round(found.agreement, 2)}", flush=True)
    return found.maps[0]


def row(stage: str, volume: np.ndarray, published: np.ndarray) -> dict:
    """FSC of a map with the published one."""
    moved = turned_onto(volume, published)
    curve = np.asarray(resolution.fsc(jnp.asarray(moved), jnp.asarray(published)))
    return {
        "stage": stage,
        **{str(k): round(float(curve[k]), 2) for k in range(1, LAST + 1)},
        "A_at_0.5": resolution.resolution_angstrom(curve, real.APIX, 0.5),
    }


def main() -> None:
    """One table."""
    stack, sampling, _, published = real.read()
    published = published.astype(np.float32)
    settings = RefineSettings(AlignmentSettings(search_vox=F.search), C1, real.APIX)
    rows = []
    for method in _METHODS.value:
        begun = time.perf_counter()
        one = made(method, generate.prepare(stack, sampling, real.APIX))
        seconds = time.perf_counter() - begun
        print(f"{method}: {one.note}", flush=True)
        particles = load_particles(stack, sampling, stack.box // 2 - 2)
        *_, (state, _, _) = refinement(
            one.map[None], particles, stack, sampling, settings, F.rounds
        )  # fmt: skip
        about = {"method": method, "particles": len(one.indices), "seconds": seconds}
        rows += [{**about, **row("as made", one.map, published)}]
        rows += [{**about, **row("refined", state.maps[0], published)}]
    report({"real": rows})


if __name__ == "__main__":
    launch(main)
