"""Particles and averages aligned with each other, over what both have sampled.

Two objects (see :mod:`._material`) are compared at a pose by the correlation over the product of
their weights,

``rho = Re sum a*(R k) b(k) / sqrt(sum w_b |a|^2 / w_a  sum w_a |b|^2 / w_b)``,

in which a frequency that one of them lacks does not count on either side. Chance correlations are
the larger the less two wedges share, so that poses and pairs are ranked by the evidence

``sqrt(-m log(1 - rho^2))``,  ``m = 2 f (sum S w_a w_b)^2 / sum (S w_a w_b)^2``

which counts standard deviations of noise (half its square is the log-likelihood ratio of a common
signal); ``f`` is the part of the box inside the mask, outside of which there is no noise. The
search is that of :mod:`sptjax.align`: products over rotations and shifts in a low band, distinct
maxima, Levenberg-Marquardt in wider and wider bands.
"""

import dataclasses
from collections.abc import Callable, Iterable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float, Int

from .. import fourier, orientations
from .._chunk import cores, devices, map_chunked, on_cpu, side_by_side
from ..align import SearchPlan, Stage, information, plan_search
from ..align._coarse import distinct_maxima, dot, phased_rows
from ..align._search import refine_all, take
from ..orientations import OrientationSet
from ..resample import SliceTable, nearest, rotated_axes, sample_axes, slice_table
from ..rotation import rotate
from ..score import TINY, Observations
from ._material import Material, Objects, on_centred_grid, on_grid

