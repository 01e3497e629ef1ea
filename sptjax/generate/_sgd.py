"""Initial maps by stochastic gradient descent, from random poses.

A map starts as the average of a few particles at random poses. Every step aligns a random batch
to the map as it is and moves the map towards the batch. The sums ``X`` (data over noise) and
``Q`` (precision) of a map forget older batches at a rate ``r``,

``X <- (1 - r) X + sum_batch X_i(R_i^T q)``,  ``Q <- (1 - r) Q + sum_batch Q_i(R_i^T q)``,

and the map is the Wiener estimate ``S X / (1 + S Q)``: with the precision as the metric, this is
the gradient step on the likelihood of the batch in closed form, and missing wedges fill by the
orientations that come by. The band of the search widens in levels, the rate falls; batches and
grids are random, which carries the map out of the accidents of its start. Several maps share the
particles, drawn by their scores at first. Runs from several seeds are brought into one frame and
compared: maps that different seeds agree on are no accident.

After EMAN2's ``e2spt_sgd_new`` and Punjani et al. 2017, Nat. Methods 14:290.
"""

import dataclasses
from collections.abc import Callable, Iterable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import fourier, masks, orientations, resolution, stability
from .._chunk import padded_batches
from .._errors import InputError
from .._types import Pose
from ..align import SearchPlan, Stage, align, information, prepare
from ..averaging import Averaging
from ..comparators import Matched
from ..rotation import compose, multiply, random
from ..selection import assign
from ..symmetry import Symmetry, angle_deg_modulo, parse
from ._maps import Generated, raw_maps
from ._material import Material, Sums, on_grid
from ._self_symmetry import in_one_frame

Progress = Callable[[Iterable, str], Iterable]
FIRST_BAND, WIDEST_BAND = 4, 7  # Fourier pixels, of the exhaustive search
PHASE = 1.2  # radians at the edge of the particle over half a grid step
CLOSE_DEG = 15.0  # rotations of two runs that count as equal
FORGET = (0.5, 0.1)  # rates of the first and the last step
AT_ONCE = 8  # particles that are added


@dataclasses.dataclass(frozen=True)
class SgdSettings:
    """What the options of a descent resolve to."""

    maps: int = 1
    seeds: int = 2  # independent runs
    seed: int = 0  # of the first of them
    steps: int = 60  # batches of a run
    batch: int = 24  # particles of a step, at most all
    levels: int = 3  # bands that the search widens through
    search_vox: float = 8.0  # largest shift along each axis, voxels of the copies
    symmetry: Symmetry = dataclasses.field(default_factory=lambda: parse("c1"))  # of all maps
    averaging: Averaging = Averaging()


@dataclasses.dataclass(frozen=True)
class Descent:
    """Result of :func:`generate_sgd`.

    Attributes:
        runs: the maps of every seed; those of the best run in their own frame, of several maps
            or symmetric ones all of them.
        best: the run of the highest mean score.
        score: ``[runs]``, mean score of all particles in every run, standard deviations.
        agreement: ``[runs]``, with the best run: for one map the share of the particles whose
            rotations are within 15 degrees, for several the adjusted Rand index of the classes.
        fsc: of one map, ``[seeds, n // 2 + 1]``: particles of even number in the best run against
            those of odd number in every run, which have no noise in common.
    """

    runs: tuple[tuple[Generated, ...], ...]
    best: int
    score: np.ndarray
    agreement: np.ndarray
    fsc: np.ndarray | None = None

    @property
    def maps(self) -> tuple[Generated, ...]:
        """Of the best run."""
        return self.runs[self.best]

    @property
    def converged(self) -> bool:
        """Whether another run agrees with the best one (a single run cannot tell)."""
        others = np.delete(self.agreement, self.best)
        return bool(len(others) and others.max() > 0.5)


