"""Class matrices: EMAN2's stacks of 2-D images that say which particle is in which class.

The *membership* form, which is written, has 10 images of `n` rows (particles) and one column
per class; all but the first are 0 where a particle is no member.

===== ============ ===== ==================== ===== ==========================
plane content      plane content              plane content
===== ============ ===== ==================== ===== ==========================
0     1 = member   2-4   shift x, y, z (voxels) 8   scale, 1
1     weight       5-7   az, alt, phi (deg)   9     score (not read by EMAN2)
===== ============ ===== ==================== ===== ==========================

The *wiki* form, which is also read, has the class number in plane 0 and one column (or a few:
the classes of one particle, of which the one with the largest weight is taken).
"""

import os
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sptjax._errors import InputError

from .hdf import HdfReader, write_hdf

Form = Literal["membership", "wiki"]
_PLANES = 10


@dataclass(frozen=True)
class ClassMatrix:
    """Classes of `n` particles, and their poses if the file has them.

    Attributes:
        n_classes: Number of classes.
        classes: int ``[n]``, from 0; -1 for a particle in no class.
        weights: float32 ``[n]``, 0 for a particle in no class.
        scores: float32 ``[n]``, sign as given; NaN where unknown.
        euler_deg: float32 ``[n, 3]``, EMAN2's az, alt, phi in degrees, or None.
        shifts_vox: float32 ``[n, 3]`` in (x, y, z), or None if `euler_deg` is.
    """

    n_classes: int
    classes: np.ndarray
    weights: np.ndarray
    scores: np.ndarray
    euler_deg: np.ndarray | None = None
    shifts_vox: np.ndarray | None = None


def write_classmx(path: str | os.PathLike[str], matrix: ClassMatrix) -> None:
    """Write the membership form, atomically; missing poses are stored as identity.

    Args:
        path: The HDF file to create or replace.
        matrix: The classes. The pose, weight and score of a particle in no class are lost,
            since the form keeps them in the column of its class.

    Raises:
        InputError: The columns disagree in length, or a class number is out of range.
    """
    count = len(matrix.classes)
    euler = np.zeros((count, 3)) if matrix.euler_deg is None else np.asarray(matrix.euler_deg)
    shifts = np.zeros((count, 3)) if matrix.shifts_vox is None else np.asarray(matrix.shifts_vox)
    columns = [matrix.weights, *shifts.T, *euler.T, np.ones(count), matrix.scores]
    classes = np.asarray(matrix.classes)
    if count == 0 or any(np.shape(column) != (count,) for column in columns):
        raise InputError(f"Cannot write {path}: the columns do not have {count} > 0 entries each.")
    if classes.dtype.kind not in "iu" or classes.min() < -1 or classes.max() >= matrix.n_classes:
        raise InputError(
            f"Cannot write {path}: class numbers must be integers from -1 to"
            f" {matrix.n_classes - 1}."
        )
    planes = np.zeros((_PLANES, count, matrix.n_classes), np.float32)
    rows = np.flatnonzero(classes >= 0)
    planes[0, rows, classes[rows]] = 1
    for plane, column in enumerate(columns, 1):
        planes[plane, rows, classes[rows]] = np.asarray(column, np.float32)[rows]
    write_hdf(path, list(planes), 1.0, {"classmx_format": "membership"})


def read_classmx(path: str | os.PathLike[str], form: Form | None = None) -> ClassMatrix:
    """Read either form.

    Args:
        path: The HDF file.
        form: ``"membership"`` or ``"wiki"``; None takes the one named in the header or,
            failing that, the one that the numbers allow: one column with a number above 1
            or several different numbers is the wiki form, several columns with exactly one
            non-zero in every row are the membership form.

    Returns:
        The classes. Particles in no class have weight 0, score NaN and pose 0.

    Raises:
        InputError: The file is damaged or no class matrix, or the form cannot be told.
    """
    if form not in (None, "membership", "wiki"):
        raise InputError(f"The class matrix format {form!r} is neither membership nor wiki.")
    planes, named = _read_planes(path)
    if named in ("membership", "wiki") and form is None:
        form = named
    form = form or _guess(path, planes[0])
    if form == "membership":
        members, n_classes = planes[0] != 0, planes.shape[2]
        if (members.sum(axis=1) > 1).any():
            row = int(np.flatnonzero(members.sum(axis=1) > 1)[0])
            raise InputError(f"{path}: particle {row} is a member of more than one class.")
        column = members.argmax(axis=1)
        classes = np.where(members.any(axis=1), column, -1)
    else:
        weights = planes[1] if len(planes) > 1 else np.ones_like(planes[0])
        column = np.where(planes[0] >= 0, weights, -np.inf).argmax(axis=1)
        numbers = planes[0][np.arange(len(column)), column]
        if not np.array_equal(numbers, np.round(numbers)):
            raise InputError(f"{path}: plane 0 holds class numbers that are not integers.")
        classes = np.maximum(numbers.astype(np.int64), -1)
        n_classes = int(classes.max()) + 1
    table = planes[:, np.arange(len(column)), column].copy()
    return _record(classes, n_classes, table)


def _record(classes: np.ndarray, n_classes: int, table: np.ndarray) -> ClassMatrix:
    """The columns of each particle's own class as a record."""
    count, nowhere = len(classes), classes < 0
    table[1:, nowhere] = 0
    weights = table[1] if len(table) > 1 else np.where(nowhere, 0, 1).astype(np.float32)
    scores = table[9] if len(table) > 9 else np.full(count, np.nan, np.float32)
    scores[nowhere] = np.nan
    posed = len(table) >= 8
    return ClassMatrix(
        n_classes=n_classes,
        classes=classes.astype(np.int64),
        weights=weights,
        scores=scores,
        euler_deg=np.ascontiguousarray(table[5:8].T) if posed else None,
        shifts_vox=np.ascontiguousarray(table[2:5].T) if posed else None,
    )


def _read_planes(path: str | os.PathLike[str]) -> tuple[np.ndarray, object]:
    """All planes ``[plane, particle, column]`` and the form named in the header, if any."""
    with HdfReader(path) as reader:
        if len(reader) == 0:
            raise InputError(f"The class matrix {path} is empty.")
        planes = [np.atleast_2d(reader.read(index)) for index in range(len(reader))]
        named = reader.header(0).get("classmx_format")
    if any(plane.ndim != 2 or plane.shape != planes[0].shape for plane in planes):
        raise InputError(f"The class matrix {path} has planes of different sizes or rank 3.")
    return np.stack(planes), named


def _guess(path: str | os.PathLike[str], plane: np.ndarray) -> Form:
    """The form that plane 0 allows."""
    if plane.shape[1] == 1:
        integers = np.array_equal(plane, np.round(plane))
        if integers and (plane.max() > 1 or len(np.unique(plane)) > 1):
            return "wiki"
    elif (np.count_nonzero(plane, axis=1) == 1).all():
        return "membership"
    raise InputError(
        f"{path} could hold class numbers or memberships: the header item classmx_format"
        " (wiki or membership) must say which."
    )
