"""Flags about how well poses are known, and what follows from it in averaging."""

from collections.abc import Mapping
from typing import Any

import _help
import jax.numpy as jnp
from absl import flags

from sptjax._errors import InputError
from sptjax.align import AlignmentSettings
from sptjax.comparators import Matched

Values = Mapping[str, Any]
MODES = 8  # poses of a particle that are considered


@_help.group("averaging")
def define() -> None:
    """Define the flags that ``refinemulti`` and ``classaverage`` share."""
    f = flags
    f.DEFINE_bool(
        "uncertainty",
        False,
        "write the covariance of every pose, other likely poses, and the probabilities of all",
    )
    f.DEFINE_float(
        "keepbyuncertainty",
        1.0,
        "fraction of every class (or half) that is averaged: those whose poses are known best",
    )
    f.DEFINE_bool(
        "weighbyuncertainty",
        False,
        "weight particles by the share of their signal that the error of their pose leaves",
    )
    f.DEFINE_bool(
        "soft",
        False,
        "average every particle in all its likely poses and classes, by their probabilities",
    )


def modes(values: Values, alignment: AlignmentSettings, apix: float) -> int:
    """Poses of a particle to consider; 0 if no flag asks for it.

    Args:
        values: every flag by name.
        alignment: of the run.
        apix: voxel size, angstrom.

    Raises:
        InputError: flags contradict each other, or the score has no noise model.
    """
    kept = values["keepbyuncertainty"]
    if not 0 < kept <= 1:
        raise InputError(f"--keepbyuncertainty={kept:g}: a fraction above 0 and up to 1 is needed")
    wanted = {
        "uncertainty": values["uncertainty"],
        "keepbyuncertainty": kept < 1,
        "weighbyuncertainty": values["weighbyuncertainty"],
        "soft": values["soft"],
    }
    if values["soft"] and values["weighbyuncertainty"]:
        raise InputError("--soft and --weighbyuncertainty: both weigh by the same probabilities")
    if values["soft"] and values.get("maskclass"):
        raise InputError("--soft and --maskclass: classes come from one score or the other")
    comparator = alignment.of_fine_stage().comparator if alignment.fine else alignment.comparator
    weights = comparator.linear_weight(jnp.ones(1, jnp.float32), 64, apix)
    if any(wanted.values()) and not isinstance(comparator, Matched) and weights is None:
        name = next(name for name, asked in wanted.items() if asked)
        raise InputError(f"--{name}: a comparator that is a correlation is needed (matched, ccc)")
    return MODES if any(wanted.values()) else 0
