"""Before the first round: how strong is the signal, and how do the references relate to it?

A pilot search over a few particles, in wider and wider bands until its scores stand clear of
the noise, yields the score to expect (which sets the bands of the real search) and the radial
transfer that references from elsewhere lack.
"""

import dataclasses
from collections.abc import Callable, Iterable

import jax.numpy as jnp
import numpy as np

from . import transfer
from .align import (
    AlignmentSettings,
    Found,
    Refine3D,
    RotateTranslate3DTree,
    align_particles,
    make_plan,
    stack_tables,
)
from .comparators import Matched
from .particles import Particles
from .resample import SliceTable
from .symmetry import Symmetry

Progress = Callable[[Iterable, str], Iterable]
PILOT = 24  # particles
CLEAR = 10.0  # a median score that chance does not reach over a whole search
LEVELS = (40.0, 5.0)  # expected scores to plan for: easy, hard


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Result of a pilot."""

    references: np.ndarray  # [c, n, n, n], the transfer folded in
    gain: np.ndarray  # [s], transfer per shell
    noise_share: np.ndarray  # [s], part of the stack's power that is noise, per shell
    expected_score: float
    count: int  # particles used


def pilot_rows(usable: np.ndarray, most: int = PILOT) -> np.ndarray:
    """The particles of a pilot, spread over the stack.

    Args:
        usable: bool ``[n]``.
        most: how many at most.

    Returns:
        Int ``[m]``, rising.
    """
    return usable[np.linspace(0, len(usable) - 1, min(most, len(usable))).astype(int)]


def calibrate(
    particles: Particles,
    references: np.ndarray,
    symmetries: tuple[Symmetry, ...],
    settings: AlignmentSettings,
    *,
    most: int = PILOT,
    progress: Progress = lambda items, _: items,
) -> Calibration:
    """Pilot search against the first reference; what it finds is applied to all.

    Args:
        particles: of the run.
        references: ``[c, n, n, n]``.
        symmetries: of the references.
        settings: of the run; the pilot searches adaptively whatever the aligner is.
        most: particles to use, spread over the stack.
        progress: wraps iterations over batches.
    """
    usable = particles.usable
    references = np.asarray(references, np.float32)
    flat = np.ones(references.shape[-1] // 2 + 1, np.float32)
    if not isinstance(settings.comparator, Matched) or len(usable) < 4:
        return Calibration(references, flat, flat, 0.0, 0)
    rows = pilot_rows(usable, most)
    pilot = AlignmentSettings(search_vox=settings.search_vox, apix=settings.apix)
    if settings.search_vox is None and settings.aligner is not None:
        own = getattr(settings.aligner, "search", None) or getattr(
            settings.aligner, "maxshift", None
        )
        pilot = dataclasses.replace(pilot, aligner=RotateTranslate3DTree(maxshift=own))
    maps, tried = references[:1], set()
    for level in LEVELS:
        plan = make_plan(particles, jnp.asarray(maps), pilot, level)
        if plan in tried:
            continue
        tried.add(plan)
        found = align_particles(
            particles, rows, maps, symmetries[:1], pilot, expected_score=level, progress=progress
        )
        if np.median(found.score.max(1)) >= CLEAR:
            break
    sums = _regression(particles, rows, maps, found, pilot)
    share = transfer.noise_share(sums)
    particles = particles.with_noise_share(share)
    gain = transfer.radial_transfer(sums)
    improved = np.asarray(transfer.apply_transfer(references, gain))
    local = dataclasses.replace(pilot, aligner=None, fine=Refine3D())
    scores = [
        np.median(
            align_particles(
                particles, rows, x[:1], symmetries[:1], local, expected_score=level, start=found
            ).score
        )
        for x in (references, improved)
    ]
    if scores[1] < scores[0]:  # the transfer is not better than none
        improved, gain = references, flat
    return Calibration(improved, gain, share, float(max(scores)), len(rows))


def _regression(
    particles: Particles,
    rows: np.ndarray,
    maps: np.ndarray,
    found: Found,
    settings: AlignmentSettings,
) -> transfer.Regression:
    """Sums over the better half of the pilot."""
    good = np.argsort(-found.score[:, 0], kind="stable")[: max(4, len(rows) // 2)]
    tables = stack_tables(jnp.asarray(maps[:1]), float(np.linalg.norm(particles.vectors[-1])))
    return transfer.regress(
        SliceTable(tables.real[0], tables.imag[0], tables.half, tables.pad, tables.order),
        particles.observations(rows[good], settings.comparator),
        jnp.asarray(particles.vectors, jnp.float32),
        jnp.asarray(found.rotation[good, 0]),
        jnp.asarray(found.shift[good, 0]),
        box=particles.box,
    ).summed()