Progress = Callable[[Iterable, str], Iterable]
FINAL_STEPS = 6
KEPT = 16  # candidates of a pair that see the widest band
ROW = 8  # objects that are aligned to one at a time
LEAST_WEIGHT = 0.02  # of the largest nearby, below which the fixed object is not divided
NEARBY = 2  # shells; beyond a zero of the CTF, within the fall of the signal
CLOSEST = 1 - 1e-6  # squared correlation
FINE = 4.0  # table samples per Fourier pixel, of which the nearest is taken


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Moving objects aligned to fixed ones; ``x_fixed = R x_moving + t``."""

    rotation: np.ndarray  # [p, 3, 3]
    shift: np.ndarray  # [p, 3], raw voxels
    score: np.ndarray  # [p], evidence
    correlation: np.ndarray  # [p], -1 ... 1


_Slices = tuple[Array, Array, Array, Array]  # a (two parts), |a|^2 / w_a, w_a


class _Fixed(eqx.Module):
    """An object that others are aligned to."""

    data: SliceTable  # a
    weight: SliceTable  # w_a, trilinear
    least: Float[Array, " s"]  # of a shell, by which |a|^2 is divided at least

    def slices(self, rows: Float[Array, "3 k"], turn: Float[Array, "3 3"]) -> _Slices:
        """At turned frequencies; ``rows`` are kx, ky, kz."""
        axes = rotated_axes(rows, turn)
        real, imag = sample_axes(self.data, axes)
        weight = jnp.maximum(sample_axes(self.weight, axes)[0], 0)
        least = self.least[_shell(rows)]
        return real, imag, (real * real + imag * imag) / jnp.maximum(weight, least), weight


class _Sampled(eqx.Module):
    """The same in a table so fine that the nearest sample will do."""

    data: SliceTable  # a
    power: Float[Array, " m"]  # |a|^2 / w_a
    weight: Float[Array, " m"]

    def slices(self, index: Int[Array, "*k"]) -> _Slices:
        """At samples of the table."""
        take = lambda x: x.at[index].get(mode="promise_in_bounds")  # noqa: E731
        return take(self.data.real), take(self.data.imag), take(self.power), take(self.weight)


class _Band(eqx.Module):
    """What the comparison knows about frequencies, up to some band."""

    vectors: Float[Array, "k 3"]
    signal: Float[Array, " k"]
    filled: Float[Array, ""]
    box: int = eqx.field(static=True)

    def cut(self, kmax: int) -> "_Band":
        """A lower band."""
        size = fourier.half_ball_size(kmax)
        return _Band(self.vectors[:size], self.signal[:size], self.filled, self.box)


class _Where(eqx.Module):
    """What is scanned."""

    grid: OrientationSet
    index: Int[Array, "q k"]  # samples of the fixed object, for every rotation
    shifts: Float[Array, "t 3"]


@dataclasses.dataclass(frozen=True)
class PairSearch:
    """How pairs are searched. Made by :func:`plan_pairs`, or for stated rotations by hand.

    Attributes:
        plan: bands, shifts and stages.
        grid: rotations, moving to fixed.
        shifts: float32 ``[t, 3]``, where the fixed centre may lie in the moving object, voxels
            of the copies.
        free: which of three turns and three shifts may be refined; None for all.
    """

    plan: SearchPlan
    grid: OrientationSet
    shifts: np.ndarray
    free: tuple[bool, ...] | None = None


def plan_pairs(material: Material, objects: Objects, search_vox: float) -> PairSearch:
    """Search of all rotations for objects as well known as these.

    Args:
        material: of the objects.
        objects: a level of a tree, a round of merging.
        search_vox: largest shift along each axis, voxels of the copies.
    """
    plan = pair_plan(material, objects, search_vox)
    return PairSearch(plan, orientations.uniform(plan.delta_deg), plan.shifts())


def pair_plan(
    material: Material, objects: Objects, search_vox: float | tuple[float, float, float]
) -> SearchPlan:
    """Bands, spacings and candidates; arguments as :func:`plan_pairs`, shifts of every axis."""
    seen = (material.signal[None] * objects.weight) ** 2
    box, kmax = material.particles.box, band_of(material)
    info = information(np.ones(kmax + 1), seen.mean(0)[: fourier.half_ball_size(kmax)], kmax)
    plan = plan_search(
        info,
        box=box,
        radius_vox=material.radius_vox,
        max_shift_vox=search_vox,
        expected_score=float(np.sqrt(2 * material.filled * info.sum())),
    )
    # two bands do: the candidates are few, and every stage is compiled apart
    first = dataclasses.replace(plan.stages[0], keep=min(plan.stages[0].keep, KEPT))
    stages = (first, dataclasses.replace(plan.stages[-1], steps=FINAL_STEPS))
    return dataclasses.replace(plan, stages=stages if len(plan.stages) > 1 else plan.stages)


def band_of(material: Material) -> int:
    """The widest band of the material, Fourier pixels."""
    return int(np.linalg.norm(material.vectors[-1]) + 1e-6)


def align_pairs(
    material: Material,
    objects: Objects,
    pairs: np.ndarray,
    search: PairSearch,
    *,
    title: str = "pairs",
    progress: Progress = lambda items, _: items,
) -> Pairs:
    """Align the second of every pair of objects to the first.

    Pairs of one fixed object go together, up to eight at a time; several such rows are under way
    at once, and devices take them in turn.

    Args:
        material: of the objects.
        objects: all of them.
        pairs: ``[p, 2]``, (fixed, moving).
        search: what to search.
        title: for the progress bar.
        progress: wraps the iteration over batches.
    """
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    size = fourier.half_ball_size(search.plan.kmax)
    band = _Band(
        jnp.asarray(material.vectors[:size], jnp.float32),
        jnp.asarray(material.signal[:size]),
        jnp.float32(material.filled),
        material.particles.box,
    )
    found = [np.zeros((len(pairs), *shape), np.float32) for shape in ((3, 3), (3,), (), ())]
    shifts = jnp.asarray(search.shifts, jnp.float32)
    homes, coarse = devices(), band.cut(search.plan.coarse_k)
    first = _on_device(Objects(objects.data[:1], objects.weight[:1]))
    index = _indices(first, coarse, search.grid.rotations, search.plan.coarse_k)
    where = _Where(search.grid, index, shifts)
    there = [jax.device_put(where, home) for home in homes]

    def one_row(number: int, rows: np.ndarray) -> list[np.ndarray]:
        padded = np.concatenate([rows, np.repeat(rows[-1:], _width(len(rows)) - len(rows))])
        fixed, moving = pairs[rows[0], 0], pairs[padded, 1]
        fixed_part, moving_part = (
            Objects(objects.data[of, :size], objects.weight[of, :size]) for of in (fixed, moving)
        )
        lane = number % len(homes)
        with jax.default_device(homes[lane]):
            sides = _on_device(fixed_part), _on_device(moving_part)
            out = _align_to_one(*sides, band, there[lane], search.plan, search.free)
            return [np.asarray(part)[: len(rows)] for part in out]

    each = cores() if on_cpu() else 2
    like = ("pairs", search.plan, search.free, len(shifts), len(search.grid.rotations))
    rows_of = progress(_rows_of(pairs), title)
    for rows, out in side_by_side(one_row, rows_of, len(homes), each, like):
        for whole, part in zip(found, out):
            whole[rows] = part
    return Pairs(found[0], found[1] * np.float32(material.scale), found[2], found[3])


def _on_device(objects: Objects) -> Observations:
    return Observations(jnp.asarray(objects.data), jnp.asarray(objects.weight))


def _rows_of(pairs: np.ndarray) -> list[np.ndarray]:
    """Indices of pairs of one fixed object, in pieces."""
    order = np.argsort(pairs[:, 0], kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(pairs[order, 0])) + 1) if len(order) else []
    return [g[i : i + ROW] for g in groups for i in range(0, len(g), ROW)]


def _width(count: int) -> int:
    """One or eight: few shapes, few compilations."""
    return 1 if count == 1 else ROW


@eqx.filter_jit
def _align_to_one(a: Observations, moving, band, where: _Where, plan, free):
    turns, shifts = where.grid.rotations, where.shifts
    coarse = band.cut(plan.coarse_k)
    low = coarse.signal.shape[0]
    small = _sampled(a.data[:low], a.weight[:low], coarse, plan.coarse_k)
    scores = _scan(small, _cut(moving, low), coarse, where.index, shifts, plan)
    count = min(plan.candidates, scores.shape[1])
    best = lax.map(lambda row: distinct_maxima(row, where.grid.neighbours, count), scores)
    rotation = turns[best]
    place = _best_shifts(small, _cut(moving, low), coarse, where.index[best], shifts)
    fine = _table(a.data, a.weight, band, plan.kmax)
    rotation, place = rotation[:, None], place[:, None]
    for stage in plan.stages:
        rotation, place = _climb(fine, moving, band, rotation, place, stage, plan, free)
    rotation, place = rotation[:, 0, 0], place[:, 0, 0]
    score, rho = jax.vmap(lambda b, w, r, s: _compare(fine, b, w, band, r, s))(
        moving.data, moving.weight, rotation, place
    )
    return rotation, -rotate(rotation, place), score, rho


def _cut(objects: Observations, size: int) -> Observations:
    return Observations(objects.data[:, :size], objects.weight[:, :size])


def _shell(rows: Float[Array, "3 k"]) -> Int[Array, " k"]:
    return jnp.rint(jnp.linalg.norm(rows, axis=0)).astype(jnp.int32)


def _table(data: Array, weight: Array, band: _Band, kmax: int) -> _Fixed:
    """Tables of a fixed object up to a band, made in the smallest box that holds it."""
    box = min(2 * (kmax + 2), band.box)
    one = slice_table(on_grid(data, band.vectors, box), kmax, 1)
    grid = on_centred_grid(weight, band.vectors, box)[1:, 1:, 1:].reshape(-1)
    most = jax.ops.segment_max(weight, _shell(band.vectors.T), kmax + 2)
    near = lax.reduce_window(most, 0.0, lax.max, (2 * NEARBY + 1,), (1,), "SAME")
    least = jnp.maximum(LEAST_WEIGHT * near, TINY)
    return _Fixed(one, SliceTable(grid, grid, box // 2 - 1, 1.0, 1), least)


def _sampled(data: Array, weight: Array, band: _Band, kmax: int) -> _Sampled:
    """A table of ``FINE`` samples per Fourier pixel, likewise."""
    box = min(2 * (kmax + 2), band.box)
    one = slice_table(on_grid(data, band.vectors, box), kmax, 0, FINE)
    axis = jnp.arange(-one.half, one.half + 1, dtype=jnp.float32) / one.pad
    z, y, x = jnp.meshgrid(axis, axis, axis, indexing="ij")
    rows = jnp.stack([x.reshape(-1), y.reshape(-1), z.reshape(-1)])
    fixed = _table(data, weight, band, kmax)
    seen = jnp.maximum(sample_axes(fixed.weight, (rows[0], rows[1], rows[2]))[0], 0)
    least = fixed.least[jnp.minimum(_shell(rows), kmax + 1)]
    power = (one.real**2 + one.imag**2) / jnp.maximum(seen, least)
    return _Sampled(one, power, seen)


@eqx.filter_jit
def _indices(
    a: Observations, band: _Band, turns: Float[Array, "q 3 3"], kmax: int
) -> Int[Array, "q k"]:
    """Samples that turned frequencies are nearest to, in the table of any object, ``[q, k]``.

    Worked out once: computed where they are used, they would take most of the time of a scan.
    """
    rows, size = band.vectors.T, band.signal.shape[0]
    table = _sampled(a.data[0, :size], a.weight[0, :size], band, kmax).data
    return lax.map(lambda turn: nearest(table, rotated_axes(rows, turn)), turns)


def _powers(moving: Observations, band: _Band) -> tuple[Array, Array, Array, Array]:
    """What of the moving objects is multiplied with the fixed one's power and weight."""
    weight = moving.weight
    own = jnp.abs(moving.data) ** 2 / jnp.where(weight > 0, weight, 1)
    known = weight * band.signal[None]
    return weight, own, known, known * known


