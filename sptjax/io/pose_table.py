"""Poses with their uncertainty, to and from HDF and JSON.

Both forms hold the arrays of a :class:`PoseTable` under their names, and ``units`` beside them: HDF
as data sets in the root (compressed; attribute ``units``), JSON as nested lists of six decimals.
They are tables of ours: EMAN2 has none for this.
"""

import dataclasses
import os
import pathlib

import h5py
import numpy as np

from sptjax._errors import InputError

from ._atomic import atomic_path
from .eman_json import read_json, write_json

UNITS = (
    "rotation particle to reference; shift t in voxels, x_ref = R x + t; covariance of three turns"
    " in degrees, exp(w) R about the reference's x, y, z, and of the position -R^T t in voxels;"
    " displacement in voxels; entropy in nats"
)

DIGITS = 6  # of JSON


@dataclasses.dataclass(frozen=True, eq=False)
class PoseTable:
    """The most probable poses (modes) of ``n`` particles, best first, ``m`` of each.

    Attributes:
        rotation: ``[n, m, 3, 3]``, particle to reference.
        shift: ``[n, m, 3]``, voxels, as in EMAN2's ``xform.align3d``.
        classes: int ``[n, m]``; -1 where a particle has fewer modes.
        score: ``[n, m]``, standard deviations of the noise.
        probability: ``[n, m]``; with ``elsewhere`` they sum to one.
        covariance: ``[n, m, 6, 6]`` of a pose if its mode is the right one: three turns in
            degrees about the reference's axes (``exp(w) R``), and the position ``-R^T t`` of the
            reference's centre in the particle, voxels.
        elsewhere: ``[n]``, probability that no listed mode is right.
        entropy: ``[n]`` of the probabilities, ``elsewhere`` included, nats.
        displacement: ``[n, m]``, root mean square error of a point of the particle if the mode is
            the right one, voxels.
    """

    rotation: np.ndarray
    shift: np.ndarray
    classes: np.ndarray
    score: np.ndarray
    probability: np.ndarray
    covariance: np.ndarray
    elsewhere: np.ndarray
    entropy: np.ndarray
    displacement: np.ndarray

    def scaled(self, factor: float) -> "PoseTable":
        """Lengths in voxels of another size."""
        units = np.array([1.0] * 3 + [factor] * 3, np.float32)
        return dataclasses.replace(
            self,
            shift=(self.shift * factor).astype(np.float32),
            covariance=self.covariance * units[:, None] * units,
            displacement=(self.displacement * factor).astype(np.float32),
        )

    def tempered(self, power: float) -> np.ndarray:
        """Probabilities of the modes raised to a power, normalised with ``elsewhere``."""
        inside, outside = self.probability**power, self.elsewhere**power
        total = inside.sum(1) + outside
        return (inside / np.maximum(total, 1e-30)[:, None]).astype(np.float32)

    def transfer(self, classes: np.ndarray) -> np.ndarray:
        """Share of each particle's signal that its average keeps, by its best mode in a class.

        The probability of that mode times ``exp(-q^2 d^2 / 6)``, what an error of root mean
        square ``d`` leaves of a wave of four voxels, ``q = pi / 2``.

        Args:
            classes: of the particles, ``[n]``.
        """
        own = self.classes == np.asarray(classes)[:, None]
        error = np.minimum(self.displacement, 100.0)
        kept = self.probability * np.exp(-((np.pi / 2) ** 2) * error**2 / 6)
        first = own & (np.cumsum(own, 1) == 1)
        return np.where(first, kept, 0).sum(1).astype(np.float32)


_NAMES = tuple(field.name for field in dataclasses.fields(PoseTable))


def write_pose_table(path: str | os.PathLike[str], table: PoseTable) -> None:
    """Write a table, atomically; the form follows from the end of the name (.json, .hdf).

    Args:
        path: of the file.
        table: what to write.

    Raises:
        InputError: another ending.
    """
    where = pathlib.Path(path)
    arrays = {name: np.asarray(getattr(table, name)) for name in _NAMES}
    if where.suffix == ".json":
        lists = {name: np.round(x.astype(float), DIGITS).tolist() for name, x in arrays.items()}
        write_json(where, {"units": UNITS, **lists})
        return
    _check(where)
    with atomic_path(where) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["units"] = UNITS
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="gzip", shuffle=True)


def read_pose_table(path: str | os.PathLike[str]) -> PoseTable:
    """Read what :func:`write_pose_table` wrote.

    Args:
        path: of the file, .json or .hdf.

    Raises:
        InputError: the file is missing or damaged, or no such table.
    """
    where = pathlib.Path(path)
    if where.suffix == ".json":
        found = read_json(where)
    else:
        _check(where)
        try:
            with h5py.File(where, "r") as file:
                found = {name: np.asarray(file[name]) for name in _NAMES if name in file}
        except OSError as error:
            raise InputError(f"{path}: cannot read this table of poses ({error}).") from error
    missing = [name for name in _NAMES if name not in found]
    if missing:
        raise InputError(f"{path}: this table of poses has no {', '.join(missing)}.")
    kinds = {"classes": np.int32}
    return PoseTable(
        **{name: np.asarray(found[name], kinds.get(name, np.float32)) for name in _NAMES}
    )


def _check(path: pathlib.Path) -> None:
    if path.suffix not in (".hdf", ".h5"):
        raise InputError(f"{path}: a table of poses ends in .hdf or .json.")
