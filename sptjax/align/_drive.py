"""One stage over many particles: groups of references, batches, results on the host."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .. import fourier
from .._chunk import batch_size, cores, devices, on_cpu, padded_batches, side_by_side
from .._team import teams
from .._types import Alignment
from ..particles import Particles
from ..symmetry import Symmetry, parse
from ._aligners import Aligner, FineAligner, own_symmetry
from ._group import Group
from ._plan import SearchPlan
from ._settings import AlignmentSettings, Found

Progress = Callable[[Iterable, str], Iterable]
Run = Callable[[np.ndarray, Alignment | None], Alignment]  # of one batch: indices, start poses
Work = tuple[Run, SearchPlan]
MOST_AT_ONCE, MOST_ON_CPU = 64, 16  # particles of a batch; a CPU works on several batches at once


@dataclasses.dataclass(frozen=True)
class View:
    """Particles and references at one sampling.

    Attributes:
        particles: all of them.
        references: maps ``[c, n, n, n]`` in the box of these particles, solvent at zero.
        scale: raw voxels per voxel.
    """

    particles: Particles
    references: np.ndarray | Array
    scale: float = 1.0


def over_particles(
    view: View,
    indices: np.ndarray,
    symmetries: tuple[Symmetry, ...],
    settings: AlignmentSettings,
    work: Callable[[Group], Work],
    *,
    aligner: Aligner | FineAligner | None,
    expected_score: float,
    start: Found | None = None,
    title: str = "aligning",
    progress: Progress = lambda items, _: items,
) -> Found:
    """One stage over all particles, a batch at a time: lists of poses ``[n, c, p]``.

    References of one symmetry go together. Poses come and go in raw voxels. Batches go to the
    local devices in turn, and several at a time to the cores of a CPU; what is found does not
    depend on their number, because every batch is computed on its own. If there are fewer particles
    than devices, several devices share each batch, a part of the rotations for each.

    Args:
        view: particles and references.
        indices: ``[n]``, which particles.
        symmetries: of every reference, raw voxels.
        settings: of the alignment.
        work: makes the function of a batch, and the plan from which its memory follows.
        aligner: of this stage; its symmetry, if it states one, holds for all references.
        expected_score: of a particle at its right pose (see :func:`plan_search`).
        start: lists of poses to start from.
        title: for the progress bar.
        progress: wraps the iteration over batches.
    """
    own = own_symmetry(aligner)
    searched = [at_scale(own or s, view.scale) for s in symmetries]
    names = [s.name for s in searched]
    count, whole = len(names), None
    start = None if start is None else start.scaled(1 / view.scale)
    for name, members in itertools.groupby(sorted(range(count), key=names.__getitem__),
                                           key=names.__getitem__):  # fmt: skip
        columns = np.array(list(members))
        lanes = teams(devices(), len(indices))
        runs, plan = _on_every_team(
            lanes,
            view,
            columns,
            searched[names.index(name)],
            settings,
            work,
            expected_score,
            aligner,
        )
        share = -(-_of_all_processes(len(indices), view.particles) // len(runs))
        most = 1 << max(share - 1, 0).bit_length()
        cost = _batch_cost(plan, len(columns))
        size = min(
            batch_size(cost, settings.batch_bytes, MOST_ON_CPU if on_cpu() else MOST_AT_ONCE), most
        )
        batches = list(padded_batches(np.arange(len(indices)), size))
        words = title if len(columns) == count else f"{title} {name}"

        def one_batch(
            number: int, batch: tuple[np.ndarray, int], lanes=lanes, runs=runs, columns=columns
        ) -> list[np.ndarray]:
            (rows, real), lane = batch, number % len(lanes)
            with jax.default_device(lanes[lane][0]):
                part = None if start is None else start.part(rows, columns)
                found = runs[lane](indices[rows], part)
                return [np.asarray(x)[:real] for x in (found.rotation, found.shift, found.score)]

        each = _batches_at_once(lanes, settings.batch_bytes // (cost * size))
        one_sampling = len(view.particles.sampling) == 1
        like = (title, aligner, plan, len(columns), size, one_sampling, len(lanes), len(lanes[0]))
        done = side_by_side(one_batch, progress(batches, words), len(runs), each, like)
        for (rows, real), arrays in done:
            length = arrays[2].shape[2]
            if whole is None:
                whole = Found.nothing(len(indices), count, length)
            whole = whole.at_least(length)
            at = np.ix_(rows[:real], columns, np.arange(length))
            whole.rotation[at], whole.shift[at], whole.score[at] = arrays
    if whole is None:
        return Found.empty(len(indices), count).listed()
    return whole.scaled(view.scale)


def _on_every_team(
    lanes: list[tuple[Any, ...]],
    view: View,
    columns: np.ndarray,
    symmetry: Symmetry,
    settings: AlignmentSettings,
    work: Callable[[Group], Work],
    expected_score: float,
    aligner: Aligner | FineAligner | None,
) -> tuple[list[Run], SearchPlan]:
    """The function of a batch for each team of devices, with the references prepared there."""
    runs, plan = [], None
    for team in lanes:
        with jax.default_device(team[0]):
            maps = jnp.asarray(np.asarray(view.references)[columns], jnp.float32)
            group = Group(
                view.particles,
                maps,
                symmetry,
                settings,
                expected_score,
                view.scale,
                aligner,
                team,
            )
            run, plan = work(group)
        runs.append(run)
    assert plan is not None, "there is a device"
    return runs, plan


def at_scale(symmetry: Symmetry, scale: float) -> Symmetry:
    """A symmetry of raw voxels in voxels that are ``scale`` times as large."""
    helix = symmetry.helix
    if helix is None or scale == 1:
        return symmetry
    return parse(dataclasses.replace(helix, rise_vox=helix.rise_vox / scale).name)


def _of_all_processes(count: int, particles: Particles) -> int:
    """About how many particles all processes align, so that they all use batches of one size."""
    whole = particles.stack_size or len(particles)
    return -(-count * whole // max(len(particles), 1))


def _batches_at_once(lanes: list[tuple[Any, ...]], fitting: int) -> int:
    """In every lane; all devices of a CPU share its cores and memory."""
    if len(lanes[0]) > 1:
        return 1  # two programs of one team could wait for each other
    return max(min(cores(), fitting) // len(lanes), 1) if on_cpu() else 2


def _batch_cost(plan: SearchPlan, references: int) -> int:
    """Working memory for a particle, bytes."""
    shifts = len(plan.shifts())
    rows = shifts * fourier.half_ball_size(plan.coarse_k) * 20
    return rows + shifts * plan.chunk * 4 + references * 4 * 3 * 20000
