"""One group of references in one view: its plan, its observations and its scores."""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .. import fourier
from .._errors import InputError
from .._types import Alignment
from ..comparators import Matched
from ..particles import WHOLE, Particles
from ..resample import SliceTable
from ..score import Observations
from ..symmetry import Symmetry, within_reach
from ._aligners import GRIDS, Aligner, FineAligner, RotateTranslate3DTree, own_shifts
from ._plan import DETECTABLE, SearchPlan, half_widths, information, particle_radius, plan_search
from ._rank import comparator_scores, joined, separate
from ._search import reference_spectrum, stack_tables
from ._settings import AlignmentSettings

FEWEST_RANKED = 16  # poses that a search leaves to a comparator that is no correlation


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """The references of one symmetry in one view, and how a stage looks at the particles."""

    particles: Particles
    maps: Array  # [c, n, n, n]
    symmetry: Symmetry  # voxels of the view
    settings: AlignmentSettings
    expected_score: float
    scale: float
    aligner: Aligner | FineAligner | None  # of the stage
    team: tuple[Any, ...] = ()  # devices that share every batch; none: the default one

    @property
    def apix(self) -> float:
        """Voxel size of the view, angstrom."""
        return self.settings.apix * self.scale

    @property
    def box(self) -> int:
        """Edge of the volumes."""
        return self.particles.box

    @functools.cached_property
    def vectors(self) -> Array:
        """All frequencies of the particles."""
        return jnp.asarray(self.particles.vectors)

    @property
    def last_k(self) -> int:
        """The widest band that the particles have."""
        return int(np.linalg.norm(self.particles.vectors[-1]) + 1e-6)

    def plan(self, *, keep: int = 1, shifts: tuple[float, float, float] | None = None, **options):
        """Plan of the search of these references, see :func:`make_plan`."""
        return make_plan(
            self.particles,
            self.maps,
            self.settings,
            self.expected_score,
            within_reach(self.symmetry, self.pitch_reach(shifts)).redundancy,
            keep=keep,
            max_shift_vox=shifts,
            band=self.band,
            scale=self.scale,
            **options,
        )

    def pitch_reach(self, shifts: tuple[float, float, float] | None = None) -> float:
        """How far shifts reach in every direction."""
        return min(half_widths(shifts or max_shift(self.settings, self.box)))

    @property
    def band(self) -> tuple[float, float]:
        """Limits of ``|k|`` that the aligner states, Fourier pixels."""
        if not isinstance(self.aligner, RotateTranslate3DTree):
            return WHOLE
        low, high = self.aligner.minres, self.aligner.maxres
        length = self.box * self.apix
        return (length / low if low else WHOLE[0], length / high if high else WHOLE[1])

    def observe(self, indices: np.ndarray, kmax: int) -> Observations:
        """Whitened particles up to a band."""
        size = fourier.half_ball_size(kmax)
        comparator = self.settings.comparator
        return self.particles.observations(
            indices, comparator, size, apix=self.apix, band=self.band
        )

    @property
    def listed(self) -> int:
        """Poses that a search must leave for the best one to be among them."""
        comparator = self.settings.comparator
        if isinstance(comparator, Matched):
            return 1
        radius = jnp.ones(1, jnp.float32)
        linear = comparator.linear_weight(radius, self.box, self.apix) is not None
        return 1 if linear else FEWEST_RANKED

    @functools.cached_property
    def _final_tables(self) -> SliceTable:
        return eqx.filter_jit(stack_tables)(self.maps, self.last_k, 2)

    def scored(self, indices: np.ndarray, found: Alignment) -> Alignment:
        """The same poses with the score that is reported.

        That of ``matched`` is the search's own. The others are taken over all frequencies of the
        particles, so that they compare between searches of different bands.
        """
        comparator = self.settings.comparator
        if isinstance(comparator, Matched):
            return found
        values, sampling = self.particles.read(indices)
        return comparator_scores(
            comparator,
            self._final_tables,
            jnp.asarray(values),
            jnp.asarray(sampling),
            self.vectors,
            found,
            box=self.box,
            apix=self.apix,
        )

    def chosen(
        self, indices: np.ndarray, found: Alignment, keep: int, apart_deg: float, *others: Alignment
    ) -> Alignment:
        """The best distinct poses of a list, by the score that is reported.

        Args:
            indices: of the particles.
            found: poses ``[n, c, m]``.
            keep: how many.
            apart_deg: smallest angle between them.
            others: lists that compete where the search's score is not the one reported.
        """
        if others and not isinstance(self.settings.comparator, Matched):
            found = joined(found, *others)
        found = self.scored(indices, found)
        if found.score.shape[2] == 1:
            return found
        # equivalents along a helix differ in their shifts: only equal rotations are one pose
        same = self.symmetry.operators if self.symmetry.helix is None else jnp.eye(3)[None]
        return separate(found, same, jnp.float32(apart_deg), keep)


