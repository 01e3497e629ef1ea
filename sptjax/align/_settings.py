"""What the alignment options resolve to, and what an alignment finds."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from .._errors import InputError
from .._types import Alignment
from ..comparators import Comparator, Matched
from ._aligners import Aligner, FineAligner, RotateTranslate3DTree, is_local

BATCH_BYTES = 768 * 2**20


@dataclasses.dataclass(frozen=True)
class AlignmentSettings:
    """What the alignment options resolve to. Voxels are those of the stage's own sampling."""

    aligner: Aligner | None = RotateTranslate3DTree()
    fine: FineAligner | None = None
    comparator: Comparator = Matched()
    fine_comparator: Comparator | None = None  # of the fine stage; the same if None
    search_vox: int | None = None  # half width of the cube of shifts; the aligner's if None
    search_fine_vox: float = 2.0  # of the fine stage, unless its aligner states its own
    peaks: int | None = None  # distinct coarse poses to refine (npeakstorefine); 1 if None
    use_start: bool = False  # start poses compete with the poses of a global search
    translate_only: bool = False  # shifts alone, at the start's rotation or the identity
    randomize_wedge: bool = False  # random grids and, of symmetric classes, equivalents
    break_symmetry: bool = False  # averages are not symmetrised: equivalent poses differ
    tweak: bool = False  # a last refinement at full sampling
    save_peaks: bool = False  # keep the list of coarse poses
    apix: float = 1.0  # angstrom per raw voxel, for limits of resolution
    batch_bytes: int = BATCH_BYTES  # working memory of a batch; results do not depend on it

    def __post_init__(self):
        if self.fine is not None and not is_local(self.fine):
            raise InputError("rotate_translate_3d_tree as fine aligner needs maxang")
        if self.peaks is not None and self.peaks < 1:
            raise InputError(f"{self.peaks} poses to refine: at least one is needed")

    @property
    def searches(self) -> bool:
        """Whether the coarse stage looks at all orientations."""
        return not self.translate_only and not is_local(self.aligner)

    def of_fine_stage(self) -> "AlignmentSettings":
        """The same with the comparator of the fine stage."""
        return dataclasses.replace(self, comparator=self.fine_comparator or self.comparator)


@dataclasses.dataclass
class Found:
    """Poses of ``n`` particles against ``c`` references (host arrays, as in ``Pose``).

    A list of poses has a further axis ``p`` after ``c``, best first; a score of minus infinity
    marks a copy of a better pose.
    """

    rotation: np.ndarray  # [n, c, 3, 3]
    shift: np.ndarray  # [n, c, 3], voxels
    score: np.ndarray  # [n, c], larger is better
    peaks: "Found | None" = None  # the list of coarse poses [n, c, p]

    @classmethod
    def empty(cls, n: int, c: int) -> "Found":
        """Identity poses, score zero."""
        turn = np.broadcast_to(np.eye(3, dtype=np.float32), (n, c, 3, 3)).copy()
        return cls(turn, np.zeros((n, c, 3), np.float32), np.zeros((n, c), np.float32))

    @classmethod
    def nothing(cls, n: int, c: int, p: int) -> "Found":
        """Lists of identity poses that are worse than any other."""
        one = cls.empty(n, c).listed()
        return cls(one.rotation, one.shift, one.score - np.inf).at_least(p)

    def at_least(self, length: int) -> "Found":
        """Lists of so many poses or more, filled up with the last one as a copy."""
        more = max(length - self.score.shape[2], 0)
        if not more:
            return self
        rotation, shift = (np.repeat(x[:, :, -1:], more, 2) for x in (self.rotation, self.shift))
        nothing = np.full((*self.score.shape[:2], more), -np.inf, np.float32)
        return self.joined(Found(rotation, shift, nothing))

    def listed(self) -> "Found":
        """Lists of one pose."""
        return Found(self.rotation[:, :, None], self.shift[:, :, None], self.score[:, :, None])

    def joined(self, other: "Found") -> "Found":
        """Lists one after the other."""
        return Found(
            np.concatenate([self.rotation, other.rotation], 2),
            np.concatenate([self.shift, other.shift], 2),
            np.concatenate([self.score, other.score], 2),
        )

    def best(self) -> "Found":
        """The best of every list."""
        known = np.where(np.isnan(self.score), -np.inf, self.score)
        at = (*np.ogrid[: known.shape[0], : known.shape[1]], known.argmax(2))
        return Found(self.rotation[at], self.shift[at], self.score[at])

    def scaled(self, factor: float) -> "Found":
        """Shifts in voxels of another size."""
        return Found(self.rotation, (self.shift * factor).astype(np.float32), self.score)

    def part(self, rows: np.ndarray, columns: np.ndarray) -> Alignment:
        """Lists of some particles and references, on the device."""
        at = np.ix_(rows, columns)
        return Alignment(*(jnp.asarray(x[at]) for x in (self.rotation, self.shift, self.score)))
