"""The aligners of the option language, as records bound from ``--align`` and ``--falign``."""

import dataclasses

from .._errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotateTranslate3D:
    """Search of a stated grid (EMAN2 ``rotate_translate_3d``).

    With ``refine`` the grid is scored in the band that its spacing resolves and the best
    distinct maxima are polished inside their cells; without it, every grid rotation and every
    integer shift is scored in the full band and the best grid pose is the answer.
    """

    search: int | None = None  # voxels, half width of the cube of shifts
    delta: float = 12.0  # degrees between directions
    dphi: float = 12.0  # degrees of in-plane rotation
    refine: bool = True

    def __post_init__(self):
        for name in ("delta", "dphi"):
            if not 0 < getattr(self, name) <= 180:
                raise InputError(f"{name}={getattr(self, name):g}: degrees in (0, 180] are needed")
        if self.search is not None and self.search < 0:
            raise InputError(f"search={self.search}: a number of voxels >= 0 is needed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotateTranslate3DTree:
    """Adaptive search: bands, spacings and candidates from the data (our default)."""

    maxshift: float | None = None  # voxels; a quarter of the box if neither this nor --search

    def __post_init__(self):
        if self.maxshift is not None and self.maxshift < 0:
            raise InputError(f"maxshift={self.maxshift:g}: a number of voxels >= 0 is needed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refine3D:
    """Local refinement from given poses by Levenberg-Marquardt (EMAN2 ``refine_3d``)."""

    maxiter: int = 9  # steps in all
    maxshift: float | None = None  # voxels a pose may move; --searchfine if not given

    def __post_init__(self):
        if self.maxiter < 1:
            raise InputError(f"maxiter={self.maxiter}: at least one step is needed")


Aligner = RotateTranslate3D | RotateTranslate3DTree

ALIGNERS = {
    "rotate_translate_3d": RotateTranslate3D,
    "rotate_translate_3d_tree": RotateTranslate3DTree,
}
FINE_ALIGNERS = {"refine_3d": Refine3D}
