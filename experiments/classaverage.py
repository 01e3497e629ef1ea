"""Single-reference refinement in two independent halves (gold standard), ending in one map.

python experiments/classaverage.py --input=particles.hdf --ref=map.hdf --iter=5 --refrandphase=60
python experiments/classaverage.py --input=particles.hdf --ref=map.hdf --sym=d7 --keep=0.8

Results go to a new folder spt_NN: final_avg.hdf with its halves final_avg_even.hdf and
final_avg_odd.hdf, poses (sptali_ir_*.json), FSC curves, resolution.json and pictures.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import _flags
import numpy as np
from absl import flags

from sptjax import console, symmetry
from sptjax._errors import InputError
from sptjax.refinement import RefineState

_flags.define_shared(path="spt", output="final_avg.hdf")
flags.DEFINE_bool("goldstandardoff", False, "let both halves share one reference")


def run(*, values: Mapping[str, Any], argv: Sequence[str]) -> RefineState:
    """Check everything, then refine.

    Args:
        values: every flag by name.
        argv: the command line, for the record.
    """
    stack, apix = _flags.open_particles(values["input"], values["apix"])
    _flags.check_names(values)
    gold = not values["goldstandardoff"]
    if len(stack) < (4 if gold else 2):
        raise InputError(f"--input: {len(stack)} particles are too few to refine")
    seed_classes = None
    if values["classmx"]:
        seed_classes = _flags.read_classes(values["classmx"], len(stack))
        if seed_classes.n_classes != 1:
            raise InputError(f"--classmx: {seed_classes.n_classes} classes, one is averaged here")
    if bool(values["ref"]) == bool(seed_classes):
        raise InputError("--ref: give one reference map, or --classmx with poses, not both")
    references = None
    if values["ref"]:
        maps = _flags.load_references(values["ref"], stack.box, apix, values["apix"], console.say)
        if len(maps) != 1:
            raise InputError(f"--ref: {len(maps)} maps, one is refined here (see refinemulti.py)")
        references = half_references(maps, gold, values["refrandphase"], apix, values["seed"])
    symmetries = (symmetry.parse(values["sym"]),)
    return _flags.carry_out(
        "classaverage", values, argv, stack, apix, references, seed_classes, symmetries, gold=gold
    )


def half_references(
    maps: np.ndarray, gold: bool, randphase: float, apix: float, seed: int
) -> np.ndarray:
    """References of the halves ``[2, 1, n, n, n]``, or one for both ``[1, n, n, n]``."""
    if not gold:
        return _flags.randomised(maps, randphase, apix, seed) if randphase else maps
    both = np.concatenate([maps, maps])
    if randphase:
        both = _flags.randomised(both, randphase, apix, seed)
    else:
        console.say(
            "--refrandphase=0: the halves start from the same phases (a low-passed reference, or"
            " --refrandphase=60, makes them independent)"
        )
    return both[:, None]


def main(argv: Sequence[str]) -> None:
    """Flags to arguments."""
    del argv
    run(values=_flags.resolved(), argv=sys.argv)


if __name__ == "__main__":
    _flags.launch(main, "classaverage.py")
