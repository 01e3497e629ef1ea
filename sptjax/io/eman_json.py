"""EMAN2 JSON dictionaries: alignments of particles to and from matrices and scores.

Two forms hold one transform per particle, both keyed by text:

* ``sptali``: ``"subtomo_<i>": [transform, score]``, `i` padded with zeros;
* ``particle_parms``: ``"('<file>', <i>)": {"xform.align3d": transform, "score": …}``.

A transform is ``{"__class__": "Transform", "matrix": "[12 numbers]"}``, the rows of a 3×4
matrix (rotation, then the shift in voxels), as text or as a list. Scores are kept with the
sign of the file. Nothing is ever executed: pickled objects stay opaque.
"""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from sptjax._errors import InputError

from ._atomic import atomic_path

_SUBTOMO = re.compile(r"subtomo_0*(\d+)$")
PARMS_KEY = re.compile(r"\((?P<file>.+),\s*(?P<index>\d+)\)$", re.DOTALL)
_RIGID_TOLERANCE = 1e-3


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Args:
        path: The file.

    Returns:
        The object. Transforms and unknown classes stay the dictionaries that they are.

    Raises:
        InputError: The file is missing, or is not JSON, or holds something else.
    """
    try:
        data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"The file {path} does not exist.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"The file {path} is not readable JSON ({error}).") from error
    if not isinstance(data, dict):
        raise InputError(f"The file {path} does not hold a JSON object.")
    return data


def write_json(path: str | os.PathLike[str], data: Mapping[str, Any]) -> None:
    """Write an object as EMAN2 lays it out (sorted keys, no indent), atomically.

    Args:
        path: The file to create or replace.
        data: Values that JSON can hold; NumPy arrays and scalars become lists and numbers.

    Raises:
        InputError: A value has no JSON form.
    """
    try:
        text = json.dumps(dict(data), indent=0, sort_keys=True, default=_plain)
    except (TypeError, ValueError) as error:
        raise InputError(f"Cannot write {path}: {error}.") from error
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"{value!r} has no JSON form")


def is_transform(value: Any) -> bool:
    """Whether a JSON value is an EMAN2 transform."""
    return isinstance(value, dict) and value.get("__class__") == "Transform"


def transform_to_json(matrix: np.ndarray) -> dict[str, str]:
    """EMAN2's JSON object of a ``matrix`` ``[3, 4]``: 9 significant digits (exact for float32)."""
    numbers = np.asarray(matrix, np.float64).reshape(12)
    return {"__class__": "Transform", "matrix": "[" + ",".join(f"{x:.9g}" for x in numbers) + "]"}


def transform_from_json(value: Any, name: str) -> np.ndarray:
    """The rigid 3×4 matrix of EMAN2's JSON object, its rotation made exactly orthogonal.

    Args:
        value: ``{"__class__": "Transform", "matrix": …}``, the matrix as text or list.
        name: What to call it in messages.

    Returns:
        float64 array ``(3, 4)``. The rotation is the orthogonal matrix nearest to the
        stored one (EMAN2 stores 6 digits).

    Raises:
        InputError: Not a transform, or not rigid: ``|RᵀR - 1|`` above 1e-3, or a mirror.
    """
    try:
        raw = value["matrix"]
        numbers = [float(x) for x in (raw.strip("[] ").split(",") if isinstance(raw, str) else raw)]
        matrix = np.array(numbers, np.float64).reshape(3, 4)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(f"{name} is not a transform of 12 numbers.") from error
    if not np.isfinite(matrix).all():
        raise InputError(f"{name} is a transform with numbers that are not finite.")
    rotation = matrix[:, :3]
    deviation = np.abs(rotation.T @ rotation - np.eye(3)).max()
    if deviation > _RIGID_TOLERANCE or np.linalg.det(rotation) < 0:
        raise InputError(
            f"{name} is not rigid: its matrix deviates from a rotation by {deviation:.2g}"
            f" and has determinant {np.linalg.det(rotation):.3g}."
        )
    left, _, right = np.linalg.svd(rotation)
    return np.column_stack([left @ right, matrix[:, 3]])


