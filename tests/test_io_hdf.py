"""EMAN2 HDF files: the real program's answers, its strict attribute types, round trips."""

import os
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sptjax._errors import InputError
from sptjax.io import HdfReader, HdfWriter, atomic_path, read_hdf, write_hdf
from sptjax.io._hdf_reader import restore_codes
from sptjax.io._hdf_writer import statistics

QUICK = settings(max_examples=25, deadline=None, database=None)


def images_of(values, suffix):
    for key in values.files:
        name, index = key.rsplit("__", 1)
        if name.endswith(suffix):
            yield name, int(index), values[key]


def test_golden_values_bit_for_bit(golden):
    values = np.load(golden / "hdf_values.npz")
    checked = 0
    for name, index, expected in images_of(values, ".hdf"):
        with HdfReader(golden / "hdf" / name) as reader:
            found = reader.read(index)
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, expected, err_msg=f"{name} {index}", strict=True)
            assert reader.shape(index) == expected.shape
            assert reader.apix(index) == 3.5
        checked += 1
    assert checked == 23


def test_golden_headers(golden):
    with HdfReader(golden / "hdf" / "float_stack.hdf") as reader:
        header = reader.header(2)
    assert header["class_ptcl_src"] == "particles.hdf"
    assert header["class_ptcl_idxs"] == [1, 2, 5]
    assert header["zz_list"] == [0.5, 1.5]
    assert header["spt_score"] == -1.0
    assert (header["nx"], header["ny"], header["nz"], header["datatype"]) == (20, 18, 16, 7)
    matrix = header["xform.align3d"]
    assert matrix.shape == (3, 4)
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix[:, 3], [1, 2, 3])
    np.testing.assert_allclose(matrix[:, :3] @ matrix[:, :3].T, np.eye(3), atol=1e-6)


def test_statistics_are_those_of_eman2(golden):
    inputs = np.load(golden / "hdf_inputs.npz")
    for name, image in (("zeros8", inputs["zeros"]), ("c8", inputs["st"][0])):
        with HdfReader(golden / "hdf" / f"{name}.hdf") as reader:
            header = reader.header(0)
        for key, value in statistics(image).items():
            assert value == pytest.approx(header[key], rel=2e-6), key


def test_restoring_by_table_equals_restoring_one_by_one(rng):
    codes = rng.integers(0, 1 << 16, (70, 1000)).astype(np.uint16)
    low, high = np.float32(-1.7), np.float32(2.9)
    expected = restore_codes(codes.astype(np.int64), 16, low, high)
    np.testing.assert_array_equal(restore_codes(codes, 16, low, high), expected, strict=True)


def test_written_types_are_the_ones_eman2_reads(tmp_path):
    """Acceptance list, items 1 and 2: what EMAN2, ChimeraX and IMOD need, by the low-level API."""
    ramp = np.arange(4096, dtype=np.float32).reshape(16, 16, 16)
    zoo = {
        "int": -7, "float": 0.1, "single": np.float32(0.1), "text": "abc", "utf8": "Å µ",
        "empty": "", "ints": [1, 2, 3], "floats": [0.5, 0.25], "flag": True,
        "xform.align3d": np.arange(12.0).reshape(3, 4),
    }  # fmt: skip
    path = tmp_path / "a.hdf"
    write_hdf(path, [ramp, ramp[:5]], 4.0, [zoo, {}])
    assert path.read_bytes()[8] == 0  # superblock version
    with h5py.File(path, "r") as file:
        top: Any = file["MDF/images"]
        assert list(top.attrs) == ["imageid_max"]
        assert top.attrs.get_id("imageid_max").dtype == np.int32
        assert top.attrs.get_id("imageid_max").shape == (1,)
        assert top.attrs["imageid_max"][0] == 1
        for number in "01":
            group = top[number]
            data = group["image"]
            assert (data.dtype.str, data.chunks, data.compression) == ("<f4", None, None)
            assert not data.attrs
            sizes = [group.attrs[f"EMAN.n{axis}"][0] for axis in "zyx"]
            assert tuple(sizes) == data.shape
            for name in group.attrs:
                check_type(group, name)
        types = {n: top["0"].attrs.get_id(f"EMAN.{n}").dtype for n in zoo}
        shapes = {n: top["0"].attrs.get_id(f"EMAN.{n}").shape for n in zoo}
    assert types["int"] == types["ints"] == np.int32
    assert types["float"] == np.float64
    assert types["single"] == types["floats"] == np.float32
    assert types["flag"] == np.int8
    assert types["xform.align3d"].names[:5] == ("00", "01", "02", "03", "10")
    assert shapes["ints"] == (3,)
    assert shapes["float"] == shapes["flag"] == shapes["xform.align3d"] == (1,)
    header = read_hdf(path)[1]
    np.testing.assert_array_equal(header.pop("xform.align3d"), zoo.pop("xform.align3d"))
    for name, value in zoo.items():
        assert header[name] == value
        assert type(header[name]) is (float if name == "single" else type(value))
    required = "apix_x apix_y apix_z minimum maximum mean sigma square_sum is_complex all_int"
    assert set(required.split()) <= set(header)