def generate_sgd(
    material: Material,
    rows: np.ndarray,
    settings: SgdSettings,
    *,
    progress: Progress = lambda items, _: items,
) -> Descent:
    """Maps from particles alone, by several runs that are compared.

    Args:
        material: of the particles.
        rows: ``[n]``, which particles.
        settings: of the descent.
        progress: wraps iterations over steps.

    Raises:
        InputError: fewer than two particles for every map.
    """
    rows = np.asarray(rows)
    if len(rows) < 2 * settings.maps:
        raise InputError(
            f"{settings.maps} maps by sgd need at least {2 * settings.maps} particles, not"
            f" {len(rows)}"
        )
    runs, scores = [], []
    for i in range(settings.seeds):
        made = _run(material, rows, settings, settings.seed + i, progress)
        runs.append(made)
        scores.append(np.concatenate([one.score for one in made]).mean())
    best = int(np.argmax(scores))
    if settings.maps == 1:
        runs, agreement, curves = _compared(material, runs, best, settings)
        return Descent(tuple(runs), best, np.array(scores), agreement, curves)
    classes = [_classes(run, len(material)) for run in runs]
    agreement = np.array([stability.adjusted_rand(c, classes[best]) for c in classes])
    return Descent(tuple(runs), best, np.array(scores), agreement)


