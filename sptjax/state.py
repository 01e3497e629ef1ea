"""What a round of refinement leaves behind, and whether there is anything left to refine."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from . import resolution
from .align import Found
from .io import PoseTable

CURVES = ("unmasked", "masked", "maskedtight", "corrected")


@dataclasses.dataclass(frozen=True)
class RefineState:
    """Everything a round leaves behind; host arrays, ``h`` = 2 gold-standard halves or 1."""

    round: int  # of the round that made it; -1 before the first
    references: np.ndarray  # [h, c, n, n, n], for the next round
    expected_score: float
    noise_share: np.ndarray  # [s], part of the stack's mean power that is noise
    rotation: np.ndarray  # [n, c, 3, 3]
    shift: np.ndarray  # [n, c, 3], voxels
    score: np.ndarray  # [n, c]
    classes: np.ndarray  # [n]; -1 for an excluded particle
    used: np.ndarray  # [n] bool, part of the average
    weight: np.ndarray  # [n], with which it is averaged
    maps: np.ndarray  # [c, n, n, n], both halves
    halves: np.ndarray  # [c, 2, n, n, n], odd moved onto even
    fsc: np.ndarray  # [c, 4, s]: one row per name in CURVES
    odd_to_even: np.ndarray  # [c, 3, 4], how the odd map of gold-standard halves was moved
    strength: np.ndarray | None = None  # [n, 2], scale and B-factor (A^2), if asked for
    reseeded: tuple[int, ...] = ()  # classes that had emptied
    told_apart: bool = True  # classes rest on references or on differences beyond chance
    peaks: Found | None = None  # coarse poses [n, c, p] of this round, if asked for; not saved
    modes: PoseTable | None = None  # how well its poses are known, if asked for; not saved

    @property
    def margin(self) -> np.ndarray:
        """Best minus second best score of every particle (infinite for one class), ``[n]``."""
        if self.score.shape[1] < 2:
            return np.full(len(self.score), np.inf)
        top = -np.partition(-self.score, 1, axis=1)
        return top[:, 0] - top[:, 1]

    @property
    def pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Rotation and shift of every particle against the reference of its class."""
        row, own = np.arange(len(self.classes)), np.maximum(self.classes, 0)
        return self.rotation[row, own], self.shift[row, own]


def initial_state(
    references: np.ndarray,
    n_particles: int,
    *,
    gold_standard: bool,
    expected_score: float,
    noise_share: np.ndarray | None = None,
    start: Found | None = None,
    told_apart: bool = True,
) -> RefineState:
    """State before the first round.

    Args:
        references: ``[c, n, n, n]``, or ``[2, c, n, n, n]`` with halves of their own.
        n_particles: size of the stack.
        gold_standard: keep two sets of references.
        expected_score: see :func:`sptjax.calibration.calibrate`.
        noise_share: likewise, ``[box // 2 + 1]``; all of the power if not given.
        start: poses known beforehand.
        told_apart: whether the references differ by what they show of the classes.
    """
    maps = np.asarray(references, np.float32)
    if maps.ndim == 4:
        maps = np.stack([maps] * (2 if gold_standard else 1))
    c, box = maps.shape[1], maps.shape[-1]
    found = start or Found.empty(n_particles, c)
    return RefineState(
        round=-1,
        references=maps,
        expected_score=expected_score,
        noise_share=np.ones(box // 2 + 1, np.float32) if noise_share is None else noise_share,
        rotation=found.rotation,
        shift=found.shift,
        score=found.score,
        classes=np.full(n_particles, -1, np.int32),
        used=np.zeros(n_particles, bool),
        weight=np.zeros(n_particles, np.float32),
        maps=maps.mean(0),
        halves=np.stack([maps[0], maps[-1]], 1),
        fsc=np.full((c, len(CURVES), box // 2 + 1), np.nan, np.float32),
        odd_to_even=np.broadcast_to(np.eye(3, 4, dtype=np.float32), (c, 3, 4)).copy(),
        told_apart=told_apart,
    )


def converged(before: RefineState, after: RefineState, *, apix: float) -> str | None:
    """Why a refinement may stop, or None.

    A round that changes the class of less than 1 % of the particles, turns them by less than
    half a degree and moves them by less than a quarter voxel (medians), and no FSC curve by
    more than one shell, has arrived.

    Args:
        before: the state before a round.
        after: the state after it.
        apix: angstrom per voxel.
    """
    if before.round < 0 or not after.told_apart:
        return None
    member = (after.classes >= 0) & (before.classes >= 0)
    changed = (
        float(np.mean(before.classes[member] != after.classes[member])) if member.any() else 1.0
    )
    (r0, t0), (r1, t1) = before.pose, after.pose
    cosine = (np.einsum("nij,nij->n", r0, r1) - 1) / 2
    turn = float(np.median(np.degrees(np.arccos(np.clip(cosine, -1, 1)))[member]))
    move = float(np.median(np.linalg.norm(t0 - t1, axis=1)[member]))
    limits = [
        [int(resolution.band_limit(jnp.asarray(curve[0]))) for curve in state.fsc]
        for state in (before, after)
    ]
    shells = max(abs(a - b) for a, b in zip(*limits))
    if changed < 0.01 and turn < 0.5 and move < 0.25 and shells <= 1:
        return (
            f"{100 * changed:.1f} % of the particles changed class, poses moved by"
            f" {turn:.2f} degrees and {move * apix:.2f} A, the FSC by {shells} shell(s)"
        )
    return None