def check_type(group, name):
    """One attribute against the forms that EMAN2 reads; IMOD and ChimeraX want no less."""
    identity = group.attrs.get_id(name)
    kind = identity.get_type()
    if isinstance(kind, h5py.h5t.TypeStringID):
        assert identity.get_space().get_simple_extent_type() == h5py.h5s.SCALAR
        assert not kind.is_variable_str()
        assert kind.get_strpad() == h5py.h5t.STR_NULLTERM
        raw = np.zeros((), f"S{kind.get_size()}")
        identity.read(raw, mtype=kind)
        assert kind.get_size() == len(raw.item()) + 1
    else:
        assert len(identity.shape) == 1
        single = identity.shape == (1,)
        allowed = ["<i4", "<f4"] + (["<f8", "|i1"] if single else [])
        assert identity.dtype.names is not None or identity.dtype.str in allowed
        if name.startswith("EMAN.apix"):
            assert (identity.dtype.str, identity.shape) == ("<f4", (1,))


names = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=20)
integers = st.integers(-(2**31), 2**31 - 1)
singles = st.floats(width=32, allow_nan=False)
items = st.one_of(
    integers,
    st.booleans(),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30),
    st.lists(integers, min_size=2, max_size=5),
    st.lists(singles, min_size=2, max_size=5),
    st.just([]),
)


@QUICK
@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    header=st.dictionaries(names, items, max_size=5),
)
def test_round_trip(tmp_path_factory, shape, header):
    path = tmp_path_factory.mktemp("hdf") / "x.hdf"
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) - 3.5
    header = {f"zz_{name}": value for name, value in header.items()}
    write_hdf(path, [image], 2.5, header)
    found, read = read_hdf(path)
    squeezed = image
    while squeezed.ndim > 1 and squeezed.shape[0] == 1:
        squeezed = squeezed[0]
    np.testing.assert_array_equal(found, squeezed, strict=True)
    assert {name: read[name] for name in header} == header
    assert [read["nz"], read["ny"], read["nx"]] == [1] * (3 - len(shape)) + shape
    assert read["apix_z"] == 2.5