def _evidence(product: Array, sums: tuple[Array, ...], filled: Array) -> tuple[Array, Array]:
    """Evidence and correlation from the sums (see the module docstring)."""
    power_a, power_b, known, square = sums
    rho = product * lax.rsqrt(power_a * power_b + TINY)
    count = 2 * filled * known * known / (square + TINY)
    value = jnp.sqrt(-count * jnp.log1p(-jnp.minimum(rho * rho, CLOSEST)))
    return jnp.sign(rho) * value, rho


def _scan(fixed: _Sampled, moving, band, index, shifts, plan: SearchPlan) -> Float[Array, "n q"]:
    """Best evidence over the shifts for every moving object and rotation."""
    n = moving.data.shape[0]
    dtype = jnp.bfloat16 if plan.half_precision else jnp.float32
    alone = Observations(moving.data, jnp.ones_like(moving.weight))
    phased = phased_rows(alone, band.vectors, shifts, band.box).astype(dtype)
    phased = phased.reshape(-1, phased.shape[-1])
    powers = _powers(moving, band)

    def one_chunk(some: Int[Array, "q k"]) -> Float[Array, "q n"]:
        real, imag, power, weight = fixed.slices(some)
        product = dot(phased, jnp.concatenate([real, imag], -1).astype(dtype))
        product = product.reshape(n, -1, some.shape[0]).max(1)
        of_fixed = (power, weight, weight, weight * weight)
        sums = tuple(dot(p, x) for p, x in zip(powers, of_fixed))
        return _evidence(product, sums, band.filled)[0].T

    return map_chunked(one_chunk, index, plan.chunk).T


