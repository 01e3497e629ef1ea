"""The aligners of the option language, as records bound from ``--align`` and ``--falign``.

Names and keys are EMAN2's, with ``refine`` added. Left out: keys that EMAN2 declares but does not
use, the step sizes of its simplex, ``initxform`` (start poses come from the caller), thresholds of
the tree's own comparators (the score has its own), and ``randphi`` and ``rand180`` of the tree,
which widen a search that is global here. Angles are degrees, shifts are whole voxels of the
volumes that are aligned, ``s = -R^T t`` in the frame of the particle.
"""

import dataclasses

from .. import orientations
from .._errors import InputError
from ..orientations import OrientationSet
from ..symmetry import Symmetry, parse

Shifts = tuple[float, float, float]  # half widths of the window along x, y and z
OTHER_AXES = 3  # EMAN2's half width along the axes that searchx, y, z do not state


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotateTranslate3D:
    """Search of EMAN2's directions, times in-plane turns (EMAN2 ``rotate_translate_3d``).

    With ``refine`` the grid is scored in the band that its spacing resolves and the best
    distinct maxima are polished inside their cells; without it, every grid rotation and every
    integer shift is scored in the full band and the best grid pose is the answer.
    """

    search: int | None = None  # half width of the cube of shifts
    searchx: int | None = None  # or along every axis
    searchy: int | None = None
    searchz: int | None = None
    delta: float | None = None  # between directions; 10 if ``n`` is not given either
    n: int | None = None  # so many directions instead
    dphi: float = 10.0  # of in-plane rotation
    phi0: float = 0.0
    phi1: float = 360.0  # excluded
    dotrans: bool = True  # False: no shifts
    sym: str | None = None  # search its asymmetric unit; the symmetry of the run if None
    orientgen: str = "eman"
    verbose: int = 0  # accepted, without effect
    refine: bool = True

    def __post_init__(self):
        _check_shifts(self)
        if self.delta is not None and self.n is not None:
            raise InputError("give delta or n, not both")
        if self.n is not None and self.n < 1:
            raise InputError(f"n={self.n}: at least one direction is needed")
        _check_steps(delta=10.0 if self.delta is None else self.delta, dphi=self.dphi)
        if not self.phi0 < self.phi1:
            raise InputError(f"phi0={self.phi0:g} must be below phi1={self.phi1:g}")
        if self.orientgen != "eman":
            raise InputError(f"orientgen={self.orientgen}: only eman is known")
        own_symmetry(self)

    def grid(self, symmetry: Symmetry) -> OrientationSet:
        """The rotations to search."""
        delta = 10.0 if self.delta is None else self.delta
        if self.n is not None:
            delta = orientations.eman_spacing_deg(self.n, symmetry)
        return orientations.eman(delta, self.dphi, symmetry, phi_deg=(self.phi0, self.phi1))

    def step_deg(self, grid: OrientationSet) -> float:
        """The larger of the two spacings."""
        return max(grid.spacing_deg, self.dphi)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotateTranslate3DGrid:
    """Search of a grid of Euler angles (EMAN2 ``rotate_translate_3d_grid``).

    Without symmetry, whatever that of the run. ``refine`` as in :class:`RotateTranslate3D`.
    """

    alt0: float = 0.0
    alt1: float = 180.0  # included
    az0: float = 0.0
    az1: float = 360.0  # excluded
    phi0: float = 0.0
    phi1: float = 360.0  # excluded
    dalt: float = 10.0
    daz: float = 10.0
    dphi: float = 10.0
    search: int | None = None
    searchx: int | None = None
    searchy: int | None = None
    searchz: int | None = None
    dotrans: bool = True
    verbose: int = 0  # accepted, without effect
    refine: bool = False

    def __post_init__(self):
        _check_shifts(self)
        _check_steps(dalt=self.dalt, daz=self.daz, dphi=self.dphi)
        for name in ("alt", "az", "phi"):
            first, last = getattr(self, f"{name}0"), getattr(self, f"{name}1")
            if not first < last:
                raise InputError(f"{name}0={first:g} must be below {name}1={last:g}")

    def grid(self, symmetry: Symmetry) -> OrientationSet:
        """The rotations to search, the same for every symmetry."""
        del symmetry
        return orientations.euler_grid(
            (self.az0, self.az1, self.daz),
            (self.alt0, self.alt1, self.dalt),
            (self.phi0, self.phi1, self.dphi),
        )

    def step_deg(self, grid: OrientationSet) -> float:
        """The largest spacing."""
        return grid.spacing_deg


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotateTranslate3DTree:
    """Adaptive search: bands, spacings and candidates from the data (our default).

    With ``maxang`` it needs start poses and searches around them only: all bands, from the
    lowest, within that angle of the start and ``maxshift`` of its position.
    """

    maxshift: float | None = None  # a quarter of the box if neither this nor --search
    sym: str | None = None  # search its asymmetric unit; the symmetry of the run if None
    maxang: float | None = None  # from the start pose
    minres: float = 0.0  # angstrom: coarser detail is not looked at; 0 for no limit
    maxres: float = 0.0  # angstrom: nor is finer

    def __post_init__(self):
        if self.maxshift is not None and self.maxshift < 0:
            raise InputError(f"maxshift={self.maxshift:g}: a number of voxels >= 0 is needed")
        if self.maxang is not None:
            _check_steps(maxang=self.maxang)
        if min(self.minres, self.maxres) < 0:
            raise InputError("minres and maxres cannot be negative")
        if self.minres > 0 and self.minres <= self.maxres:
            raise InputError(f"minres={self.minres:g} must exceed maxres={self.maxres:g}")
        own_symmetry(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotateSymmetry3D:
    """The best of the equivalents of a start pose (EMAN2 ``rotate_symmetry_3d``); no search."""

    sym: str | None = None  # whose operators are tried; the symmetry of the run if None

    def __post_init__(self):
        own_symmetry(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refine3D:
    """Local refinement from given poses by Levenberg-Marquardt (EMAN2 ``refine_3d``)."""

    maxiter: int = 9  # steps in all
    maxshift: float | None = None  # how far a pose may move on every axis; --searchfine if None

    def __post_init__(self):
        if self.maxiter < 1:
            raise InputError(f"maxiter={self.maxiter}: at least one step is needed")
        if self.maxshift is not None and self.maxshift < 0:
            raise InputError(f"maxshift={self.maxshift:g}: a number of voxels >= 0 is needed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refine3DGrid:
    """Local grid around given poses (EMAN2 ``refine_3d_grid``).

    Every rotation of a uniform set of spacing ``delta`` within ``range`` of the start, and every
    whole voxel of shift within ``search`` of it; with ``refine`` the best of them is polished.
    """

    delta: float = 1.0
    range: float = 10.0
    search: int | None = None  # --searchfine if none is stated
    searchx: int | None = None
    searchy: int | None = None
    searchz: int | None = None
    dotrans: bool = True
    verbose: int = 0  # accepted, without effect
    refine: bool = True

    def __post_init__(self):
        _check_shifts(self)
        _check_steps(delta=self.delta, range=self.range)


Aligner = RotateTranslate3D | RotateTranslate3DGrid | RotateTranslate3DTree | RotateSymmetry3D
FineAligner = Refine3D | Refine3DGrid | RotateTranslate3DTree
GRIDS = (RotateTranslate3D, RotateTranslate3DGrid)

ALIGNERS = {
    "rotate_symmetry_3d": RotateSymmetry3D,
    "rotate_translate_3d": RotateTranslate3D,
    "rotate_translate_3d_grid": RotateTranslate3DGrid,
    "rotate_translate_3d_tree": RotateTranslate3DTree,
}
FINE_ALIGNERS = {
    "refine_3d": Refine3D,
    "refine_3d_grid": Refine3DGrid,
    "rotate_translate_3d_tree": RotateTranslate3DTree,
}


def own_symmetry(aligner: Aligner | FineAligner | None) -> Symmetry | None:
    """The symmetry that an aligner's ``sym`` names (commas stand for the colons of a helix)."""
    name = getattr(aligner, "sym", None)
    return None if name is None else parse(name)


def is_local(aligner: Aligner | FineAligner | None) -> bool:
    """Whether an aligner starts from given poses."""
    if isinstance(aligner, RotateTranslate3DTree):
        return aligner.maxang is not None
    return not isinstance(aligner, GRIDS)


def own_shifts(aligner: Aligner | FineAligner | None) -> Shifts | None:
    """Half widths of the shifts that an aligner states; None if it leaves them open."""
    if not getattr(aligner, "dotrans", True):
        return (0.0, 0.0, 0.0)
    axes = [getattr(aligner, f"search{axis}", None) for axis in "xyz"]
    if any(half is not None for half in axes):
        x, y, z = (float(OTHER_AXES if half is None else half) for half in axes)
        return (x, y, z)
    both = getattr(aligner, "search", None), getattr(aligner, "maxshift", None)
    stated = [float(half) for half in both if half is not None]
    return cube(stated[0]) if stated else None


def cube(half: float) -> Shifts:
    """Equal half widths."""
    return (half, half, half)


def _check_shifts(aligner: RotateTranslate3D | RotateTranslate3DGrid | Refine3DGrid) -> None:
    axes = {f"search{axis}": getattr(aligner, f"search{axis}") for axis in "xyz"}
    if aligner.search is not None and any(half is not None for half in axes.values()):
        raise InputError("give search or searchx, searchy and searchz, not both")
    for name, half in {"search": aligner.search, **axes}.items():
        if half is not None and half < 0:
            raise InputError(f"{name}={half}: a number of voxels >= 0 is needed")


def _check_steps(**degrees: float) -> None:
    for name, value in degrees.items():
        if not 0 < value <= 180:
            raise InputError(f"{name}={value:g}: degrees in (0, 180] are needed")
