"""The common record of a table of particles, whichever program wrote it.

Poses are ours (`xform.align3d`, see :mod:`sptjax._types`), so that one record serves every
convention:

* ``x_ref = rotation x + shift``, `x` in voxels from the centre voxel ``n // 2`` of the particle's
  box, `shift` in voxels of `apix` angstrom;
* `coordinate` is where that centre voxel lies in the tomogram, in (x, y, z): counted in voxels of
  `coordinate_apix` angstrom from the middle of the first voxel (so 0 is voxel 0), or, if
  `centred`, in angstrom from the middle of the tomogram (RELION 5);
* `box_rotation` turns tomogram vectors into box vectors, where boxes do not lie as the tomogram
  does (RELION's ``rlnTomoSubtomogramRot`` …);
* class and half set are numbered from 1, 0 is none; a larger score is better.

Voxels of another size count from the same corner: voxel ``i`` of size ``a`` is voxel ``i a / b``
of size ``b`` (RELION's rule).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from sptjax._errors import InputError

Extents = Mapping[str, np.ndarray]  # size of tomograms (x, y, z) in angstrom; "" is all others


@dataclass(frozen=True, eq=False)
class ParticleTable:
    """``n`` particles; what a file does not say is None.

    Raises:
        InputError: a column has another length, or a pose or coordinate is not finite.
    """

    rotation: np.ndarray  # float64 [n, 3, 3]
    shift: np.ndarray  # float64 [n, 3], voxels
    apix: np.ndarray | None = None  # [n] angstrom per voxel of the particles
    coordinate: np.ndarray | None = None  # float64 [n, 3]
    coordinate_apix: np.ndarray | None = None  # [n]
    centred: bool = False
    box_rotation: np.ndarray | None = None  # float64 [n, 3, 3]
    tomogram: np.ndarray | None = None  # [n] names
    image: np.ndarray | None = None  # [n] files of the particles
    image_index: np.ndarray | None = None  # [n] numbers in those files, from 0
    box: int | None = None  # edge of the particles, voxels
    classes: np.ndarray | None = None  # int [n]
    half: np.ndarray | None = None  # int [n]
    score: np.ndarray | None = None  # [n]
    family: str = ""  # whose names the next two have
    extra: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # columns of one program
    blocks: Mapping[str, Any] = field(default_factory=dict)  # what a file says beside particles
    extents: Extents = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what a reader has to say

    def __post_init__(self):
        count = len(self.rotation)
        for name, column in self.columns():
            if len(column) != count:
                raise InputError(f"{name} of {len(column)} particles in a table of {count}")
        for name in ("rotation", "shift", "coordinate", "apix", "coordinate_apix"):
            values = getattr(self, name)
            if values is None or np.isfinite(values).all():
                continue
            bad = ~np.isfinite(values.reshape(count, -1)).all(1)
            raise InputError(f"particle {int(np.argmax(bad))} has a {name} that is not finite")

    def __len__(self) -> int:
        return len(self.rotation)

    def columns(self) -> list[tuple[str, Any]]:
        """Every column that is there, those of `extra` too."""
        named = [(f.name, getattr(self, f.name)) for f in fields(self)]
        own = [(name, value) for name, value in named if isinstance(value, np.ndarray)]
        return [*own, *self.extra.items()]

    def select(self, rows: np.ndarray | Sequence[int]) -> "ParticleTable":
        """Some of the particles, in the order of `rows`."""
        chosen = np.asarray(rows, np.int64)
        changed: dict[str, Any] = {
            f.name: getattr(self, f.name)[chosen]
            for f in fields(self)
            if isinstance(getattr(self, f.name), np.ndarray)
        }
        extra = {name: [column[i] for i in chosen] for name, column in self.extra.items()}
        return replace(self, **changed, extra=extra)

    def upright(self) -> "ParticleTable":
        """The same with boxes that lie as the tomogram does; poses take up their orientation."""
        if self.box_rotation is None:
            return self
        return replace(self, rotation=self.rotation @ self.box_rotation, box_rotation=None)

    def at(self, apix: float) -> "ParticleTable":
        """The same for particles of another voxel size; one that is not known becomes it."""
        shift = self.shift if self.apix is None else self.shift * (self.apix / apix)[:, None]
        return replace(self, shift=shift, apix=np.full(len(self), float(apix)))

    def matrices(self) -> np.ndarray:
        """Poses as 3×4 matrices, float32 ``[n, 3, 4]``."""
        return np.concatenate([self.rotation, self.shift[..., None]], -1).astype(np.float32)

    def placed(self) -> "ParticleTable":
        """The same with coordinates in voxels from the corner.

        Raises:
            InputError: a size of a tomogram, or the voxel size of the coordinates, is not known.
        """
        if self.coordinate is None or not self.centred:
            return self
        if self.coordinate_apix is None:
            raise InputError("the voxel size of the tomograms is not known (--coordinate_apix)")
        middle = self._extent() / 2
        voxels = (self.coordinate + middle) / self.coordinate_apix[:, None]
        return replace(self, coordinate=voxels, centred=False)

    def from_middle(self) -> "ParticleTable":
        """The same with coordinates in angstrom from the middle of the tomogram.

        Raises:
            InputError: as :meth:`placed`.
        """
        if self.coordinate is None or self.centred:
            return self
        if self.coordinate_apix is None:
            raise InputError("the voxel size of the tomograms is not known (--coordinate_apix)")
        moved = self.coordinate * self.coordinate_apix[:, None] - self._extent() / 2
        return replace(self, coordinate=moved, centred=True)

    def in_particle_voxels(self) -> "ParticleTable":
        """The same with coordinates from the corner, in voxels of the particles' size.

        A voxel size that is not known is taken to be the other one.
        """
        table = self.placed()
        if table.coordinate is None or table.coordinate_apix is None or table.apix is None:
            return table
        ratio = (table.coordinate_apix / table.apix)[:, None]
        return replace(table, coordinate=table.coordinate * ratio, coordinate_apix=table.apix)

    def _extent(self) -> np.ndarray:
        """Size of the tomogram of every particle, ``[n, 3]`` angstrom."""
        names = [""] * len(self) if self.tomogram is None else self.tomogram.tolist()
        missing = sorted({name for name in names if name not in self.extents})
        if missing and "" not in self.extents:
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise InputError(
                f"the size of tomogram {shown} is not known, and coordinates count from its middle:"
                " name RELION's tomograms.star (--tomograms) or give --tomo_size=X,Y,Z in voxels"
            )
        return np.array([self.extents.get(name, self.extents.get("")) for name in names], float)


def names(values: Sequence[Any]) -> np.ndarray:
    """A column of text.

    Args:
        values: one per row, of any type.
    """
    return np.array([str(value) for value in values], object)
