"""What EMAN2 2.99 makes of an HDF file, by its documented behaviour, its blindness included.

Attributes of a form that it misreads come back as it misreads them; files that crash it or make
it lose pixels fail an assertion.
"""

import h5py
import numpy as np

F = np.float32


def count(path):
    """Number of images; the attribute must be there."""
    with h5py.File(path, "r", locking=False) as file:
        return int(attribute(file["MDF/images"], "imageid_max")) + 1


def attribute(group, name):
    """One attribute as EMAN2 sees it."""
    raw = group.attrs.get_id(name)
    kind, space = raw.get_type(), raw.get_space().get_simple_extent_type()
    if isinstance(kind, h5py.h5t.TypeStringID):
        assert not kind.is_variable_str(), f"{name}: a pointer read as text"
        assert kind.get_strpad() == h5py.h5t.STR_NULLTERM, f"{name}: text without an end"
        assert space == h5py.h5s.SCALAR, f"{name}: several texts overflow"
        value = np.zeros((), f"S{kind.get_size()}")
        raw.read(value, mtype=kind)
        assert kind.get_size() == len(value.item()) + 1, f"{name}: size is not strlen + 1"
        return value.item().decode()
    assert space == h5py.h5s.SIMPLE, f"{name}: ChimeraX cannot index it"
    assert len(raw.shape) == 1, f"{name}: not a list"
    values = np.zeros(raw.shape, raw.dtype)
    raw.read(values)
    if raw.dtype.names:
        return np.array(list(values[0]), F).reshape(3, 4)
    if raw.dtype.str == "|i1":
        return bool(values[0] == ord("T"))
    if raw.dtype.str in ("<i8", "<i2"):
        return 0  # read with the wrong size
    if raw.dtype.str == "<f8":
        assert values.size == 1, f"{name}: overwrites the stack"
    elif raw.dtype.str == "<u4":
        values = np.minimum(values, 2**31 - 1)
    else:
        assert raw.dtype.str in ("<i4", "<f4"), f"{name}: {raw.dtype}"
    return values[0].item() if values.size == 1 else values.tolist()


def header(path, index=0):
    """All attributes of an image, without the prefix."""
    with h5py.File(path, "r", locking=False) as file:
        group = file[f"MDF/images/{index}"]
        assert all(len(name) < 128 for name in group.attrs)
        return {name.removeprefix("EMAN."): attribute(group, name) for name in group.attrs}


def read(path, index=0, order="fast"):
    """Pixels as EMAN2 restores them; 1-D images have one axis.

    Args:
        path: file.
        index: image.
        order: ``fast`` as compiled for Linux (the scale first), ``fused`` the same with a fused
            multiply-add, ``strict`` from left to right.
    """
    items = header(path, index)
    with h5py.File(path, "r", locking=False) as file:
        dataset = file[f"MDF/images/{index}/image"]
        assert dataset.dtype.str in ("|u1", "<u2", "<f4")
        assert 1 <= dataset.ndim <= 3
        filters = dataset.id.get_create_plist()
        numbers = {filters.get_filter(i)[0] for i in range(filters.get_nfilters())}
        known = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
        assert numbers <= known, "an image of zeros"
        size = (items["nz"], items["ny"], items["nx"])
        assert size == (1, 1, 1, *dataset.shape)[-3:], "a heap overflow"
        codes = dataset[()]
    bits = items.get("stored_renderbits", 0)
    if bits <= 0 or "stored_rendermin" not in items or "stored_rendermax" not in items:
        return codes.astype(F)
    low, high, top = F(items["stored_rendermin"]), F(items["stored_rendermax"]), F(2**bits - 1)
    if order == "strict":
        return codes.astype(F) / top * (high - low) + low
    scale = F(1) / top * (high - low)
    if order == "fused":
        return (codes.astype(float) * float(scale) + float(low)).astype(F)
    return codes.astype(F) * scale + low


def limits(path, index=0):
    """Lowest and highest density, and how many values lay outside."""
    items = header(path, index)
    return items["stored_rendermin"], items["stored_rendermax"], items["stored_truncated"]


def codes(path, index=0):
    """What is stored."""
    with h5py.File(path, "r", locking=False) as file:
        return file[f"MDF/images/{index}/image"][()]


def raw_attributes(path, index=0):
    """Every attribute of an image: type, space and bytes."""
    out = {}
    with h5py.File(path, "r") as file:
        group = file[f"MDF/images/{index}"]
        for name in group.attrs:
            attribute = h5py.h5a.open(group.id, name.encode())
            kind = attribute.get_type()
            raw = np.zeros(attribute.shape, f"V{kind.get_size()}")
            attribute.read(raw, mtype=kind)
            out[name] = kind.encode(), attribute.shape, raw.tobytes()
    return out


def raw_chunks(path, index=0):
    """Every chunk of an image as it lies in the file."""
    with h5py.File(path, "r", locking=False) as file:
        dataset = file[f"MDF/images/{index}/image"].id
        places = [dataset.get_chunk_info(i).chunk_offset for i in range(dataset.get_num_chunks())]
        return {place: dataset.read_direct_chunk(place)[1] for place in places}
