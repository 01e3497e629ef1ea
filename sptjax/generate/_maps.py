"""Maps of averages from the raw particles, and what the generators hand over."""

import dataclasses
from collections.abc import Callable, Iterable

import jax.numpy as jnp
import numpy as np

from .._messages import warning
from ..averaging import Assigned, Averages, Averaging, average_classes
from ..centring import Autocentre, centre_shift
from ..symmetry import Symmetry, parse
from ._material import Material

Progress = Callable[[Iterable, str], Iterable]
Say = Callable[[str], None]
_AT_ONCE = 32  # averages in memory
GROWTH = 0.08  # of the evidence, at least, with every doubling of the particles
CHANCE = 6.0  # sigma that noise alone does not reach


@dataclasses.dataclass(frozen=True)
class Generated:
    """A reference made from particles.

    Attributes:
        map: ``[n, n, n]``, raw sampling, unfiltered.
        indices: ``[n]``, the particles in it, as numbered in the stack.
        rotation: of each, particle to map, ``[m, 3, 3]``.
        shift: ``[m, 3]``, raw voxels.
        score: ``[n]``, of each; what it means is the generator's.
        note: one line about how it went, a warning if not well.
    """

    map: np.ndarray
    indices: np.ndarray
    rotation: np.ndarray
    shift: np.ndarray
    score: np.ndarray
    note: str = ""


def verdict(line: str, first: float, last: float, doublings: float) -> str:
    """A note, or a warning where averages agree no better than single particles do.

    Scores between objects of more and more particles grow with what they have in common; those
    between averages of noise stay where chance puts them.

    Args:
        line: the note.
        first: mean evidence between single particles.
        last: between averages.
        doublings: how often the particles of an object doubled from the one to the other.
    """
    if last > CHANCE and last > (1 + GROWTH * doublings) * first:
        return line
    return warning(f"{line}; averages agree no better than single particles do: NOT CONVERGED")


def raw_maps(
    material: Material,
    rows: np.ndarray,
    rotation: np.ndarray,
    shift: np.ndarray,
    group: np.ndarray,
    count: int,
    averaging: Averaging | None = None,
    *,
    symmetry: Symmetry | None = None,
    weight: np.ndarray | None = None,
    progress: Progress = lambda items, _: items,
) -> np.ndarray:
    """Average maps ``[count, n, n, n]`` of raw particles, each interpolated once.

    Args:
        material: of the particles.
        rows: particles.
        rotation: of each, particle to map.
        shift: of each, raw voxels.
        group: the map that each belongs to.
        count: how many maps.
        averaging: the averager; by known sampling if not given.
        symmetry: of the maps.
        weight: of each particle; 1 if not given.
        progress: wraps the iteration over batches.
    """
    given = np.ones(len(rows), np.float32) if weight is None else weight.astype(np.float32)
    maps = []
    for first in range(0, count, _AT_ONCE):
        here = np.flatnonzero((group >= first) & (group < first + _AT_ONCE))
        number = min(_AT_ONCE, count - first)
        made: Averages = average_classes(
            material.stack,
            material.sampling,
            Assigned(rows[here], rotation[here], shift[here], group[here] - first, given[here]),
            (symmetry or parse("c1"),) * number,
            averaging or Averaging(),
            material.apix,
            progress=progress,
        )
        maps.append(np.asarray(made.merged()))
    return np.concatenate(maps)


def centred(
    maps: np.ndarray, apix: float, autocentre: Autocentre | None, symmetry: Symmetry | None = None
) -> np.ndarray:
    """Translations (x, y, z) that centre maps, zero without ``--autocenter``, ``[c, 3]``."""
    if autocentre is None:
        return np.zeros((len(maps), 3), np.float32)
    own = symmetry or parse("c1")
    return np.stack([centre_shift(jnp.asarray(v), apix, own, autocentre) for v in maps])


def composed(
    rotation: np.ndarray, shift: np.ndarray, first_rotation: np.ndarray, first_shift: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Poses ``X = T P`` (``P`` acts first), in float64 so that chains of them stay rigid."""
    turn = np.asarray(rotation, np.float64)
    moved = np.einsum("...ij,...j->...i", turn, np.asarray(first_shift, np.float64)) + shift
    return turn @ np.asarray(first_rotation, np.float64), moved
