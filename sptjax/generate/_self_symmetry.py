"""Self-symmetry: every particle on the axes of its symmetry, then all of them together.

EMAN2's ``e2symsearch3d.py`` puts each particle where it agrees best with its own symmetry copies.
That leaves open what the symmetry cannot tell: the turns and shifts that map its axes onto
themselves (of Cn any turn about z, any shift along it and a half turn across it; of Dn half a
step about z). They are settled here by aligning every particle to the symmetric running average
over those moves alone.
"""

import dataclasses
from collections.abc import Callable, Iterable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.spatial.transform import Rotation

from .. import orientations
from .._chunk import batch_size, padded_batches
from .._errors import InputError
from .._types import Pose
from ..align import align_many_to_symmetry
from ..averaging import Averaging
from ..orientations import OrientationSet
from ..selection import Selection, select
from ..symmetry import Symmetry, copies
from ._maps import Generated, composed, raw_maps, verdict
from ._material import Material, Objects, Sums, on_centred_grid, on_grid
from ._pairs import PairSearch, align_pairs, band_of, pair_plan, plan_pairs

Progress = Callable[[Iterable, str], Iterable]
SCAN_DEG = 8.0
AT_ONCE, MEMORY = 8, 2**30  # particles, and the bytes that they may take


@dataclasses.dataclass(frozen=True)
class SymmetrySettings:
    """What the options of a self-symmetry search resolve to."""

    symmetry: Symmetry
    steps: int = 10  # maxima of the scan that are refined, per particle
    search_vox: float | None = None  # bound on shifts, voxels of the copies; a quarter of the box
    rounds: int = 1  # of averaging (avgiter)
    selection: Selection = Selection()
    averaging: Averaging = Averaging()
    seed: int = 0

    def __post_init__(self):
        if len(self.symmetry) == 1:
            raise InputError("self-symmetry needs a symmetry other than c1 (--sym)")
        if self.steps < 1 or self.rounds < 1:
            raise InputError("self-symmetry needs at least one start and one round of averaging")


@dataclasses.dataclass(frozen=True)
class OnAxes:
    """Particles on the axes of their symmetry.

    Attributes:
        indices: ``[n]``, in the stack.
        rotation: particle to symmetric frame, ``[n, 3, 3]``.
        shift: ``[n, 3]``, raw voxels.
        score: ``[n]``, correlation of the symmetrised with the moved particle, 0 to 1.
    """

    indices: np.ndarray
    rotation: np.ndarray
    shift: np.ndarray
    score: np.ndarray


@dataclasses.dataclass(frozen=True)
class Together:
    """Particles on common axes with the freedom of the symmetry settled.

    Attributes:
        poses: as :class:`OnAxes`; the score is the evidence against the average, in sigma.
        used: ``[n]``, of every particle, whether it is in the average.
        map: the average ``[z, y, x]``.
        rounds: indices of the particles kept in every round.
        grown: mean evidence of 1, 2, 4 ... particles against the average of those before them.
    """

    poses: OnAxes
    used: np.ndarray
    map: np.ndarray
    rounds: tuple[np.ndarray, ...]
    grown: tuple[float, ...]


def put_on_axes(
    material: Material,
    rows: np.ndarray,
    settings: SymmetrySettings,
    *,
    progress: Progress = lambda items, _: items,
) -> OnAxes:
    """Align every particle to its own symmetry, alone.

    Args:
        material: of the particles.
        rows: ``[n]``, which particles.
        settings: the symmetry and how to search.
        progress: wraps the iteration over batches.
    """
    rows = np.asarray(rows)
    grid = orientations.uniform(SCAN_DEG, settings.symmetry)
    size = min(batch_size(32 * (2 * material.particles.box) ** 3, MEMORY, AT_ONCE), len(rows))
    parts = []
    for here, real in progress(list(padded_batches(rows, size)), "self-symmetry"):
        found = _axes_of(material, material.singles(here), settings, grid, here)
        parts.append([np.asarray(x, np.float64)[:real] for x in found])
    turn, shift, score = (np.concatenate(x) for x in zip(*parts))
    return OnAxes(rows, turn, shift * material.scale, score)


