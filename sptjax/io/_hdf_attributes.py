"""HDF5 attributes as EMAN2 types them, to and from plain Python values.

EMAN2 reads only a narrow set of attribute forms and silently mistakes the rest: 64-bit
integers read as 0, variable-length strings as garbage, and numbers without a length-1
dimension break ChimeraX. What is written here therefore keeps to

============== ===================================================== ==============
Python         HDF5 type                                             dataspace
============== ===================================================== ==============
``bool``       int8 holding the letter T or F                        ``(1,)``
``int``        int32                                                 ``(1,)``
``float``      float64 (:class:`numpy.float32`: float32)             ``(1,)``
``str``        null-terminated string of ``strlen + 1`` bytes        scalar
list of int    int32                                                 ``(n,)``
list of float  float32                                               ``(n,)``
3×4 array      compound of 12 float32 named ``00`` … ``23``          ``(1,)``
============== ===================================================== ==============

A list of one number reads back as that number. Reading accepts much more than is written.
"""

from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np

from sptjax._errors import InputError

INT32 = np.iinfo(np.int32)
MAX_NAME = 127
MAX_BYTES = 64000  # the oldest file format keeps attributes below 64 KiB
TRANSFORM = np.dtype([(f"{row}{column}", "<f4") for row in range(3) for column in range(4)])


def write_attribute(where: h5py.Group, name: str, value: Any) -> None:
    """Attach `value` to `where` under `name` in the form of the table above.

    Args:
        where: Group or file that carries the attribute.
        name: Attribute name, below 128 bytes.
        value: bool, int, float, str, a flat list or array of numbers, or a 3×4 transform.

    Raises:
        InputError: The name or the value has no form that EMAN2 can read.
    """
    if not 0 < len(name.encode()) <= MAX_NAME or "\0" in name:
        raise InputError(f"The header item name {name!r} must have 1 to {MAX_NAME} bytes.")
    if isinstance(value, str):
        _write_string(where, name, value)
        return
    array = _encode(name, value)
    if array.nbytes > MAX_BYTES:
        raise InputError(
            f"The header item {name} holds {array.size} numbers; at most {MAX_BYTES // 4} fit."
        )
    where.attrs.create(name, array, shape=array.shape, dtype=array.dtype)


def _encode(name: str, value: Any) -> np.ndarray:
    """The array whose dtype and shape are those of the attribute."""
    if isinstance(value, (bool, np.bool_)):
        return np.array([ord("T") if value else ord("F")], np.int8)
    if isinstance(value, np.ndarray) and value.shape == (3, 4):
        numbers = np.ascontiguousarray(value, "<f4")
        return numbers.reshape(12).view(TRANSFORM)
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.empty((), object)
    kind, shape = array.dtype.kind, array.shape
    if array.ndim > 1 or (kind not in "biuf" and array.size):
        raise InputError(
            f"The header item {name} = {value!r} is not a number, a text, a flat list of"
            " numbers or a 3x4 transform."
        )
    if kind in "iu" and array.size and (array.min() < INT32.min or array.max() > INT32.max):
        raise InputError(f"The header item {name} = {value!r} does not fit a 32-bit integer.")
    array = array.reshape(-1)
    if kind in "biu" and array.size:
        return array.astype("<i4")
    single = shape == () or array.size == 1
    return array.astype("<f8" if single and array.dtype.itemsize == 8 else "<f4")


def _write_string(where: h5py.Group, name: str, text: str) -> None:
    """A null-terminated string in a scalar space: the only text that EMAN2 reads."""
    raw = text.encode()
    if b"\0" in raw:
        raise InputError(f"The header item {name} = {text!r} holds a null character.")
    if len(raw) >= MAX_BYTES:
        raise InputError(f"The header item {name} has {len(raw)} bytes; at most {MAX_BYTES} fit.")
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(len(raw) + 1)
    kind.set_strpad(h5py.h5t.STR_NULLTERM)
    kind.set_cset(h5py.h5t.CSET_ASCII if text.isascii() else h5py.h5t.CSET_UTF8)
    space = h5py.h5s.create(h5py.h5s.SCALAR)
    attribute = h5py.h5a.create(where.id, name.encode(), kind, space)
    attribute.write(np.array(raw, f"S{len(raw) + 1}"), mtype=kind)


def read_attributes(where: h5py.Group | h5py.Dataset | h5py.Datatype) -> dict[str, Any]:
    """All attributes of `where` as plain Python values; unreadable ones are left out.

    Args:
        where: Group, dataset or file.

    Returns:
        Name to int, float, bool, str, list, or float32 array ``(3, 4)`` for a transform.
    """
    result = {}
    for name in where.attrs:
        try:
            raw = where.attrs[name]
        except (OSError, TypeError, ValueError, UnicodeDecodeError):
            continue  # a type that neither h5py nor EMAN2 knows
        value = _decode(raw)
        if value is not None:
            result[name] = value
    return result


def _decode(raw: Any) -> Any:
    """One attribute value as h5py gives it, as a plain Python value (None: nothing usable)."""
    if isinstance(raw, h5py.Empty):
        return "" if raw.dtype.kind in "SO" else []
    array = np.asarray(raw)
    if array.dtype.names is not None:
        return _decode_transform(array)
    kind = array.dtype.kind
    if kind in "SUO":
        texts = [_text(item) for item in array.reshape(-1)]
        return texts[0] if len(texts) == 1 else texts
    if kind == "b":
        return _unwrap(array.reshape(-1).tolist())
    if kind in "iu" and array.dtype.itemsize == 1:
        flags = {ord("T"): True, ord("F"): False}
        return _unwrap([flags.get(item, item) for item in array.reshape(-1).tolist()])
    if kind in "iuf":
        return _unwrap(array.reshape(-1).tolist())
    return None


def _unwrap(items: Sequence[Any]) -> Any:
    """EMAN2's rule: a list of one is that one."""
    return items[0] if len(items) == 1 else list(items)


def _text(raw: Any) -> str:
    """Bytes or text up to the first null character."""
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)
    return text.split("\0", 1)[0]


def _decode_transform(array: np.ndarray) -> np.ndarray | None:
    """The 3×4 matrix of a compound of 12 numbers, in member order unless named by position."""
    names = array.dtype.names or ()
    if len(names) != 12 or array.size != 1:
        return None
    ordered = TRANSFORM.names if set(names) == set(TRANSFORM.names or ()) else names
    record = array.reshape(-1)[0]
    return np.array([record[name] for name in ordered or ()], np.float32).reshape(3, 4)