def _best_shifts(fixed: _Sampled, moving, band, index, shifts) -> Float[Array, "n m 3"]:
    """Best of the coarse shifts for chosen rotations."""
    one_weight = jnp.ones_like(moving.weight[:1])

    def one(args: tuple) -> Array:
        data, own = args
        phased = phased_rows(Observations(data[None], one_weight), band.vectors, shifts, band.box)
        real, imag, *_ = fixed.slices(own)
        return shifts[dot(phased[0], jnp.concatenate([real, imag], -1)).argmax(0)]

    return lax.map(one, (moving.data, index))


def _climb(
    fixed: _Fixed,
    moving: Observations,
    band: _Band,
    rotation: Float[Array, "n 1 m 3 3"],
    place: Float[Array, "n 1 m 3"],
    stage: Stage,
    plan: SearchPlan,
    free: tuple[bool, ...] | None,
) -> tuple[Array, Array]:
    """Refine all candidates in one band and keep the best by their evidence."""
    root = jnp.sqrt(moving.weight)
    seen = Observations(moving.data / jnp.where(root > 0, root, 1).astype(moving.data.dtype), root)
    table = fixed.data
    one = SliceTable(table.real[None], table.imag[None], table.half, table.pad, table.order)
    rotation, place, _ = refine_all(
        one, seen, band.vectors.astype(jnp.int32), rotation, place,
        box=band.box, kmax=stage.kmax, steps=stage.steps, free=free,
    )  # fmt: skip
    here = band.cut(stage.kmax)
    low = _cut(moving, here.signal.shape[0])

    def value(args: tuple) -> Array:
        data, weight, turns, places = args
        one_pose = lambda r, s: _compare(fixed, data, weight, here, r, s)[0]  # noqa: E731
        return jax.vmap(one_pose)(turns, places)

    score = lax.map(value, (low.data, low.weight, rotation[:, 0], place[:, 0]))
    limit = jnp.asarray(plan.half_widths, jnp.float32) + jnp.float32(plan.shift_step_vox / 2)
    inside = (jnp.abs(place) <= limit.reshape(1, 1, 1, 3)).all(-1)
    rank = jnp.where(inside, score[:, None], score[:, None] - 1e3)
    best = lax.top_k(rank, min(stage.keep, rank.shape[-1]))[1]
    return take(rotation, best), take(place, best)