def test_reading_a_list_of_one_gives_the_number(tmp_path):
    write_hdf(tmp_path / "a.hdf", np.ones((2, 2, 2)), 1.0, {"ints": [5], "floats": [0.5]})
    header = read_hdf(tmp_path / "a.hdf")[1]
    assert (header["ints"], header["floats"]) == (5, 0.5)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (2**31, "32-bit"),
        (2**70, "not a number"),
        (None, "not a number"),
        ({"a": 1}, "not a number"),
        ([[1, 2], [3, 4]], "not a number"),
        (["a", "b"], "not a number"),
        ("a\0b", "null character"),
        ([0.5] * 20000, "at most"),
    ],
)
def test_header_items_without_a_form_are_refused(tmp_path, value, words):
    with pytest.raises(InputError, match=words) as error:
        write_hdf(tmp_path / "a.hdf", np.ones((2, 2, 2)), 1.0, {"odd": value})
    assert "a.hdf image 0" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_derived_items_of_another_image_are_not_copied(tmp_path, golden):
    image, header = read_hdf(golden / "hdf" / "c8.hdf")
    write_hdf(tmp_path / "a.hdf", image[:8], 2.0, header)
    again, found = read_hdf(tmp_path / "a.hdf")
    np.testing.assert_array_equal(again, image[:8])
    assert not [name for name in found if name.startswith(("stored_", "render_"))]
    assert (found["nz"], found["apix_x"], found["datatype"]) == (8, 2.0, 7)


def test_writing_streams_and_is_atomic(tmp_path):
    path = tmp_path / "a.hdf"
    write_hdf(path, np.ones((3, 2, 2, 2)), 1.0)
    old = path.read_bytes()

    def broken():
        yield np.zeros((4, 4, 4))
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_hdf(path, broken(), 1.0)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]
    with HdfWriter(path, 1.0) as writer:
        for index in range(12):
            assert writer.append(np.full((4, 4, 4), index)) == index
        assert path.read_bytes() == old  # a reader sees the old file until the end
    with HdfReader(path) as reader:
        assert [float(reader.read(i)[0, 0, 0]) for i in range(len(reader))] == list(range(12))
    with pytest.raises(InputError, match="not open"):
        writer.append(np.zeros((4, 4, 4)))


def test_atomic_path_needs_a_folder_and_follows_links(tmp_path):
    with pytest.raises(InputError, match="does not exist"), atomic_path(tmp_path / "no" / "x"):
        pass
    with pytest.raises(InputError, match="is a folder"), atomic_path(tmp_path):
        pass
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    os.symlink(real, link)
    with atomic_path(link) as temporary:
        temporary.write_text("new")
    assert real.read_text() == "new"
    assert link.is_symlink()


def test_region_outside_is_zero(golden):
    """Acceptance list, item 24: also in a compressed image, where EMAN2 gives rendermin."""
    whole = np.load(golden / "hdf_values.npz")["c8.hdf__1"]
    padded = np.pad(whole, 30)
    with HdfReader(golden / "hdf" / "c8.hdf") as reader:
        for corner, size in (
            ((2, 3, 4), (5, 6, 7)),
            ((-3, 10, -1), (8, 20, 5)),
            ((14, -5, 18), (6, 3, 9)),
            ((-9, 0, 0), (9, 4, 4)),
            ((0, 18, 0), (2, 2, 2)),
        ):
            where = tuple(slice(c + 30, c + 30 + s) for c, s in zip(corner, size))
            found = reader.read_region(1, corner, size)
            np.testing.assert_array_equal(found, padded[where], strict=True)
        with pytest.raises(InputError, match="3 axes"):
            reader.read_region(0, (0, 0), (4, 4))


def test_bad_images_are_refused(tmp_path):
    path = tmp_path / "a.hdf"
    for bad in (np.ones((2, 2), complex), np.ones((2, 0)), np.ones(()), np.ones((1, 2, 2, 2))):
        with pytest.raises(InputError, match="image 0"):
            write_hdf(path, [bad], 1.0)
    with pytest.raises(InputError, match="voxel size"):
        write_hdf(path, np.ones((2, 2, 2)), 0.0)
    with pytest.raises(InputError, match="headers"):
        write_hdf(path, np.ones((2, 2, 2)), 1.0, [{}, {}])
    with pytest.raises(InputError, match="no header"):
        write_hdf(path, np.ones((2, 2, 2, 2)), 1.0, [{}])
    assert not path.exists()