def _run(
    material: Material, rows: np.ndarray, settings: SgdSettings, seed: int, progress: Progress
) -> tuple[Generated, ...]:
    """One descent, and a last pass over all particles."""
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    count, size = settings.maps, min(settings.batch, len(rows))
    sums = Sums.empty(material, count)
    order = rng.permutation(rows)
    start = np.array([order[i % len(order)] for i in range(count * size)])
    turn = np.asarray(random(jax.random.fold_in(key, 0), len(start)))
    shift = np.zeros((len(start), 3), np.float32)
    sums = sums.forget(1.0).add(
        material, start, turn, shift, np.arange(len(start)) % count, batch=AT_ONCE
    )
    plans = _plans(material, settings)
    turned = settings.symmetry.helix is None and len(settings.symmetry) == 1
    queue = np.zeros(0, int)
    for step in progress(range(settings.steps), f"sgd, seed {seed}"):
        done = step / max(settings.steps - 1, 1)
        plan = plans[min(int(done * len(plans)), len(plans) - 1)]
        own = jax.random.fold_in(key, step + 1)
        grid = orientations.uniform(plan.delta_deg, settings.symmetry)
        if turned:
            rotations = multiply(grid.rotations, random(own, 1)[0])
            grid = dataclasses.replace(grid, rotations=rotations)
        if len(queue) < size:
            queue = np.concatenate([queue, rng.permutation(rows)])
        batch, queue = queue[:size], queue[size:]
        found = _aligned(
            material, _maps(sums, material), plan, settings.symmetry, grid, batch, size
        )
        anneal = max(settings.steps * 2 // 3, 1)
        classes = assign(found[2], step, anneal, seed)
        at = np.arange(size), classes
        turn, shift = _equivalent(found[0][at], found[1][at], settings.symmetry, rng)
        rate = FORGET[0] * (FORGET[1] / FORGET[0]) ** done
        sums = sums.forget(rate).add(material, batch, turn, shift, classes, batch=AT_ONCE)
    grid = orientations.uniform(plans[-1].delta_deg, settings.symmetry)
    maps = _maps(sums, material)
    found = _aligned(material, maps, plans[-1], settings.symmetry, grid, rows, size)
    classes = np.argmax(found[2], 1)
    return _generated(material, rows, found, classes, settings, seed)


def _plans(material: Material, settings: SgdSettings) -> list[SearchPlan]:
    """Searches of wider and wider bands."""
    box = material.particles.box
    last = int(np.linalg.norm(material.vectors[-1]) + 1e-6)
    seen = material.signal * material.particles.mean_weight(Matched())
    info = information(np.ones(last + 1), seen, last)
    square = np.cumsum(np.arange(last + 1) ** 2 * info)
    final = int(np.clip(np.searchsorted(square, 0.98 * square[-1]), FIRST_BAND + 2, last))
    end = min(WIDEST_BAND, final)
    plans = []
    for k in np.unique(np.linspace(FIRST_BAND, end, settings.levels).round().astype(int)):
        step = 2 * PHASE * box / (2 * np.pi * k * material.radius_vox)
        delta = float(np.clip(np.degrees(step), 5.0, 18.0))
        wider = min(int(k) + 2, final) if k < end else final
        plans.append(
            SearchPlan(
                box=box,
                coarse_k=int(k),
                delta_deg=delta,
                shift_step_vox=box / (2.67 * k),
                max_shift_vox=settings.search_vox,
                candidates=8,
                stages=(Stage(int(k), 3, 3), Stage(wider, 3, 1)),
                distinct_deg=delta / 3,
            )
        )
    return plans


def _aligned(material, maps, plan, symmetry, grid, rows, size):
    """Rotation, shift in raw voxels and score of every particle against every map."""
    search = prepare(maps, plan, symmetry, grid)
    ball = fourier.half_ball_size(plan.kmax)
    parts = []
    for here, real in padded_batches(rows, size):
        found = align(search, material.particles.observations(here, Matched(), ball))
        arrays = (found.rotation, found.shift * material.scale, found.score)
        parts.append([np.asarray(x)[:real, :, 0] for x in arrays])
    return [np.concatenate(x) for x in zip(*parts)]


def _equivalent(turn, shift, symmetry: Symmetry, rng):
    """Poses as seen from a random one of the symmetry's asymmetric units."""
    if len(symmetry) == 1:
        return turn, shift
    pick = rng.integers(len(symmetry), size=len(turn))
    operator = Pose(symmetry.operators[pick], symmetry.shifts[pick])
    found = compose(operator, Pose(jnp.asarray(turn), jnp.asarray(shift)))
    return np.asarray(found.rotation), np.asarray(found.shift)


def _maps(sums: Sums, material: Material):
    """Wiener estimates ``[c, n, n, n]`` in the box of the copies, in a soft sphere."""
    box = material.particles.box
    seen = np.maximum(sums.precision, 0)
    values = sums.data * (material.signal / (1 + material.signal * seen))
    ball = masks.sphere(box, min(material.radius_vox + 1, box / 2 - 4), 3.0)
    vectors = jnp.asarray(material.vectors, jnp.float32)
    return _volumes(jnp.asarray(values.astype(np.complex64)), vectors, ball)


@eqx.filter_jit
def _volumes(values, vectors, ball):
    box = ball.shape[-1]
    return jax.vmap(lambda x: on_grid(x, vectors, box))(values) * ball[None]


def _generated(material, rows, found, classes, settings: SgdSettings, seed: int):
    """Maps of all particles at their last poses; a map that nobody chose is zero."""
    at = np.arange(len(rows)), classes
    turn, shift, score = (x[at] for x in found)
    maps = raw_maps(
        material, rows, turn, shift, classes, settings.maps, settings.averaging,
        symmetry=settings.symmetry,
    )  # fmt: skip
    return tuple(
        Generated(
            map=maps[c],
            indices=rows[classes == c],
            rotation=turn[classes == c],
            shift=shift[classes == c],
            score=score[classes == c],
            note=f"seed {seed}, {np.sum(classes == c)} particles",
        )
        for c in range(settings.maps)
    )


def _compared(material: Material, runs, best: int, settings: SgdSettings):
    """Runs of one map in the frame of the best one, and how far each agrees with it."""
    order = [best, *(i for i in range(len(runs)) if i != best)]
    if len(order) > 1:
        moved = in_one_frame(
            material, [runs[i][0] for i in order], settings.symmetry, settings.search_vox,
            settings.averaging,
        )  # fmt: skip
        runs = [(moved[order.index(i)],) for i in range(len(runs))]
    turns = [jnp.asarray(run[0].rotation, jnp.float32) for run in runs]
    near = [angle_deg_modulo(t, turns[best], settings.symmetry) < CLOSE_DEG for t in turns]
    mask = masks.sphere(material.stack.box, material.radius_vox * material.scale, 3.0)
    even = _half(material, runs[best][0], 0, settings)
    curves = [
        resolution.fsc_masked(even, _half(material, run[0], 1, settings), mask) for run in runs
    ]
    return runs, np.array([float(x.mean()) for x in near]), np.stack(curves)


def _half(material: Material, one: Generated, parity: int, settings: SgdSettings):
    """The map of the even or odd particles of a run."""
    own = np.flatnonzero(one.indices % 2 == parity)
    return jnp.asarray(
        raw_maps(
            material, one.indices[own], one.rotation[own], one.shift[own],
            np.zeros(len(own), int), 1, settings.averaging, symmetry=settings.symmetry,
        )[0]
    )  # fmt: skip


def _classes(run: tuple[Generated, ...], count: int) -> np.ndarray:
    classes = np.full(count, -1)
    for c, one in enumerate(run):
        classes[one.indices] = c
    return classes