def subtomo_key(index: int, count: int) -> str:
    """EMAN2's key of particle `index` of `count`: padded to the digits of the count."""
    return f"subtomo_{index:0{len(str(count))}d}"


def extras_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """Where `write_alignments` puts the extra columns: ``<stem>_ext.json`` beside `path`."""
    where = pathlib.Path(path)
    return where.with_name(f"{where.stem}_ext.json")


def write_alignments(
    path: str | os.PathLike[str],
    matrices: np.ndarray,
    scores: np.ndarray,
    extra: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write poses in the ``sptali`` form, which EMAN2 reads.

    Args:
        path: The file to create or replace.
        matrices: ``[n, 3, 4]``, rotation and shift (voxels), particle to reference:
            EMAN2's ``xform.align3d``.
        scores: ``[n]``, stored as they are. EMAN2 takes smaller as better.
        extra: More columns ``[n]`` (class, weight, …) for ``<stem>_ext.json``,
            since EMAN2 allows nothing else in the file itself.

    Raises:
        InputError: The shapes do not agree.
    """
    matrices, scores = np.asarray(matrices), np.asarray(scores, np.float64)
    count = len(matrices)
    columns = {name: np.asarray(column) for name, column in (extra or {}).items()}
    if matrices.shape != (count, 3, 4) or scores.shape != (count,):
        raise InputError(
            f"Cannot write {path}: matrices of shape {matrices.shape} do not go with scores of"
            f" shape {scores.shape}."
        )
    for name, column in columns.items():
        if len(column) != count:
            raise InputError(f"Cannot write {path}: {name} has {len(column)} of {count} entries.")
    if columns:
        write_json(extras_path(path), columns)
    write_json(
        path,
        {
            subtomo_key(index, count): [transform_to_json(matrix), float(score)]
            for index, (matrix, score) in enumerate(zip(matrices, scores))
        },
    )


def read_extras(path: str | os.PathLike[str], count: int) -> dict[str, np.ndarray]:
    """The extra columns that `write_alignments` put beside `path`; empty if there are none.

    Args:
        path: The alignment file (not the file of extras).
        count: Number of particles.

    Raises:
        InputError: A column does not have `count` entries.
    """
    where = extras_path(path)
    if not where.exists():
        return {}
    columns = {name: np.asarray(column) for name, column in read_json(where).items()}
    for name, column in columns.items():
        if column.ndim < 1 or len(column) != count:
            raise InputError(f"{where}: {name} does not have {count} entries.")
    return columns


def read_alignments(
    path: str | os.PathLike[str], count: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Read the poses of particles 0 … count-1 from either form.

    Args:
        path: The file.
        count: Number of particles that must be there; None takes as many as there are.

    Returns:
        matrices: float32 ``[n, 3, 4]``, rotation exactly orthogonal, shift in voxels.
        scores: float64 ``[n]``, the sign of the file; NaN where the file has none.

    Raises:
        InputError: A particle is missing or named twice, or its transform is not rigid.
    """
    entries: dict[int, Any] = {}
    for key, value in read_json(path).items():
        match = _SUBTOMO.match(key) or PARMS_KEY.match(key)
        if match is None:
            continue
        index = int(match[match.lastindex or 1])
        if index in entries:
            raise InputError(f"{path} gives more than one pose for particle {index}.")
        entries[index] = value
    if not entries:
        raise InputError(f"{path} holds no alignments of particles.")
    count = 1 + max(entries) if count is None else count
    matrices, scores = np.empty((count, 3, 4), np.float32), np.full(count, np.nan)
    for index in range(count):
        name = f"{path}: the pose of particle {index}"
        if index not in entries:
            raise InputError(f"{name} is missing ({count} are needed).")
        transform, score = _pose_and_score(entries[index])
        matrices[index] = transform_from_json(transform, name)
        if isinstance(score, (int, float)):
            scores[index] = score
    return matrices, scores


def _pose_and_score(value: Any) -> tuple[Any, Any]:
    """The two fields of one entry, whichever form it has."""
    if isinstance(value, list):
        transform, score, *_ = [*value, None, None]
        return transform, score
    if is_transform(value):
        return value, None
    if isinstance(value, dict):
        return value.get("xform.align3d"), value.get("score")
    return None, None
