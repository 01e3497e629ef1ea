"""Hierarchical ascendant classification: all against all, mutually best pairs merge.

EMAN2's ``e2spt_hac.py``: in the first round every particle is aligned to every other, later the
new averages to each other and to all else that lives. Here objects have one number for good,
results of pairs are kept as long as both live, poses compose, and averages are built from the raw
particles in them.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable

import numpy as np

from .._errors import InputError
from ..averaging import Averaging
from ..centring import Autocentre
from ._maps import Generated, centred, composed, raw_maps, verdict
from ._material import Material
from ._merging import Pair, Rules, merges
from ._pairs import Pairs, align_pairs, plan_pairs

Progress = Callable[[Iterable, str], Iterable]
MOST = 2000  # particles, unless forced


@dataclasses.dataclass(frozen=True)
class HacSettings:
    """What the options of a classification resolve to."""

    search_vox: float = 8.0  # largest shift between two objects, voxels of the copies
    rounds: int = 0  # after which to stop (iterstop); 0: when nothing merges any more
    rules: Rules = Rules()
    averaging: Averaging = Averaging()
    autocentre: Autocentre | None = None
    force: bool = False  # however many particles


@dataclasses.dataclass(frozen=True)
class Node:
    """An object: a particle or an average.

    Attributes:
        number: of the object; particles first, in their order.
        name: ``raw0003`` or ``avg0001``.
        members: ``[m]``, particles in it, as places in ``Dendrogram.indices``.
        rotation: of every member, particle to object, ``[m, 3, 3]``.
        shift: ``[m, 3]``, raw voxels.
        parents: the two objects that it was made of, fixed and moving; None for a particle.
        round: that made it; -1 for a particle.
        score: of the pair that made it.
        map: of an average, ``[z, y, x]``.
    """

    number: int
    name: str
    members: np.ndarray
    rotation: np.ndarray
    shift: np.ndarray
    parents: Pair | None = None
    round: int = -1
    score: float = 0.0
    map: np.ndarray | None = None

    def __len__(self) -> int:
        """Particles in the object."""
        return len(self.members)


@dataclasses.dataclass(frozen=True)
class Round:
    """What one round aligned and merged.

    Attributes:
        living: numbers of the objects at its start.
        pairs: (fixed, moving) of all living pairs, from the best score to the worst.
        score: ``[p]``, of those pairs.
        poses: ``[p, 3, 4]``, moving to fixed, raw voxels.
        made: numbers of the averages.
    """

    living: tuple[int, ...]
    pairs: tuple[Pair, ...]
    score: np.ndarray
    poses: np.ndarray
    made: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Dendrogram:
    """The whole classification."""

    indices: np.ndarray  # [n], of the particles in the stack
    nodes: tuple[Node, ...]
    rounds: tuple[Round, ...]
    stopped: str  # why

    @property
    def living(self) -> list[Node]:
        """Objects that are part of no other, the largest first."""
        merged = {i for node in self.nodes for i in node.parents or ()}
        left = [node for node in self.nodes if node.number not in merged]
        return sorted(left, key=lambda node: (-len(node), -node.score, node.number))


def classify_ascending(
    material: Material,
    rows: np.ndarray,
    settings: HacSettings,
    *,
    start: tuple[np.ndarray, np.ndarray] | None = None,
    progress: Progress = lambda items, _: items,
) -> Dendrogram:
    """Merge particles until one object is left, nothing merges, or the rounds are over.

    Args:
        material: of the particles.
        rows: ``[n]``, which particles.
        settings: of the classification.
        start: poses ``([n, 3, 3], [n, 3])`` of the whole stack, known beforehand.
        progress: wraps iterations over batches.

    Raises:
        InputError: fewer than three particles, or more than 2,000 unless forced.
    """
    rows = np.asarray(rows)
    count = len(rows)
    if count < 3:
        raise InputError(f"hierarchical classification needs at least 3 particles, not {count}")
    if count > MOST and not settings.force:
        raise InputError(
            f"{count} particles are {count * (count - 1) // 2} pairs; more than {MOST} particles"
            " need --force, or a --subset"
        )
    turn, shift = (np.broadcast_to(np.eye(3), (count, 3, 3)), np.zeros((count, 3)))
    objects = material.singles(rows)
    if start is not None:
        turn, shift = np.asarray(start[0])[rows], np.asarray(start[1])[rows]
        objects = material.averages(rows, turn, shift, np.arange(count), count)
    one = lambda i: np.array([i])  # noqa: E731
    nodes = [Node(i, f"raw{i:04d}", one(i), turn[[i]], shift[[i]]) for i in range(count)]
    search = plan_pairs(material, objects, settings.search_vox)
    known: dict[Pair, tuple[float, np.ndarray]] = {}
    living, fresh, best, rounds = list(range(count)), list(range(count)), -np.inf, []
    stopped = "one object is left"
    limit = settings.rounds or count - 1
    while len(living) > 1:
        if len(rounds) == limit:
            stopped = f"{limit} rounds are over"
            break
        wanted = _new_pairs(living, fresh)
        found = align_pairs(
            material, objects, np.array(wanted), search,
            title=f"round {len(rounds)}, {len(living)} objects", progress=progress,
        )  # fmt: skip
        known |= _as_results(wanted, found)
        scores = {pair: value[0] for pair, value in known.items()}
        best = max(best, *scores.values())
        chosen = merges(scores, {i: len(nodes[i]) for i in living}, best, settings.rules)
        made = [
            _merged(nodes, pair, known[pair], len(nodes) + k, len(rounds))
            for k, pair in enumerate(chosen)
        ]
        made = _with_maps(material, rows, made, settings, count, progress)
        rounds.append(_record(living, known, made))
        if not made:
            stopped = "no pair scores high enough to merge"
            break
        nodes += made
        fresh = [node.number for node in made]
        objects = objects.joined(_as_objects(material, rows, made))
        gone = set(itertools.chain(*chosen))
        living = [i for i in living if i not in gone] + fresh
        known = {pair: value for pair, value in known.items() if gone.isdisjoint(pair)}
    return Dendrogram(rows, tuple(nodes), tuple(rounds), stopped)


def _new_pairs(living: list[int], fresh: list[int]) -> list[Pair]:
    """New objects with each other, then with the older ones; the new one is fixed."""
    old = [i for i in living if i not in set(fresh)]
    return [*itertools.combinations(fresh, 2), *itertools.product(fresh, old)]


def _as_results(pairs: list[Pair], found: Pairs) -> dict[Pair, tuple[float, np.ndarray]]:
    poses = np.concatenate([found.rotation, found.shift[:, :, None]], 2)
    return {pair: (float(score), pose) for pair, score, pose in zip(pairs, found.score, poses)}


def _merged(
    nodes: list[Node], pair: Pair, result: tuple[float, np.ndarray], number: int, round_: int
) -> Node:
    fixed, moving = nodes[pair[0]], nodes[pair[1]]
    score, pose = result
    turn, shift = composed(pose[:, :3], pose[:, 3], moving.rotation, moving.shift)
    return Node(
        number, "",
        np.concatenate([fixed.members, moving.members]),
        np.concatenate([fixed.rotation, turn]),
        np.concatenate([fixed.shift, shift]),
        pair, round_, score,
    )  # fmt: skip


def _with_maps(
    material: Material,
    rows: np.ndarray,
    made: list[Node],
    settings: HacSettings,
    count: int,
    progress: Progress,
) -> list[Node]:
    """Averages with their maps and names, centred if wanted."""
    if not made:
        return made

    def build(nodes: list[Node]) -> np.ndarray:
        group = np.repeat(np.arange(len(nodes)), [len(n) for n in nodes])
        member, turn, shift = _flat(nodes)
        return raw_maps(
            material, rows[member], turn, shift, group, len(nodes), settings.averaging,
            progress=progress,
        )  # fmt: skip

    maps = build(made)
    moves = centred(maps, material.apix, settings.autocentre)
    if moves.any():
        made = [dataclasses.replace(n, shift=n.shift + move) for n, move in zip(made, moves)]
        maps = build(made)
    return [
        dataclasses.replace(node, map=volume, name=f"avg{node.number - count:04d}")
        for node, volume in zip(made, maps)
    ]


def _flat(nodes: list[Node]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.concatenate([n.members for n in nodes]),
        np.concatenate([n.rotation for n in nodes]),
        np.concatenate([n.shift for n in nodes]),
    )


def _as_objects(material: Material, rows: np.ndarray, made: list[Node]):
    group = np.repeat(np.arange(len(made)), [len(n) for n in made])
    member, turn, shift = _flat(made)
    return material.averages(rows[member], turn, shift, group, len(made))


def _record(
    living: list[int], known: dict[Pair, tuple[float, np.ndarray]], made: list[Node]
) -> Round:
    order = sorted(known, key=lambda pair: (-known[pair][0], pair))
    return Round(
        tuple(living),
        tuple(order),
        np.array([known[pair][0] for pair in order]),
        np.array([known[pair][1] for pair in order]).reshape(-1, 3, 4),
        tuple(node.number for node in made),
    )


def hac_reference(dendrogram: Dendrogram) -> Generated:
    """The map of the largest object.

    Args:
        dendrogram: who merged with whom.

    Raises:
        InputError: no two particles merged.
    """
    top = dendrogram.living[0]
    if top.map is None:
        raise InputError(
            "hierarchical classification merged no pair of particles"
            f" ({dendrogram.stopped}): there is no average"
        )
    single = [dendrogram.nodes[i].score for i in dendrogram.rounds[0].made]
    note = (
        f"hierarchical classification: {len(top)} of {len(dendrogram.indices)} particles in"
        f" the largest average after {len(dendrogram.rounds)} rounds ({dendrogram.stopped}),"
        f" last merged with {top.score:.1f} sigma"
    )
    if top.round > 0:
        note = verdict(note, float(np.mean(single)), top.score, np.log2(len(top) / 2))
    return Generated(
        map=top.map,
        indices=dendrogram.indices[top.members],
        rotation=top.rotation,
        shift=top.shift,
        score=np.full(len(top), top.score),
        note=note,
    )