def make_plan(
    particles: Particles,
    references: Array,
    settings: AlignmentSettings,
    expected_score: float,
    group_order: float = 1,
    *,
    keep: int = 1,
    max_shift_vox: tuple[float, float, float] | None = None,
    delta_deg: float | None = None,
    band: tuple[float, float] = WHOLE,
    scale: float = 1.0,
) -> SearchPlan:
    """Plan of the search for these references, from the spectral information.

    Args:
        particles: of the run.
        references: maps ``[c, n, n, n]``.
        settings: comparator and shifts.
        expected_score: of a particle at its right pose.
        group_order: redundancy of the symmetry.
        keep: poses that the search returns.
        max_shift_vox: half widths of the shifts; those of the settings if not given.
        delta_deg: spacing of a stated grid, whose coarse band it limits.
        band: limits of ``|k|``.
        scale: raw voxels per voxel.

    Raises:
        InputError: no frequency between the limits of resolution was sampled.
    """
    box, kmax = particles.box, int(np.linalg.norm(particles.vectors[-1]) + 1e-6)
    weight = particles.mean_weight(settings.comparator, settings.apix * scale, band)
    info = information(reference_spectrum(references), weight, kmax)
    if not info.sum() > 0:
        raise InputError("no frequency between the limits of resolution was sampled")
    radius = particle_radius(np.asarray(references).mean(0))
    if not isinstance(settings.comparator, Matched):
        expected_score = DETECTABLE / np.sqrt(0.8)
    plan = plan_search(
        info,
        box=box,
        radius_vox=radius,
        max_shift_vox=max_shift(settings, box) if max_shift_vox is None else max_shift_vox,
        expected_score=expected_score,
        delta_deg=delta_deg,
        keep=keep,
        group_order=group_order,
    )
    if delta_deg is not None:
        # the band that this spacing resolves, by the rule that chooses spacings from bands
        resolved = 2 * 1.2 * box / (2 * np.pi * radius * np.radians(delta_deg))
        plan = dataclasses.replace(plan, coarse_k=int(np.clip(resolved, 4, plan.coarse_k)))
    return plan


def max_shift(settings: AlignmentSettings, box: int) -> float | tuple[float, float, float]:
    """Half widths of the shifts of the coarse stage; one number if they are equal."""
    own = own_shifts(settings.aligner)
    if own == (0.0, 0.0, 0.0):
        return 0.0
    if settings.search_vox is not None:
        return float(settings.search_vox)
    if own is None:
        return float(box // 4)
    return own[0] if own[0] == own[1] == own[2] else own


def coarse_step_deg(group: Group) -> float:
    """Spacing of the rotations that the coarse stage of these settings searches."""
    aligner = group.settings.aligner
    if isinstance(aligner, GRIDS):
        return aligner.step_deg(aligner.grid(group.symmetry))
    return group.plan().delta_deg
