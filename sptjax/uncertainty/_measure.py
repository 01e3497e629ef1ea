"""Covariances and modes of the particles of a run, from the poses that an alignment found."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .. import fourier
from .._chunk import cores, on_cpu, padded_batches, side_by_side
from .._types import Alignment
from ..align import (
    AlignmentSettings,
    Found,
    Group,
    View,
    Work,
    at_scale,
    over_particles,
    particle_radius,
    refine_all,
    stack_tables,
)
from ..distributed import ALONE, Hosts
from ..io import PoseTable
from ..resample import SliceTable
from ..rotation import rotate, transpose
from ..score import Observations
from ..symmetry import Symmetry
from ._noise import Neighbours, NoiseModel, neighbours, nothing
from ._posterior import Amplitudes, Linear, Posterior, posterior, shrunk
from ._products import (
    Products,
    at_steps,
    gradient_at,
    products,
    residual_sums,
    score_at,
)
from ._sampled import unclear, with_moments

Progress = Callable[[Iterable, str], Iterable]
BATCH = 16
BENT = 2  # modes of a particle and class whose curvature is measured
ROUGH = 1  # order of interpolation of samples, whose spread alone counts
TURN, MOVE = slice(0, 3), slice(3, 6)
ORDER = 2  # of interpolation; that of the search, 1, leaves errors of a twentieth of the noise
LISTED = 4  # modes of a particle and class at least; the best ones are kept
STEPS = 6  # of Levenberg-Marquardt, from every candidate


@dataclasses.dataclass(frozen=True, eq=False)
class _Look:
    """Particles and one reference as the last stage of an alignment sees them."""

    group: Group
    kmax: int
    around: Neighbours
    vectors: Array
    table: SliceTable
    rough: SliceTable  # for samples

    @classmethod
    def of(cls, group: Group, kmax: int) -> "_Look":
        """In one band, the same for all references: their scores are compared."""
        vectors = fourier.half_ball(kmax)
        wave = jnp.asarray(vectors, jnp.float32)
        tables = (_table(group, kmax, order) for order in (ORDER, ROUGH))
        return cls(group, kmax, neighbours(vectors), wave, *tables)

    def observe(self, rows: np.ndarray) -> Observations:
        """Whitened particles."""
        return self.group.observe(rows, self.kmax)


def _table(group: Group, kmax: int, order: int) -> SliceTable:
    t = eqx.filter_jit(stack_tables)(group.maps, kmax, order)
    return SliceTable(t.real[0], t.imag[0], t.half, t.pad, t.order)


def pose_table(
    view: View,
    rows: np.ndarray,
    found: Found,
    symmetries: tuple[Symmetry, ...],
    settings: AlignmentSettings,
    *,
    expected_score: float,
    modes: int,
    hosts: Hosts = ALONE,
    progress: Progress = lambda items, _: items,
) -> PoseTable:
    """Modes, their probabilities and covariances.

    Args:
        view: particles and references of the last stage of the alignment.
        rows: ``[n]``, which particles.
        found: their best poses ``[n, c]``, raw voxels; a search has ``peaks``, others to consider,
            and all of them climb a little further.
        symmetries: of every reference, raw voxels.
        settings: of the alignment; its comparator is a correlation with weights.
        expected_score: the one that the alignment was planned with.
        modes: how many to keep.
        hosts: the processes that share the particles.
        progress: wraps the iteration over batches.

    Returns:
        The table of these particles, in raw voxels.
    """
    start, steps = found.listed(), 0
    if found.peaks is not None:
        start, steps = start.joined(found.peaks), STEPS
    listed = over_particles(
        view, rows, symmetries, settings, lambda group: _polish(group, max(modes, LISTED), steps),
        aligner=settings.aligner, expected_score=expected_score, start=start, title="modes",
        progress=progress,
    ).scaled(1 / view.scale)  # fmt: skip
    maps = jnp.asarray(view.references, jnp.float32)
    groups = [
        Group(
            view.particles, maps[c : c + 1], at_scale(symmetry, view.scale), settings,
            expected_score, view.scale, settings.aligner,
        )
        for c, symmetry in enumerate(symmetries)
    ]  # fmt: skip
    kmax = max(group.plan().kmax for group in groups)
    looks = [_Look.of(group, kmax) for group in groups]
    best = listed.score[:, :, 0].argmax(1)
    parts = [
        Found(listed.rotation[:, c], listed.shift[:, c], listed.score[:, c])
        for c in range(len(looks))
    ]
    noise = _noise(looks, rows, parts, best, hosts, progress)
    linear = [_linear(look, rows, part, noise, progress) for look, part in zip(looks, parts)]
    searched = found.peaks is not None
    own = [np.isfinite(listed.score[:, c]) for c in range(len(looks))]
    box = view.particles.box
    fitted = posterior(linear, own, searched, box, hosts)
    for c, (look, part, known) in enumerate(zip(looks, parts, fitted.amplitudes)):
        linear[c] = _bent(look, rows, part, linear[c], known, progress)
        linear[c] = _sampled(look, rows, part, linear[c], known, progress)
    fitted = posterior(linear, own, searched, box, hosts)
    radius = particle_radius(np.asarray(maps).mean(0))
    return _tabulated(linear, listed, fitted, modes, box, radius).scaled(view.scale)


def _polish(group: Group, modes: int, steps: int) -> Work:
    """The maxima that the candidates climb to, the best distinct ones."""
    plan = group.plan()
    tables = eqx.filter_jit(stack_tables)(group.maps, plan.kmax, ORDER)
    vectors = jnp.asarray(fourier.half_ball(plan.kmax))

    def run(indices: np.ndarray, start: Alignment | None) -> Alignment:
        assert start is not None, "the caller gives start poses"
        climbed = _climb(tables, group.observe(indices, plan.kmax), vectors, start, plan, steps)
        return group.chosen(indices, climbed, modes, plan.delta_deg)

    return run, plan


@eqx.filter_jit
def _climb(tables, observed: Observations, vectors, start, plan, steps: int) -> Alignment:
    place = -rotate(transpose(start.rotation), start.shift)
    turn, place, score = refine_all(
        tables, observed, vectors, start.rotation, place,
        box=plan.box, kmax=plan.kmax, steps=steps, free=plan.free,
    )  # fmt: skip
    score = jnp.where(jnp.isfinite(start.score), score, -jnp.inf)
    return Alignment(turn, -rotate(turn, place), score)


def _places(rotation: np.ndarray, shift: np.ndarray) -> Array:
    turn, move = jnp.asarray(rotation), jnp.asarray(shift)
    return -rotate(transpose(turn), move)


def _noise(
    looks: list[_Look],
    rows: np.ndarray,
    listed: list[Found],
    best: np.ndarray,
    hosts: Hosts,
    progress: Progress,
) -> NoiseModel:
    """Noise in the residuals of the particles at their best poses in their best classes.

    One model for all classes: with noise of its own, a class whose members agree less with its
    reference would lower the scores of all particles in it.
    """
    total, count = nothing(looks[0].around), 0
    members = [
        (look, part, np.flatnonzero(best == c)) for c, (look, part) in enumerate(zip(looks, listed))
    ]
    batches = [(*own, item) for *own, rank in members for item in padded_batches(rank, BATCH)]

    def of(number: int, batch: tuple) -> NoiseModel:
        del number
        look, part, (here, real) = batch
        turn, shift = part.rotation[here, 0], part.shift[here, 0]
        return residual_sums(
            look.table, look.observe(rows[here]), look.vectors, jnp.asarray(turn),
            _places(turn, shift), jnp.asarray(np.arange(len(here)) < real, jnp.float32),
            look.around, look.group.box,
        )  # fmt: skip

    like = ("noise", looks[0].kmax, looks[0].group.box)
    for batch, more in side_by_side(of, progress(batches, "noise"), 1, _at_once(), like):
        total = jax.tree.map(jnp.add, total, more)
        count += batch[2][1]
    power, near, count = hosts.total(
        (np.asarray(total.power), np.asarray(total.near), np.asarray(count))
    )
    return NoiseModel(jnp.asarray(power / count), jnp.asarray(near / np.float32(count)))


def _at_once() -> int:
    """Batches worked on at a time."""
    return cores() if on_cpu() else 2


def _in_batches(
    of: Callable[[np.ndarray], Any], look: _Look, count: int, title: str, progress: Progress
) -> Any:
    """A tree of arrays ``[count, ...]``, float64, from those of the rows of every batch."""

    def one_batch(number: int, batch: tuple[np.ndarray, int]) -> Any:
        del number
        rows, real = batch
        return jax.tree.map(lambda x: np.asarray(x, np.float64)[:real], of(rows))

    batches = progress(list(padded_batches(np.arange(count), BATCH)), title)
    like = (title, look.kmax, look.group.box)
    parts = [part for _, part in side_by_side(one_batch, batches, 1, _at_once(), like)]
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _linear(
    look: _Look, rows: np.ndarray, listed: Found, noise: NoiseModel, progress: Progress
) -> Linear:
    """Every particle linearised at each of its modes."""

    def of(here: np.ndarray) -> Products:
        turn, shift = listed.rotation[here], listed.shift[here]
        return products(
            look.table, look.observe(rows[here]), look.vectors, jnp.asarray(turn),
            _places(turn, shift), noise, look.around, look.group.box,
        )  # fmt: skip

    found = _in_batches(of, look, len(rows), "covariances", progress)
    return Linear(found.normal, found.spread, found.along)


def _bent(
    look: _Look,
    rows: np.ndarray,
    listed: Found,
    linear: Linear,
    known: Amplitudes,
    progress: Progress,
) -> Linear:
    """The same with the curvature of the score at the best modes."""
    amplitude, box = shrunk(linear.score, linear.unit_score, known), look.group.box
    steps = linear.steps(amplitude, box)
    best = slice(0, BENT)

    def of(here: np.ndarray) -> Array:
        turn, shift = listed.rotation[here, best], listed.shift[here, best]
        ahead = jnp.asarray(steps[here, best], jnp.float32)
        gradients = at_steps(
            gradient_at, look.table, look.observe(rows[here]), look.vectors, jnp.asarray(turn),
            _places(turn, shift), jnp.concatenate([ahead, -ahead], 2), box,
        )  # fmt: skip
        after, before = jnp.split(gradients, 2, 2)
        return (after - before) / 2

    return linear.bent(
        _in_batches(of, look, len(rows), "curvatures", progress), steps, amplitude, box
    )


def _sampled(
    look: _Look,
    rows: np.ndarray,
    listed: Found,
    linear: Linear,
    known: Amplitudes,
    progress: Progress,
) -> Linear:
    """The same with the curvature of unclear modes from samples around them."""
    amplitude, box = shrunk(linear.score, linear.unit_score, known), look.group.box
    pairs = unclear(linear, np.isfinite(listed.score[:, :BENT]))

    def scores(away: np.ndarray) -> np.ndarray:
        def of(here: np.ndarray) -> Array:
            particle, mode = pairs[here].T
            turn, shift = listed.rotation[particle, mode], listed.shift[particle, mode]
            return at_steps(
                score_at, look.rough, look.observe(rows[particle]), look.vectors,
                jnp.asarray(turn)[:, None], _places(turn, shift)[:, None],
                jnp.asarray(away[here], jnp.float32)[:, None], box,
            )[:, 0]  # fmt: skip

        return _in_batches(of, look, len(pairs), "samples", progress)

    return with_moments(linear, pairs, scores, amplitude, box)


def _tabulated(
    linear: list[Linear], listed: Found, fitted: Posterior, modes: int, box: int, radius: float
) -> PoseTable:
    """The most probable modes over all classes."""
    n, count, m = listed.score.shape
    probability = np.concatenate(fitted.inside, 1)
    keep = min(modes, probability.shape[1])
    order = np.argsort(-probability, axis=1, kind="stable")[:, :keep]
    pick = lambda x: np.take_along_axis(  # noqa: E731
        x, order.reshape(n, keep, *(1,) * (x.ndim - 2)), 1
    )
    covariance = np.concatenate(
        [
            part.covariance(shrunk(part.score, part.unit_score, known), box)
            for part, known in zip(linear, fitted.amplitudes)
        ],
        1,
    )
    score = np.concatenate([part.score for part in linear], 1)
    flat = lambda x: x.reshape(n, count * m, *x.shape[3:])  # noqa: E731
    alive = pick(np.isfinite(flat(listed.score)))
    probability, covariance = pick(probability), pick(covariance)
    classes = np.where(alive, order // m, -1)
    elsewhere = 1 - probability.sum(1)
    all_of_it = np.concatenate([probability, elsewhere[:, None]], 1).clip(1e-30)
    degrees = np.degrees(1.0)
    units = np.array([degrees] * 3 + [1.0] * 3)
    return PoseTable(
        rotation=pick(flat(listed.rotation)),
        shift=pick(flat(listed.shift)),
        classes=classes.astype(np.int32),
        score=pick(score).astype(np.float32),
        probability=probability.astype(np.float32),
        covariance=(covariance * units[:, None] * units).astype(np.float32),
        elsewhere=elsewhere.astype(np.float32),
        entropy=-(all_of_it * np.log(all_of_it)).sum(1).astype(np.float32),
        displacement=_displacement(covariance, radius),
    )


def _displacement(covariance: np.ndarray, radius: float) -> np.ndarray:
    """Root mean square error of a point of the particle, ``[n, m]``.

    A point at distance ``r`` moves by ``2/3 r^2`` times the trace of the turns plus that of the
    shifts, and ``r^2 = 3/5 R^2`` in a ball.
    """
    turn, move = (np.trace(covariance[..., p, p], axis1=-2, axis2=-1) for p in (TURN, MOVE))
    return np.sqrt(0.4 * radius**2 * turn + move).astype(np.float32)
