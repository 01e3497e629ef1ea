"""The whole alignment: a coarse search, a refinement, a last polish, each at its own sampling."""

import dataclasses
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .._errors import InputError
from .._types import Pose
from ..particles import Particles
from ..rotation import compose, exp, random
from ..symmetry import Symmetry
from ._aligners import (
    GRIDS,
    Aligner,
    FineAligner,
    Refine3D,
    Refine3DGrid,
    is_local,
    own_symmetry,
)
from ._drive import View, Work, at_scale, over_particles
from ._group import Group, coarse_step_deg
from ._settings import AlignmentSettings, Found
from ._stages import POLISH_STEPS, coarse_work, exhaustive_k, fine_work

Progress = Callable[[Iterable, str], Iterable]
TWEAK_RANGE_DEG = 0.5  # beyond the spacing of the stage before
TWEAK_SHIFT_VOX = 2


def align_particles(
    particles: Particles,
    indices: np.ndarray,
    references: np.ndarray | Array,
    symmetries: tuple[Symmetry, ...],
    settings: AlignmentSettings,
    *,
    expected_score: float,
    start: Found | None = None,
    key: PRNGKeyArray | None = None,
    progress: Progress = lambda items, _: items,
) -> Found:
    """:func:`align_views` where all stages see the same particles, at one sampling.

    Args:
        particles: all of a run.
        indices: ``[n]``, which of them to align.
        references: maps ``[c, n, n, n]``.
        symmetries: one per reference.
        settings: how to search.
        expected_score: of a particle at its right pose, in standard deviations of the noise.
        start: poses from which local aligners go on.
        key: of random starts, where the aligner has any.
        progress: wraps the iteration over batches.

    Returns:
        Best poses, shifts and scores of every particle and reference.
    """
    return align_views(
        View(particles, references),
        None,
        None,
        indices,
        symmetries,
        settings,
        expected_score=expected_score,
        start=start,
        key=key,
        progress=progress,
    )


def align_views(
    coarse: View,
    fine: View | None,
    full: View | None,
    indices: np.ndarray,
    symmetries: tuple[Symmetry, ...],
    settings: AlignmentSettings,
    *,
    expected_score: float,
    start: Found | None = None,
    key: PRNGKeyArray | None = None,
    progress: Progress = lambda items, _: items,
) -> Found:
    """Align particles to every reference.

    The coarse stage keeps ``settings.peaks`` distinct poses, the fine stage (if there is one)
    refines all of them and keeps the best; ``settings.tweak`` refines that once more at full
    sampling. No stage returns a worse pose than it was given, by its own score.

    With ``settings.randomize_wedge``, the grid of a global search is turned by one random
    rotation (the same for all particles of a call, so let the key differ between rounds), and
    poses against a reference with a point group become a random one of their equivalents (but
    with ``settings.break_symmetry``).

    Args:
        coarse: what the global search sees.
        fine: what the fine aligner sees; the coarse view if None.
        full: the raw sampling, for ``tweak``.
        indices: ``[n]``, which particles to align.
        symmetries: of every reference, in raw voxels.
        settings: aligners and comparators.
        expected_score: of a particle at its right pose (see :func:`plan_search`).
        start: poses ``[len(indices), c]`` where local aligners start, and with
            ``settings.use_start`` candidates of a global search too.
        key: of ``randomize_wedge``; consumed.
        progress: wraps the iteration over batches.

    Returns:
        One pose per particle (rows follow ``indices``) and reference, in raw voxels.

    Raises:
        InputError: an aligner needs start poses and there are none.
    """
    turn, pick = _random(settings, symmetries, key)
    listed = None if start is None else start.listed()
    if listed is None and is_local(settings.aligner) and not settings.translate_only:
        if settings.aligner is not None:
            raise InputError("this aligner starts from given poses, and there are none")
        listed = Found.empty(len(indices), len(symmetries)).listed()

    def stage(
        view: View,
        work: Callable[[Group], Work],
        begin: Found | None,
        aligner: Aligner | FineAligner | None = settings.aligner,
        *,
        own: AlignmentSettings = settings,
        title: str = "aligning",
    ) -> Found:
        return over_particles(
            view, indices, symmetries, own, work,
            aligner=aligner, expected_score=expected_score, start=begin, title=title,
            progress=progress,
        )  # fmt: skip

    fine_aligner, later = settings.fine, settings.of_fine_stage()
    moves = settings.aligner is not None or settings.translate_only
    if moves:
        keep = (settings.peaks or 1) if fine_aligner or settings.save_peaks else 1
        needed = None if settings.searches else listed
        found = stage(coarse, lambda g: coarse_work(g, keep, turn), needed)
    elif fine_aligner is None:
        found = stage(coarse, lambda g: fine_work(g, None), listed)
    else:
        found = listed
    assert found is not None, "without aligner there are start poses"
    peaks, last = found, coarse
    if settings.searches and settings.use_start and listed is not None:
        if fine_aligner is None:
            listed = stage(coarse, lambda g: _as_searched(g), listed)
        found = found.joined(listed)
    if fine_aligner is not None:
        last = fine or coarse
        work = lambda g: fine_work(g, fine_aligner)  # noqa: E731
        found = stage(last, work, found, fine_aligner, own=later, title="refining")
    best = found.best()
    if settings.tweak and full is not None and last.scale > 1 and (moves or fine_aligner):
        tweak = _tweak(settings, coarse, symmetries, expected_score)
        best = stage(
            full, lambda g: fine_work(g, tweak), best.listed(), tweak,
            own=later if fine_aligner else settings, title="refining at full sampling",
        ).best()  # fmt: skip
    if pick is not None and not settings.break_symmetry:
        best = _equivalents(best, pick(indices), symmetries)
    return dataclasses.replace(best, peaks=peaks if settings.save_peaks else None)


