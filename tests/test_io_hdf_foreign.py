"""HDF files of other writers, old layouts, and files that are damaged."""

import h5py
import numpy as np
import pytest

from sptjax._errors import InputError
from sptjax.io import HdfReader, read_hdf


def write_foreign(path, data, attributes, **options):
    with h5py.File(path, "w") as file:
        group = file.create_group("MDF/images/0")
        group.create_dataset("image", data=data, **options)
        for name, value in attributes.items():
            group.attrs[name] = value


def test_foreign_attributes(tmp_path, rng):
    """Acceptance list, item 25: scalar space, variable strings, int64, a wrong size."""
    data = rng.normal(size=(8, 8, 8)).astype(">f4")
    attributes = {
        "EMAN.nx": 99, "EMAN.apix_x": 3.25, "EMAN.note": "variable", "EMAN.big": 2**40,
        "EMAN.texts": ["a", "b"], "EMAN.fixed": np.bytes_(b"fixed"), "EMAN.flag": np.int8(ord("F")),
        "EMAN.bool": True, "TiltAngle": np.float32(12.5), "EMAN.none": h5py.Empty("f4"),
        "EMAN.pair": np.zeros(1, [("a", "f4"), ("b", "f4")]),
    }  # fmt: skip
    path = tmp_path / "a.hdf"
    write_foreign(path, data, attributes, chunks=(8, 4, 8), compression="gzip",
                  compression_opts=9, shuffle=True, fletcher32=True)  # fmt: skip
    found, header = read_hdf(path)
    np.testing.assert_array_equal(found, data.astype(np.float32), strict=True)
    expected = {
        "nx": 8, "apix_x": 3.25, "note": "variable", "big": 2**40, "texts": ["a", "b"],
        "fixed": "fixed", "flag": False, "bool": True, "tilt_angle": 12.5, "none": [],
    }  # fmt: skip
    assert {name: header[name] for name in expected} == expected
    assert "pair" not in header


def test_transform_members_are_taken_by_name_or_by_order(tmp_path):
    values = np.arange(12, dtype=np.float32)
    names = [f"{i}{j}" for i in range(3) for j in range(4)]
    named = np.zeros(1, [(name, "f8") for name in reversed(names)])
    other = np.zeros((), [(f"m{k:02d}", "f4") for k in range(12)])
    for k, name in enumerate(names):
        named[name] = values[k]
        other[f"m{k:02d}"] = values[k]
    write_foreign(tmp_path / "a.hdf", np.ones((4, 4, 4)), {"EMAN.a": named, "EMAN.b": other})
    header = read_hdf(tmp_path / "a.hdf")[1]
    np.testing.assert_array_equal(header["a"], values.reshape(3, 4))
    np.testing.assert_array_equal(header["b"], values.reshape(3, 4))


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", ">i2", "i4", "f2", ">f8"])
def test_every_number_type_reads_as_float32(tmp_path, kind):
    data = np.arange(64, dtype=kind).reshape(4, 4, 4)
    write_foreign(tmp_path / "a.hdf", data, {"EMAN.stored_renderbits": 8})  # one of three: ignored
    np.testing.assert_array_equal(read_hdf(tmp_path / "a.hdf")[0], data.astype("f4"), strict=True)


def test_signed_codes_are_restored_like_eman2_with_a_warning(tmp_path):
    data = np.arange(-32, 32, dtype=np.int8).reshape(4, 4, 4)
    render = {"bits": 8, "min": 0.0, "max": 255.0}
    write_foreign(
        tmp_path / "a.hdf", data, {f"EMAN.stored_render{k}": v for k, v in render.items()}
    )
    with pytest.warns(UserWarning, match="signed"):
        found = read_hdf(tmp_path / "a.hdf")[0]
    np.testing.assert_array_equal(found, data.astype("f4"))


def test_imod_spacing_overrides(tmp_path):
    path = tmp_path / "a.hdf"
    write_foreign(path, np.ones((4, 4, 4), "f4"), {"EMAN.apix_x": 1.0})
    with h5py.File(path, "a") as file:
        file["MDF/images"].attrs["IMOD.PixelSpacing"] = np.array([6.5], "f4")
        file["MDF/images"].attrs["operator"] = "someone"
    header = read_hdf(path)[1]
    assert [header[f"apix_{axis}"] for axis in "xyz"] == [6.5] * 3
    assert header["Group.operator"] == "someone"
    assert "Group.IMOD.PixelSpacing" not in header


def test_legacy_and_plain_layouts(tmp_path, rng):
    data = rng.normal(size=(3, 4, 4, 4)).astype(np.float32)
    with h5py.File(tmp_path / "legacy.hdf", "w") as file:
        file.attrs["num_dataset"] = 3
        for index in range(3):
            file.create_dataset(str(index), data=data[index]).attrs["apix_x"] = 2.0
    with h5py.File(tmp_path / "stack.h5", "w") as file:
        file.create_dataset("some/where", data=data)
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file["map"] = data[0]
        file["list"] = np.arange(5)
    for name, count in (("legacy.hdf", 3), ("stack.h5", 3), ("one.h5", 1)):
        with HdfReader(tmp_path / name) as reader:
            assert len(reader) == count
            assert reader.shape(count - 1) == (4, 4, 4)
            np.testing.assert_array_equal(reader.read(count - 1), data[count - 1])
            box = reader.read_region(count - 1, (1, -1, 2), (2, 2, 1))
            np.testing.assert_array_equal(box[:, 1], data[count - 1][1:3, 0, 2:3])
            assert reader.apix(0) == (2.0 if name == "legacy.hdf" else None)


def test_bad_files_give_a_sentence(tmp_path, golden):
    good = (golden / "hdf" / "float_stack.hdf").read_bytes()
    (tmp_path / "cut.hdf").write_bytes(good[: len(good) // 2])
    (tmp_path / "text.hdf").write_text("not an image at all")
    (tmp_path / "empty.hdf").write_bytes(b"")
    with h5py.File(tmp_path / "hole.hdf", "w") as file:
        file["MDF/images/0/image"] = np.ones((4, 4, 4))
        file["MDF/images/1/image"] = "text"
        file["MDF/images"].attrs["imageid_max"] = 2
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["a"], file["b"] = np.ones((4, 4)), np.ones((4, 4))
    for name, words in {
        "absent.hdf": "does not exist",
        "cut.hdf": "truncated",
        "text.hdf": "not an HDF5 file",
        "empty.hdf": "not an HDF5 file",
        "two.h5": "holds 2 arrays",
    }.items():
        with pytest.raises(InputError, match=words) as error:
            HdfReader(tmp_path / name)
        assert name in str(error.value)
    with HdfReader(tmp_path / "hole.hdf") as reader:
        for index, words in (
            (1, "real numbers"),
            (2, "missing"),
            (3, "no image 3"),
            (-1, "no image"),
        ):
            with pytest.raises(InputError, match=words):
                reader.read(index)


def test_corrupt_chunks_give_a_sentence(tmp_path, golden):
    raw = bytearray((golden / "hdf" / "c16.hdf").read_bytes())
    with h5py.File(golden / "hdf" / "c16.hdf", "r", locking=False) as file:
        chunk = file["MDF/images/0/image"].id.get_chunk_info(0)
    raw[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    (tmp_path / "a.hdf").write_bytes(raw)
    with pytest.raises(InputError, match=r"a\.hdf image 0 cannot be read"):
        read_hdf(tmp_path / "a.hdf")
