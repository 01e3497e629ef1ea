"""What a run says about its rounds, and what it keeps of them in its log."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from . import outputs
from ._messages import Message, step, warning
from .particles import Stack
from .state import RefineState

try:
    import resource
except ImportError:  # Windows
    resource = None

Say = Callable[[str], None]

PER_CLASS, PER_PARTICLE, MARGINS, POSES, DEBUG = 2, 3, 4, 5, 9  # levels of --verbose
_REASON = {1: "NaN or infinity", 2: "no contrast"}
_SHOWN = 20  # excluded particles


def excluded(status: np.ndarray, stack: Stack) -> list[Message]:
    """Which particles are left out, and why.

    Args:
        status: ``[n]``, 0 for a usable particle.
        stack: names the particles.

    Returns:
        Sentences.
    """
    bad = np.flatnonzero(status)
    lines = []
    for i in bad[:_SHOWN]:
        name = getattr(stack, "name", "particle {}".format)(int(i))
        lines.append(warning(f"excluded: {name} ({_REASON[int(status[i])]})"))
    if len(bad) > _SHOWN:
        lines.append(warning(f"excluded: {len(bad) - _SHOWN} more particles"))
    return lines


def record(
    after: RefineState, counts: list[int], changed: float | None, apix: float, seconds: float
) -> dict[str, Any]:
    """The line of ``log.jsonl`` of a round.

    Args:
        after: the round.
        counts: particles of every class.
        changed: fraction of the particles that changed class; none in the first round.
        apix: angstrom per voxel.
        seconds: the round took.
    """
    table = outputs.resolutions(after, apix)
    return {
        "round": after.round,
        "seconds": round(seconds, 3),
        "mean_score": float(_own_scores(after).mean()),
        "changed_fraction": changed,
        "particles_per_class": counts,
        "resolution_angstrom": [table[str(c)]["unmasked"]["0.143"] for c in range(len(after.maps))],
    }


def lines(
    after: RefineState, record: dict[str, Any], rounds: int, *, gold_standard: bool, level: int
) -> list[Message]:
    """How a round went.

    Args:
        after: the round.
        record: of the same.
        rounds: there are at most.
        gold_standard: whether the halves have references of their own.
        level: of detail, 0 to 11: 2 adds classes, 3 the score of every particle, 4 margins, 5
            poses, 9 the memory used.
    """
    best = record["resolution_angstrom"]
    shown = ", ".join(_angstrom(r) for r in best)
    label = "FSC .143" if gold_standard else "FSC .143 (halves share a reference)"
    share = record["changed_fraction"]
    changed = "" if share is None else f" {100 * share:.1f} % changed class,"
    said = [
        step(
            f"round {after.round + 1}/{rounds}:{changed}"
            f" mean score {record['mean_score']:.2f}, {label} {shown} A,"
            f" classes {record['particles_per_class']}, {record['seconds']:.1f} s"
        )
    ]
    if not after.told_apart:
        said.append(
            warning(
                "the particles do not tell classes apart yet: all go on from their common average"
            )
        )
    said += [
        warning(f"class {c} was empty and got the least certain half of the largest class")
        for c in after.reseeded
    ]
    if level >= PER_CLASS:
        said += [step(_class_line(after, c, best[c])) for c in range(len(after.maps))]
    if level >= PER_PARTICLE:
        members = np.flatnonzero(after.classes >= 0).tolist()
        said += [step(_particle_line(after, i, level)) for i in members]
    if level >= DEBUG and resource is not None:
        unit = 2**30 if sys.platform == "darwin" else 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
        said.append(step(f"peak memory {peak:.2f} GiB"))
    return said


def _own_scores(after: RefineState) -> np.ndarray:
    member = np.flatnonzero(after.classes >= 0)
    return after.score[member, after.classes[member]]


def _angstrom(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _class_line(after: RefineState, c: int, resolution: float | None) -> str:
    rows = np.flatnonzero(after.classes == c)
    line = f"class {c}: {len(rows)} particles, {int(after.used[rows].sum())} averaged"
    if len(rows):
        score = after.score[rows, c]
        line += f", score {score.mean():.2f} +- {score.std():.2f}"
        if after.score.shape[1] > 1:
            line += f", median margin {np.median(after.margin[rows]):.2f}"
    return f"{line}, {_angstrom(resolution)} A"


def _particle_line(after: RefineState, i: int, level: int) -> str:
    c = int(after.classes[i])
    line = f"particle {i}: class {c}, score {after.score[i, c]:.2f}"
    if level >= MARGINS and after.score.shape[1] > 1:
        line += f", margin {after.margin[i]:.2f}"
    if level >= POSES:
        turn = ", ".join(f"{x:.3f}" for x in after.rotation[i, c].ravel())
        shift = ", ".join(f"{x:.2f}" for x in after.shift[i, c])
        line += f", rotation [{turn}], shift [{shift}] voxels"
    return line
