"""Binary tree: pairs of particles, pairs of their averages, and so on to one map.

Of the first ``2^k`` particles (EMAN2 ``e2spt_binarytree.py``), at every level objects ``2j`` and
``2j + 1`` are aligned, the odd one to the even one, and averaged. Here poses compose: every node
is built from the raw particles in it.
"""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from .._errors import InputError
from ..averaging import Averaging
from ..centring import Autocentre
from ._maps import Generated, centred, composed, raw_maps, verdict
from ._material import Material
from ._pairs import align_pairs, plan_pairs

Progress = Callable[[Iterable, str], Iterable]


@dataclasses.dataclass(frozen=True)
class TreeSettings:
    """What the options of a binary tree resolve to."""

    search_vox: float = 8.0  # largest shift between two objects, voxels of the copies
    seeds: int = 0  # most particles; the power of two below is taken; 0 for all
    levels: int = 0  # after which to stop; 0 for all
    shuffle: int | None = None  # seed of a random order of the particles
    averaging: Averaging = Averaging()
    autocentre: Autocentre | None = None


@dataclasses.dataclass(frozen=True)
class Level:
    """One level of a tree; level 0 are the particles.

    Attributes:
        node: of every particle of the tree, ``[n]``.
        rotation: particle to node, ``[n, 3, 3]``.
        shift: ``[n, 3]``, raw voxels.
        score: ``[nodes]``, of the pair that made each node.
        maps: of the nodes if they were needed, ``[nodes, n, n, n]``.
    """

    node: np.ndarray
    rotation: np.ndarray
    shift: np.ndarray
    score: np.ndarray
    maps: np.ndarray | None

    @property
    def count(self) -> int:
        """How many nodes."""
        return int(self.node.max()) + 1


@dataclasses.dataclass(frozen=True)
class Tree:
    """A finished tree: its particles in order, and its levels from the particles up."""

    indices: np.ndarray  # [n], of the particles in the stack
    levels: tuple[Level, ...]


def largest_power_of_two(count: int) -> int:
    """The largest one that is not above ``count``."""
    return 1 << max(int(count), 1).bit_length() - 1


def binary_tree(
    material: Material,
    rows: np.ndarray,
    settings: TreeSettings,
    *,
    keep_maps: bool = False,
    start: tuple[np.ndarray, np.ndarray] | None = None,
    progress: Progress = lambda items, _: items,
) -> Tree:
    """Grow a tree over some particles.

    Args:
        material: of the particles.
        rows: ``[n]``, which, in the order of the tree.
        settings: of the tree.
        keep_maps: build the maps of every level, not of the last alone.
        start: poses ``([n, 3, 3], [n, 3])`` of the whole stack, known beforehand.
        progress: wraps iterations over batches.

    Raises:
        InputError: fewer than two particles.
    """
    available = np.asarray(rows)
    most = min(settings.seeds or len(available), len(available))
    if most < 2:
        raise InputError(f"a binary tree needs at least 2 particles, not {most}")
    if settings.shuffle is not None:
        available = np.random.default_rng(settings.shuffle).permutation(available)
    seeds = largest_power_of_two(most)
    chosen, depth = available[:seeds], seeds.bit_length() - 1
    depth = min(settings.levels or depth, depth)
    turn, shift = np.broadcast_to(np.eye(3), (seeds, 3, 3)), np.zeros((seeds, 3))
    objects = material.singles(chosen)
    if start is not None:
        turn, shift = start[0][chosen], start[1][chosen]
        objects = material.averages(chosen, turn, shift, np.arange(seeds), seeds)
    node = np.arange(seeds)
    levels = [Level(node, turn, shift, np.zeros(seeds), None)]
    for level in range(1, depth + 1):
        search = plan_pairs(material, objects, settings.search_vox)
        pairs = np.arange(len(objects)).reshape(-1, 2)
        found = align_pairs(
            material, objects, pairs, search, title=f"level {level} of {depth}", progress=progress
        )
        odd, parent = node % 2 == 1, node // 2
        moved = composed(found.rotation[parent], found.shift[parent], turn, shift)
        turn = np.where(odd[:, None, None], moved[0], turn)
        shift = np.where(odd[:, None], moved[1], shift)
        node, count, maps = parent, len(pairs), None
        if keep_maps or level == depth or settings.autocentre is not None:
            make = lambda t=turn, s=shift, g=node, c=count: raw_maps(  # noqa: E731
                material, chosen, t, s, g, c, settings.averaging, progress=progress
            )
            maps = make()
            move = centred(maps, material.apix, settings.autocentre)
            if move.any():
                shift = shift + move[node]
                maps = make(s=shift)
        levels.append(Level(node, turn, shift, found.score, maps))
        if level < depth:
            objects = material.averages(chosen, turn, shift, node, count, progress=progress)
    return Tree(chosen, tuple(levels))


def tree_reference(tree: Tree) -> Generated:
    """The map of node 0 of the last level (of a whole tree, the only one)."""
    last = tree.levels[-1]
    assert last.maps is not None, "the last level has maps"
    member = last.node == 0
    depth = len(tree.levels) - 1
    means = [float(level.score.mean()) for level in tree.levels[1:]]
    shown = ", ".join(f"{x:.1f}" for x in means)
    count = len(tree.indices)
    note = f"binary tree of {count} particles, {depth} levels, mean evidence {shown} sigma"
    return Generated(
        map=last.maps[0],
        indices=tree.indices[member],
        rotation=last.rotation[member],
        shift=last.shift[member],
        score=np.full(member.sum(), last.score[0]),
        note=verdict(note, means[0], means[-1], depth - 1) if depth > 1 else note,
    )
