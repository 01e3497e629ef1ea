"""What to search: bands, grids, candidates and stages, chosen from the data.

The information that a band carries about a pose is the expected square of the score,
``I(k) = sum over shell k of w^2 |F|^2``: the spectral signal-to-noise of reference and
particles. The coarse band ends where it holds most of the information; the last band where
the information about rotation, ``k^2 I(k)``, is used up. Spacings follow from the band: the
phase of its outermost shell may turn by a fixed angle between neighbours of the grid.
"""

import dataclasses

import numpy as np

from .. import fourier


@dataclasses.dataclass(frozen=True)
class Stage:
    """One round of local refinement: band limit, steps, candidates kept after it."""

    kmax: int
    steps: int
    keep: int


@dataclasses.dataclass(frozen=True)
class SearchPlan:
    """Everything static about a search; hashable, so that equal plans share a compilation."""

    box: int
    coarse_k: int  # band of the exhaustive search, Fourier pixels
    delta_deg: float  # spacing of its rotations
    shift_step_vox: float
    # half width of the allowed cube, particle frame; or of the box, along x, y and z
    max_shift_vox: float | tuple[float, float, float]
    candidates: int
    stages: tuple[Stage, ...]
    distinct_deg: float  # candidates closer than this are one
    chunk: int = 512  # rotations per matrix product
    half_precision: bool = True  # bfloat16 operands in the exhaustive search

    @property
    def kmax(self) -> int:
        """Largest band of any stage."""
        return max([self.coarse_k, *(stage.kmax for stage in self.stages)])

    @property
    def half_widths(self) -> tuple[float, float, float]:
        """How far shifts may reach along x, y and z."""
        return half_widths(self.max_shift_vox)

    @property
    def free(self) -> tuple[bool, ...] | None:
        """Which of the six parameters of a pose may change; None for all."""
        return free_parameters(self.half_widths)

    def shifts(self) -> np.ndarray:
        """Coarse shift grid, float32 ``[t, 3]`` in voxels."""
        return shift_grid(self.max_shift_vox, self.shift_step_vox)


def half_widths(max_shift_vox: float | tuple[float, float, float]) -> tuple[float, float, float]:
    """One number for all three axes, or three."""
    if isinstance(max_shift_vox, tuple):
        return max_shift_vox
    return (max_shift_vox, max_shift_vox, max_shift_vox)


def free_parameters(
    half_widths: tuple[float, float, float], *, turns: bool = True
) -> tuple[bool, ...] | None:
    """Whether each of three turns and three shifts may change; None if all may."""
    free = (turns,) * 3 + tuple(half > 0 for half in half_widths)
    return None if all(free) else free


def shift_grid(max_shift_vox: float | tuple[float, float, float], step_vox: float) -> np.ndarray:
    """Cube (or box) of shifts with at most the given step, to the bound, float32 ``[t, 3]``.

    The corners, further from the centre than the faces by more than half, are left out: local
    refinement reaches into them.
    """

    def axis(half: float) -> np.ndarray:
        m = int(np.ceil(half / step_vox - 1e-6)) if half > 0 else 0
        return np.linspace(-half, half, 2 * m + 1) if m else np.zeros(1)

    halves = np.asarray(half_widths(max_shift_vox), np.float64)
    x, y, z = (axis(half) for half in halves)
    grid = np.stack(np.meshgrid(x, y, z, indexing="ij"), -1).reshape(-1, 3)
    near = np.linalg.norm(grid / np.maximum(halves, 1e-9), axis=1) <= 1.3 + 1e-6
    return grid[near].astype(np.float32)


def information(reference_power: np.ndarray, weight: np.ndarray, kmax: int) -> np.ndarray:
    """Expected squared score per shell 0 ... kmax (the scale of the reference left open).

    Args:
        reference_power: ``[s]``, mean ``|F|^2`` per shell, at least ``kmax + 1`` long.
        weight: mean squared observation weight on the half ball of ``kmax``, ``[K]``.
        kmax: last shell.
    """
    radius = np.linalg.norm(fourier.half_ball(kmax), axis=1)
    shell = np.minimum(np.rint(radius).astype(int), kmax)
    total = np.bincount(shell, weights=weight, minlength=kmax + 1)
    return total * reference_power[: kmax + 1]


def band_holding(info: np.ndarray, fraction: float) -> int:
    """Smallest shell below which the given fraction of the information lies."""
    share = np.cumsum(info) / max(info.sum(), 1e-30)
    return int(np.searchsorted(share, fraction - 1e-9))