def _compare(
    fixed: _Fixed,
    data: Complex[Array, " k"],
    weight: Float[Array, " k"],
    band: _Band,
    rotation: Float[Array, "3 3"],
    place: Float[Array, "3"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Evidence and correlation of one pair at one pose."""
    rows = band.vectors.T
    real, imag, power, seen = fixed.slices(rows, rotation)
    angle = (2 * jnp.pi / band.box) * (rows[0] * place[0] + rows[1] * place[1] + rows[2] * place[2])
    moved = data * lax.complex(jnp.cos(angle), jnp.sin(angle))
    product = jnp.sum(moved.real * real + moved.imag * imag)
    powers = _powers(Observations(data[None], weight[None]), band)
    of_fixed = (power, seen, seen, seen * seen)
    sums = tuple(jnp.sum(p[0] * x) for p, x in zip(powers, of_fixed))
    return _evidence(product, sums, band.filled)


def compare_pairs(
    material: Material, objects: Objects, fixed: int, moving: np.ndarray
) -> np.ndarray:
    """Evidence of objects as they lie, without a search, ``[len(moving)]``."""
    band = _Band(
        jnp.asarray(material.vectors, jnp.float32),
        jnp.asarray(material.signal),
        jnp.float32(material.filled),
        material.particles.box,
    )
    one = objects.take(np.array([fixed]))
    others = _on_device(objects.take(np.asarray(moving)))
    return np.asarray(_compare_as_they_lie(_on_device(one), others, band, band_of(material)))


@eqx.filter_jit
def _compare_as_they_lie(a: Observations, moving: Observations, band: _Band, kmax: int) -> Array:
    fixed, here = _table(a.data[0], a.weight[0], band, kmax), (jnp.eye(3), jnp.zeros(3))
    return lax.map(
        lambda b: _compare(fixed, b[0], b[1], band, *here)[0], (moving.data, moving.weight)
    )