def _axes_of(
    material: Material,
    objects: Objects,
    settings: SymmetrySettings,
    grid: OrientationSet,
    draws: np.ndarray,
) -> tuple[Array, Array, Array]:
    """Rotation and shift (voxels of the copies) of objects on their axes, and correlation."""
    box, vectors = material.particles.box, jnp.asarray(material.vectors, jnp.float32)
    volumes, seen = _as_volumes(
        jnp.asarray(objects.data), jnp.asarray(objects.weight), vectors, box
    )
    key = jax.random.key(settings.seed)
    pose, score = align_many_to_symmetry(
        volumes,
        settings.symmetry,
        keys=jax.vmap(lambda draw: jax.random.fold_in(key, draw))(jnp.asarray(draws)),
        starts=settings.steps,
        kmax=min(max(box // 3, 4), box // 2 - 3, band_of(material)),
        max_shift_vox=settings.search_vox,
        sampling=seen,
        grid=grid,
    )
    return pose.rotation, pose.shift, score


@eqx.filter_jit
def _as_volumes(data, weight, vectors, box: int):
    """Volumes and samplings of objects.

    Each copy is multiplied by the sampling of the other: with the root of the weight, a product
    of two counts as in :mod:`._pairs`.
    """
    root = jnp.sqrt(weight)
    halved = data / jnp.where(root > 0, root, 1).astype(data.dtype)
    volumes = jax.vmap(lambda x: on_grid(x, vectors, box))(halved)
    return volumes, jax.vmap(lambda w: on_centred_grid(w, vectors, box))(root)


def bring_together(
    material: Material,
    found: OnAxes,
    settings: SymmetrySettings,
    *,
    reference: np.ndarray | None = None,
    progress: Progress = lambda items, _: items,
) -> Together:
    """Settle what the symmetry leaves open, and average.

    The particle with the best score comes first; then as many at a time as the average holds.
    Rounds of averaging stop when the particles that are kept repeat.

    Args:
        material: of the particles.
        found: particles on their axes.
        settings: of averaging and selection.
        reference: a map ``[z, y, x]`` on the axes, raw sampling, solvent at zero, with which
            particles are compared in place of their average.
        progress: wraps iterations over batches.
    """
    symmetry, count = settings.symmetry, len(found.indices)
    single = np.arange(count)
    # the average is symmetric, so that particles need not be
    objects = material.averages(found.indices, found.rotation, found.shift, single, count)
    search = _within_normaliser(material, objects, symmetry, settings.search_vox)
    turn, shift = np.array(found.rotation), np.array(found.shift)
    evidence = np.zeros(count)

    def settle(members: np.ndarray, target: Objects, title: str) -> None:
        both = target.joined(objects.take(members))
        pairs = np.stack([np.zeros(len(members), int), 1 + np.arange(len(members))], 1)
        moved = align_pairs(material, both, pairs, search, title=title, progress=progress)
        turn[members], shift[members] = composed(
            moved.rotation, moved.shift, found.rotation[members], found.shift[members]
        )
        evidence[members] = moved.score

    def with_(members: np.ndarray, sums: Sums) -> Sums:
        rows, turns, shifts = _copies_of(
            found.indices[members], turn[members], shift[members], symmetry
        )
        return sums.add(material, rows, turns, shifts, np.zeros(len(rows), int), progress=progress)

    nothing, grown = Sums.empty(material, 1), []
    if reference is None:
        order = np.argsort(-found.score, kind="stable")
        sums, done = with_(order[:1], nothing), 1
        while done < count:
            batch = order[done : 2 * done]
            settle(batch, sums.objects(material), "common frame")
            grown.append(float(evidence[batch].mean()))
            sums, done = with_(batch, sums), done + len(batch)
        target = sums.objects(material)
    else:
        target = material.of_map(reference)
    used, kept = np.ones(count, bool), []
    for _ in range(settings.rounds):
        if count > 1 or reference is not None:
            settle(single, target, "against the average" if reference is None else "reference")
        used, _ = select(np.zeros(count, int), evidence, settings.selection)
        repeats = bool(kept) and np.array_equal(kept[-1], found.indices[used])
        kept.append(found.indices[used])
        if repeats or reference is not None:
            break
        if len(kept) < settings.rounds:
            target = with_(np.flatnonzero(used), nothing).objects(material)
    rows = found.indices[used]
    volume = raw_maps(
        material, rows, turn[used], shift[used], np.zeros(len(rows), int), 1,
        settings.averaging, symmetry=symmetry, progress=progress,
    )[0]  # fmt: skip
    poses = OnAxes(found.indices, turn, shift, evidence)
    return Together(poses, used, volume, tuple(kept), tuple(grown))


def symmetry_reference(together: Together) -> Generated:
    """The average with the poses of the particles in it.

    Args:
        together: particles brought to their symmetry axes.
    """
    used, poses, grown = together.used, together.poses, together.grown
    note = (
        f"self-symmetry: {int(used.sum())} of {len(used)} particles, median evidence"
        f" {np.median(poses.score):.1f} sigma"
    )
    return Generated(
        map=together.map,
        indices=poses.indices[used],
        rotation=poses.rotation[used],
        shift=poses.shift[used],
        score=poses.score[used],
        note=verdict(note, grown[0], grown[-1], len(grown) - 1) if len(grown) > 1 else note,
    )


def on_symmetry_axes(
    material: Material, given: Generated, settings: SymmetrySettings, *, symmetrise: bool = True
) -> Generated:
    """A reference made without regard to symmetry, moved to its axes.

    Args:
        material: of the particles.
        given: the reference and the poses in it.
        settings: the symmetry and how to search.
        symmetrise: average over the symmetry copies too.
    """
    rows, nothing = given.indices, np.zeros(len(given.indices), int)
    one = material.averages(rows, given.rotation, given.shift, nothing, 1)
    grid = orientations.uniform(SCAN_DEG, settings.symmetry)
    turn, move, _ = (np.asarray(x[0]) for x in _axes_of(material, one, settings, grid, nothing[:1]))
    turns, shifts = composed(turn, move * material.scale, given.rotation, given.shift)
    volume = raw_maps(
        material, rows, turns, shifts, nothing, 1,
        dataclasses.replace(settings.averaging, break_symmetry=not symmetrise),
        symmetry=settings.symmetry,
    )[0]  # fmt: skip
    return dataclasses.replace(given, map=volume, rotation=turns, shift=shifts)


def in_one_frame(
    material: Material,
    given: list[Generated],
    symmetry: Symmetry,
    search_vox: float,
    averaging: Averaging,
) -> list[Generated]:
    """References moved onto the first of them, within what their symmetry leaves open.

    Args:
        material: of the particles.
        given: references and the poses in them.
        symmetry: of all of them.
        search_vox: largest shift along each axis, voxels of the copies.
        averaging: how their maps are made.
    """
    group = np.repeat(np.arange(len(given)), [len(one.indices) for one in given])
    rows, turn, shift = (
        np.concatenate([getattr(one, name) for one in given])
        for name in ("indices", "rotation", "shift")
    )
    if len(symmetry) > 1:
        own, group = _copies_of(rows, turn, shift, symmetry), np.repeat(group, len(symmetry))
        objects = material.averages(*own, group, len(given))
        search = _within_normaliser(material, objects, symmetry, search_vox)
    else:
        objects = material.averages(rows, turn, shift, group, len(given))
        search = plan_pairs(material, objects, search_vox)
    pairs = np.stack([np.zeros(len(given) - 1, int), np.arange(1, len(given))], 1)
    found = align_pairs(material, objects, pairs, search, title="common frame")
    moved = given[:1]
    for one, by, step in zip(given[1:], found.rotation, found.shift):
        turns, shifts = composed(by, step, one.rotation, one.shift)
        volume = raw_maps(
            material, one.indices, turns, shifts, np.zeros(len(turns), int), 1, averaging,
            symmetry=symmetry,
        )[0]  # fmt: skip
        moved.append(dataclasses.replace(one, map=volume, rotation=turns, shift=shifts))
    return moved


def _copies_of(
    rows: np.ndarray, rotation: np.ndarray, shift: np.ndarray, symmetry: Symmetry
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Particles as often as there are operators, with all equivalents of their poses."""
    given = Pose(jnp.asarray(rotation, jnp.float32), jnp.asarray(shift, jnp.float32))
    all_of = copies(given, symmetry)
    turns = np.asarray(all_of.rotation).reshape(-1, 3, 3)
    return np.repeat(rows, len(symmetry)), turns, np.asarray(all_of.shift).reshape(-1, 3)


def _within_normaliser(
    material: Material, objects: Objects, symmetry: Symmetry, search_vox: float | None
) -> PairSearch:
    """Search of the moves that map the axes of a symmetry onto themselves."""
    single = symmetry.helix is not None or symmetry.name.startswith("c")
    reach = material.particles.box / 4 if search_vox is None else search_vox
    plan = pair_plan(material, objects, (0.0, 0.0, reach if single else 0.0))
    if single:
        span = 360.0 if symmetry.helix is not None else 360.0 / len(symmetry)
        number = max(int(np.ceil(span / plan.delta_deg)), 4)
        about = Rotation.from_euler("z", np.arange(number)[:, None] * span / number, degrees=True)
        across = Rotation.from_euler("x", 180, degrees=True)
        turns = np.concatenate([about.as_matrix(), (about * across).as_matrix()])
        index = np.arange(2 * number).reshape(2, number)
        beside = np.stack([np.roll(index, 1, 1), np.roll(index, -1, 1)], -1).reshape(-1, 2)
        free = (False, False, True, False, False, True)
    else:
        turns = _cosets(symmetry)
        beside = np.arange(len(turns))[:, None]
        free = (False,) * 6
        plan = dataclasses.replace(
            plan, stages=tuple(dataclasses.replace(stage, steps=0) for stage in plan.stages)
        )
    grid = OrientationSet(
        jnp.asarray(turns, jnp.float32), plan.delta_deg, plan.delta_deg,
        jnp.asarray(beside, jnp.int32),
    )  # fmt: skip
    return PairSearch(plan, grid, plan.shifts(), free)


def _cosets(symmetry: Symmetry) -> np.ndarray:
    """Rotations that map the axes of a point group onto themselves, one of each coset of it."""
    one = np.eye(3)[None]
    if symmetry.name == "d2":  # all axes are alike: the turns of a cube
        z = Rotation.from_euler("z", [[0], [90]], degrees=True)
        cycle = Rotation.from_rotvec(np.arange(3)[:, None] * 120 * np.ones((1, 3)) / 3**0.5, True)
        return np.concatenate([(c * z).as_matrix() for c in cycle])
    if symmetry.name.startswith("d"):
        step = 360 / len(symmetry)
        return np.concatenate([one, Rotation.from_euler("z", [[step]], degrees=True).as_matrix()])
    if symmetry.name == "tet":  # a quarter turn about one of its 2-fold axes
        axis = np.array([0, -(2**0.5), 1]) / 3**0.5
        return np.concatenate([one, Rotation.from_rotvec(90 * axis[None], True).as_matrix()])
    return one