def particle_radius(reference: np.ndarray) -> float:
    """Radius in voxels that holds 95 % of the variance of a map about its border level.

    Args:
        reference: map ``[n, n, n]``.
    """
    box = reference.shape[-1]
    border = np.concatenate([np.take(reference, [0, -1], axis=a).ravel() for a in range(3)])
    square = (reference - np.median(border)) ** 2
    axis = np.arange(box) - box // 2
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None] ** 2)
    bins = np.bincount(radius.astype(int).ravel(), weights=square.ravel())
    share = np.cumsum(bins) / max(bins.sum(), 1e-30)
    return float(np.clip(np.searchsorted(share, 0.95) + 1, 3, box // 2))


DETECTABLE = 11.0  # expected score of the exhaustive band above which its maxima are trusted
# Candidates of the exhaustive search, and how many remain after the two bands that follow, by the
# expected score of its band over DETECTABLE (at least): low bands of faint particles mislead.
FUNNEL = ((1.5, 12, 4, 2), (1.0, 32, 4, 2), (0.75, 96, 48, 12), (0.0, 400, 100, 16))
WIDEST_COARSE = 14  # Fourier pixels; the product grows with the ninth power of the band
WORK = 4e10  # floating-point operations per particle and reference in the exhaustive search


def plan_search(
    info: np.ndarray,
    *,
    box: int,
    radius_vox: float,
    max_shift_vox: float | tuple[float, float, float],
    expected_score: float,
    phase_rad: float = 1.2,
    delta_deg: float | None = None,
    keep: int = 1,
    group_order: float = 1,
    work: float = WORK,
) -> SearchPlan:
    """Choose bands and grids from the spectral information and the expected score.

    Args:
        info: ``[s]``, result of :func:`information`; only how it falls matters, its sum is taken
            to be the square of ``expected_score``.
        box: edge of the particle box.
        radius_vox: particle radius.
        max_shift_vox: half width of the allowed cube of shifts, or of a box along x, y and z.
        expected_score: score that a particle at its right pose is expected to have, in
            standard deviations of the noise.
        phase_rad: phase change at the particle's edge and the band's end over half a grid step.
        delta_deg: spacing of the rotations; chosen from the band if not given.
        keep: poses returned per reference, from at least twice as many candidates if several.
        group_order: the symmetry's redundancy, which divides the rotations to search.
        work: bound on the operations of the exhaustive search; the band narrows to meet it.
    """
    last = len(info) - 1
    share = np.cumsum(info) / max(info.sum(), 1e-30)
    score = expected_score * np.sqrt(share)
    final_k = int(np.clip(band_holding(np.arange(last + 1) ** 2 * info, 0.998), 6, last))
    coarse_k = int(np.clip(np.searchsorted(score, DETECTABLE), 6, min(WIDEST_COARSE, final_k)))

    def spacing(band: int) -> float:
        if delta_deg is not None:
            return delta_deg
        step = 2 * phase_rad * box / (2 * np.pi * band * radius_vox)
        return float(np.clip(np.degrees(step), 5.0, 18.0))

    def cost(band: int) -> float:
        rotations = 8 * np.pi**2 / np.radians(spacing(band)) ** 3 / group_order
        shifts = len(shift_grid(max_shift_vox, box / (2.67 * band)))
        return 4.0 * rotations * shifts * fourier.half_ball_size(band)

    while coarse_k > 4 and cost(coarse_k) > work:
        coarse_k -= 1
    clear = score[coarse_k] / DETECTABLE
    candidates, first, second = next(row[1:] for row in FUNNEL if clear >= row[0])
    middle = [coarse_k + 2, round((coarse_k * final_k) ** 0.5) + 1]
    bands = sorted({min(k, final_k) for k in (*middle, final_k)})
    keeps = [max(keep, first), max(keep, second), keep][-len(bands) :]
    stages = tuple(Stage(k, 3, m) for k, m in zip(bands, keeps))
    return SearchPlan(
        box=box,
        coarse_k=coarse_k,
        delta_deg=spacing(coarse_k),
        shift_step_vox=box / (2.67 * coarse_k),
        max_shift_vox=max_shift_vox,
        candidates=max(candidates, 2 * keep if keep > 1 else 1),
        stages=stages,
        distinct_deg=spacing(coarse_k) / 3,
    )