def _as_searched(group: Group) -> Work:
    """Start poses treated as the candidates of the global search, scored in its last band."""
    if isinstance(group.aligner, GRIDS) and not group.aligner.refine:
        return fine_work(group, None, exhaustive_k(group))
    return fine_work(group, Refine3D(maxiter=POLISH_STEPS))


def _tweak(
    settings: AlignmentSettings,
    coarse: View,
    symmetries: tuple[Symmetry, ...],
    expected_score: float,
) -> Refine3DGrid:
    """The last refinement: a little further than the step of the stage before, in half steps."""
    if isinstance(settings.fine, Refine3DGrid):
        step = settings.fine.delta
    else:
        symmetry = at_scale(own_symmetry(settings.aligner) or symmetries[0], coarse.scale)
        maps = jnp.asarray(coarse.references, jnp.float32)
        group = Group(
            coarse.particles, maps, symmetry, settings, expected_score, coarse.scale,
            settings.aligner,
        )  # fmt: skip
        step = coarse_step_deg(group) / 4
    return Refine3DGrid(
        delta=max(step / 2 - 0.1, 0.1), range=step + TWEAK_RANGE_DEG, search=TWEAK_SHIFT_VOX
    )


def _random(
    settings: AlignmentSettings, symmetries: tuple[Symmetry, ...], key: PRNGKeyArray | None
) -> tuple[Float[Array, "3 3"] | None, Callable[[np.ndarray], np.ndarray] | None]:
    """What ``randomize_wedge`` draws: a turn of the grid, and a number in [0, 1) per particle."""
    if not (settings.randomize_wedge and settings.searches):
        return None, None
    if key is None:
        raise ValueError("randomize_wedge needs a key")
    grid_key, particle_key = jax.random.split(key)
    if any(s.helix is not None and s.helix.max_tilt_deg < 90 for s in symmetries):
        # the tilt is against the particle's xy plane, which a turn about z keeps
        angle = 2 * np.pi * jax.random.uniform(grid_key, (), jnp.float32)
        turn = exp(angle * jnp.asarray([0, 0, 1], jnp.float32))
    else:
        turn = random(grid_key, 1)[0]

    def pick(indices: np.ndarray) -> np.ndarray:
        draw = lambda i: jax.random.uniform(jax.random.fold_in(particle_key, i))  # noqa: E731
        return np.asarray(jax.vmap(draw)(jnp.asarray(indices, jnp.uint32)))

    return turn, pick


def _equivalents(found: Found, drawn: np.ndarray, symmetries: tuple[Symmetry, ...]) -> Found:
    """One equivalent of every pose: of a point group, since those of a helix lie elsewhere."""
    rotation, shift = found.rotation.copy(), found.shift.copy()
    for c, symmetry in enumerate(symmetries):
        if symmetry.helix is None:
            chosen = symmetry.operators[(drawn * len(symmetry)).astype(int)]
            pose = compose(
                Pose(chosen, jnp.zeros((len(drawn), 3))),
                Pose(jnp.asarray(rotation[:, c]), jnp.asarray(shift[:, c])),
            )
            rotation[:, c], shift[:, c] = pose.rotation, pose.shift
    return dataclasses.replace(found, rotation=rotation, shift=shift)
