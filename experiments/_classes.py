"""Flags for classes that can be trusted: fixed poses, masks, random draws, repeated runs."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import _help
import _inputs
import jax.numpy as jnp
import numpy as np
from _resolve import given
from absl import flags

from sptjax import rotation, stability
from sptjax._errors import InputError
from sptjax.io import ClassMatrix
from sptjax.io._atomic import atomic_path

Values = Mapping[str, Any]


@_help.group("classification")
def define() -> None:
    """Define the flags of ``refinemulti`` that ``classaverage`` lacks."""
    f = flags
    f.DEFINE_bool(
        "skipali",
        False,
        "keep the poses of --inixforms or --classmx and sort alone; without --ref, by the"
        " differences between particles",
    )
    f.DEFINE_string("maskalign", None, "mask volume of the references while particles are aligned")
    f.DEFINE_string(
        "maskclass",
        None,
        "mask volume inside which classes may differ: outside, all references are their common"
        " mean",
    )
    f.DEFINE_integer(
        "anneal",
        0,
        "rounds in which classes are drawn at random by score, the later the less: none settles"
        " too early",
        lower_bound=0,
    )
    f.DEFINE_integer(
        "nseeds",
        1,
        "repeat the run with so many seeds and report how far they agree (stability.txt)",
        lower_bound=1,
    )


def check(values: Values) -> None:
    """What contradicts ``--skipali`` or another mask.

    Raises:
        InputError: there are no poses to keep, an aligner is stated, or two masks for one thing.
    """
    if values["skipali"]:
        if not values["inixforms"] and not values["classmx"]:
            raise InputError("--skipali: poses are needed, from --inixforms or --classmx")
        for name in ("align", "falign", "tweak", "translateonly"):
            if given(name) and values[name] not in ("", "None", False):
                raise InputError(f"--skipali and --{name}: particles are aligned or they are not")
    on_reference = values["maskfile_target"] in ("reference", "both")
    if values["maskalign"] and values["maskfile"] and on_reference:
        raise InputError("--maskalign and --maskfile: two masks for the references")
    if values["anneal"] and values["anneal"] >= values["iter"]:
        raise InputError(
            f"--anneal={values['anneal']}: fewer rounds than the {values['iter']} of --iter are"
            " needed, so that the last classes are those of the best scores"
        )


def masks(values: Values, box: int, apix: float) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Masks of the references while aligning, and of the differences between classes."""
    found = [
        _inputs.read_mask(values[name], box, apix, f"--{name}") if values.get(name) else None
        for name in ("maskalign", "maskclass")
    ]
    return found[0], found[1]


def from_poses(values: Values, particles: _inputs.Particles, count: int) -> ClassMatrix:
    """Poses of ``--inixforms`` in classes drawn at random, as equal as can be."""
    found = _inputs.read_poses(values["inixforms"], particles, 1)
    n = len(particles.stack)
    angles = rotation.to_euler(jnp.asarray(found.rotation[:, 0]), rotation.Convention["EMAN"])
    return ClassMatrix(
        n_classes=count,
        classes=np.random.default_rng(values["seed"]).permutation(np.arange(n) % count),
        weights=np.ones(n, np.float32),
        scores=np.zeros(n, np.float32),
        euler_deg=np.asarray(angles),
        shifts_vox=found.shift[:, 0],
    )


def write_stability(
    folder: pathlib.Path, runs: list[np.ndarray], count: int, seeds: list[int]
) -> stability.Stability:
    """Agreement of repeated runs, as a table of particles and as JSON.

    Args:
        folder: where to.
        runs: class of every particle, run by run.
        count: classes.
        seeds: of the runs.
    """
    found = stability.compare(runs, count)
    head = "particle\tclass\tstability\t" + "\t".join(f"seed_{s}" for s in seeds)
    lines = [
        f"{i}\t{found.consensus[i]}\t{found.particle[i]:.3f}\t"
        + "\t".join(str(c) for c in found.runs[:, i])
        for i in range(found.runs.shape[1])
    ]
    with atomic_path(folder / "stability.txt") as temporary:
        temporary.write_text("\n".join([head, *lines]) + "\n")
    record = {
        "seeds": seeds,
        "adjusted_rand": found.rand.tolist(),
        "mean_adjusted_rand": found.mean_rand,
        "stability_of_classes": [None if np.isnan(x) else float(x) for x in found.group],
        "classes": found.consensus.tolist(),
        "stability_of_particles": found.particle.tolist(),
    }
    with atomic_path(folder / "stability.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1))
    return found
