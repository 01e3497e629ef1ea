"""Attributes from one HDF5 file to another: byte for byte if EMAN2 can read them as they are."""

from collections.abc import Callable

import h5py
import numpy as np

from sptjax._errors import InputError

from ._hdf_attributes import MAX_NAME, TRANSFORM, read_attributes, write_attribute


def copy_attributes(
    source: h5py.Group | h5py.Dataset, target: h5py.Group, rename: Callable[[str], str | None]
) -> list[str]:
    """Copy the attributes of `source` to `target`.

    A form that EMAN2 would misread (64-bit integers, variable-length text, scalar spaces) is
    replaced by the form that it reads.

    Args:
        source: group or dataset.
        target: group.
        rename: gives the new name, or None to leave an attribute out.

    Returns:
        Names of those that have no form for EMAN2 and were left out.
    """
    lost, plain = [], None
    for name in source.attrs:
        new = rename(name)
        if new is None:
            continue
        if _copy_raw(source, target, name, new):
            continue
        plain = read_attributes(source) if plain is None else plain
        try:
            write_attribute(target, new, plain[name])
        except (InputError, KeyError):
            lost.append(name)
    return lost


def _copy_raw(source: h5py.Group | h5py.Dataset, target: h5py.Group, name: str, new: str) -> bool:
    """Copy one attribute as it is, if it is as EMAN2 wants it."""
    attribute = h5py.h5a.open(source.id, name.encode())
    kind, space = attribute.get_type(), attribute.get_space()
    simple = space.get_simple_extent_type()
    if not 0 < len(new.encode()) <= MAX_NAME or simple == h5py.h5s.NULL:
        return False
    raw = np.zeros(attribute.shape, f"V{kind.get_size()}")
    if isinstance(kind, h5py.h5t.TypeStringID):
        if kind.is_variable_str() or simple != h5py.h5s.SCALAR:
            return False
        attribute.read(raw, mtype=kind)
        if kind.get_strpad() != h5py.h5t.STR_NULLTERM or b"\0" not in raw.tobytes():
            return False
    elif simple != h5py.h5s.SIMPLE or len(attribute.shape) != 1 or not _readable(kind, raw.size):
        return False
    else:
        attribute.read(raw, mtype=kind)
    h5py.h5a.create(target.id, new.encode(), kind, space).write(raw, mtype=kind)
    return True


def _readable(kind: h5py.h5t.TypeID, size: int) -> bool:
    """Whether EMAN2 reads numbers of this type as they are."""
    dtype = np.dtype(kind.dtype)
    if dtype.names is not None:
        return size == 1 and dtype == TRANSFORM
    single = ["<f8", "|i1", "<u4"] if size == 1 else []
    return dtype.metadata is None and dtype.str in ["<i4", "<f4", *single]
