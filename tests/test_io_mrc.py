"""MRC and EM files against mrcfile, emfile, the real EMAN2's reading, and hand-made headers."""

import gzip
from typing import Any

import emfile
import mrcfile
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mrcfile.utils import data_dtype_from_header

from sptjax._errors import InputError
from sptjax.io import EmReader, MrcReader, read_mrc, read_volume, write_em, write_mrc

QUICK = settings(max_examples=15, deadline=None, database=None)


def test_golden_mrc(golden):
    expected = np.load(golden / "hdf_values.npz")["vol.mrc__0"]
    found, header = read_mrc(golden / "hdf" / "vol.mrc")
    np.testing.assert_array_equal(found, expected, strict=True)
    assert [header[f"MRC.n{axis}start"] for axis in "xyz"] == [-10, -9, -8]
    assert [header[f"apix_{axis}"] for axis in "xyz"] == [3.5] * 3
    assert (header["nx"], header["ny"], header["nz"]) == (20, 18, 16)


@QUICK
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    apix=st.floats(0.5, 20),
    start=st.integers(-50, 50),
)
def test_round_trip(tmp_path_factory, shape, apix, start):
    path = tmp_path_factory.mktemp("mrc") / "x.mrc"
    data = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) - 7
    write_mrc(path, data, apix, {"MRC.nzstart": start, "origin_x": 1.5})
    with MrcReader(path) as reader:
        found = np.stack([reader.read(i) for i in range(len(reader))])
        header = reader.header(0)
        assert reader.apix(0) == pytest.approx(apix, rel=1e-6)
    np.testing.assert_array_equal(found.reshape(shape), data, strict=True)
    assert len(found) == (shape[0] if len(shape) == 4 else 1)
    assert (header["MRC.nzstart"], header["origin_x"], header["MRC.mode"]) == (start, 1.5, 2)
    with mrcfile.open(path) as file:
        np.testing.assert_array_equal(file.data, data)
        assert file.is_volume_stack() == (len(shape) == 4)


def test_written_bytes_are_reproducible_and_valid(tmp_path):
    for name in ("a.mrc", "b.mrc"):
        write_mrc(tmp_path / name, np.ones((4, 4, 4)), 2.0)
    assert (tmp_path / "a.mrc").read_bytes() == (tmp_path / "b.mrc").read_bytes()
    assert mrcfile.validate(tmp_path / "a.mrc")


@pytest.mark.parametrize("kind", ["i1", "i2", "u2", "f2", "f4"])
def test_modes(tmp_path, kind):
    """Mode 0 is signed, as MRC2014 says; EMAN2 would read 0 ... 255."""
    data = np.arange(-5 if kind[0] != "u" else 0, 59).astype(kind)[:27].reshape(3, 3, 3)
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(data)
    np.testing.assert_array_equal(read_mrc(tmp_path / "a.mrc")[0], data.astype("f4"), strict=True)


def edit(path, offset, numbers, kind="<i4"):
    raw = bytearray(path.read_bytes())
    raw[offset : offset + 4 * len(numbers)] = np.array(numbers, kind).tobytes()
    path.write_bytes(raw)


def test_bytes_of_old_imod_are_unsigned(tmp_path):
    path = tmp_path / "a.mrc"
    data = np.arange(-4, 4, dtype=np.int8).reshape(2, 2, 2)
    with mrcfile.new(path) as file:
        file.set_data(data)
    edit(path, 152, [1146047817, 1])  # IMOD's stamp, flag "signed"
    np.testing.assert_array_equal(read_mrc(path)[0], data)
    edit(path, 156, [0])
    np.testing.assert_array_equal(read_mrc(path)[0], data.view(np.uint8))


def test_big_endian_and_extended_header(tmp_path):
    data = np.arange(27, dtype=">f4").reshape(3, 3, 3)
    with mrcfile.new(tmp_path / "little.mrc") as file:
        file.set_data(data.astype("<f4"))
        file.set_extended_header(np.zeros(96, "V1"))
        little: Any = file.header
        header = little.astype(little.dtype.newbyteorder(">"))
        header["machst"] = [0x11, 0x11, 0, 0]
    assert data_dtype_from_header(np.rec.array(header)) == np.dtype(">f4")
    (tmp_path / "big.mrc").write_bytes(header.tobytes() + bytes(96) + data.tobytes())
    for name in ("little.mrc", "big.mrc"):
        np.testing.assert_array_equal(read_mrc(tmp_path / name)[0], data.astype("f4"), strict=True)


def test_axes_in_another_order_are_transposed(tmp_path):
    path = tmp_path / "a.mrc"
    data = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)  # [z, y, x]
    for order in ((1, 2, 3), (3, 2, 1), (2, 1, 3), (2, 3, 1), (3, 1, 2)):  # mapc, mapr, maps
        axis = {1: 2, 2: 1, 3: 0}
        stored = data.transpose([axis[number] for number in reversed(order)])
        write_mrc(path, stored, 1.0)
        edit(path, 64, order)
        with MrcReader(path) as reader:
            assert reader.shape(0) == (2, 3, 4)
            np.testing.assert_array_equal(reader.read(0), data, err_msg=str(order))


def test_what_counts_as_a_stack(tmp_path):
    """A .mrc of many sections is one volume; .mrcs of nz = n * nx holds boxes."""
    boxes = np.arange(3 * 64, dtype=np.float32).reshape(3, 4, 4, 4)
    write_mrc(tmp_path / "a.mrcs", boxes.reshape(12, 4, 4), 2.0)
    write_mrc(tmp_path / "b.mrc", boxes.reshape(12, 4, 4), 2.0)
    write_mrc(tmp_path / "c.mrcs", boxes.reshape(12, 4, 4)[:5], 2.0)
    for name, count, shape in (
        ("a.mrcs", 3, (4, 4, 4)),
        ("b.mrc", 1, (12, 4, 4)),
        ("c.mrcs", 5, (4, 4)),
    ):
        with MrcReader(tmp_path / name) as reader:
            assert (len(reader), reader.shape(0)) == (count, shape)
            first = boxes.reshape(12, 4, 4)[0]
            np.testing.assert_array_equal(reader.read(0).reshape(-1, 4, 4)[0], first)
    with MrcReader(tmp_path / "a.mrcs") as reader:
        np.testing.assert_array_equal(reader.read(2), boxes[2])
        with pytest.raises(InputError, match="no image 3"):
            reader.read(3)


def test_compressed_files_are_read(tmp_path):
    data = np.arange(3 * 64, dtype=np.float32).reshape(12, 4, 4)
    write_mrc(tmp_path / "a.mrcs", data, 2.0)
    raw = (tmp_path / "a.mrcs").read_bytes()
    for name in ("a.mrcs.gz", "disguised.mrcs"):
        (tmp_path / name).write_bytes(gzip.compress(raw))
        with MrcReader(tmp_path / name) as reader:
            np.testing.assert_array_equal(reader.read(1), data[4:8], strict=True)
    (tmp_path / "cut.mrc.gz").write_bytes(gzip.compress(raw[:-8]))
    (tmp_path / "torn.mrc.gz").write_bytes(
        gzip.compress(np.random.default_rng(0).bytes(9000))[:5000]
    )
    for name in ("cut.mrc.gz", "torn.mrc.gz"):
        with pytest.raises(InputError, match=r"truncated|not an MRC"):
            read_mrc(tmp_path / name)
    with pytest.raises(InputError, match="compressed"):
        write_mrc(tmp_path / "b.mrc.gz", data, 2.0)


def test_bad_files_give_a_sentence(tmp_path):
    write_mrc(tmp_path / "good.mrc", np.ones((8, 8, 8)), 2.0)
    raw = (tmp_path / "good.mrc").read_bytes()
    (tmp_path / "cut.mrc").write_bytes(raw[:-1])
    (tmp_path / "head.mrc").write_bytes(raw[:500])
    (tmp_path / "empty.mrc").write_bytes(b"")
    (tmp_path / "text.mrc").write_bytes(b"this is a text file and not a map. " * 60)
    with mrcfile.new(tmp_path / "complex.mrc") as file:
        file.set_data(np.ones((4, 4), np.complex64))
    for name, words in {
        "absent.mrc": "does not exist",
        "cut.mrc": "truncated: 3071 of 3072",
        "head.mrc": "truncated or not an MRC",
        "empty.mrc": "truncated or not an MRC",
        "text.mrc": "not an MRC file",
        "complex.mrc": "no real values",
    }.items():
        with pytest.raises(InputError, match=words) as error:
            MrcReader(tmp_path / name)
        assert name in str(error.value)
    with pytest.raises(InputError, match="no map"):
        write_mrc(tmp_path / "a.mrc", np.ones(5), 1.0)


def test_no_voxel_size(tmp_path):
    write_mrc(tmp_path / "a.mrc", np.ones((4, 4, 4)), 2.0)
    edit(tmp_path / "a.mrc", 40, [0.0, 0.0, 0.0], "<f4")
    with MrcReader(tmp_path / "a.mrc") as reader:
        assert reader.apix(0) is None


def test_published_maps(shared_data):
    volume, apix, header = read_volume(shared_data / "quirks" / "emd_3197_vesicle_sta_11.4A.map")
    assert (volume.shape, header["MRC.nxstart"], header["MRC.nystart"]) == ((20, 20, 20), -2, 0)
    assert apix == pytest.approx(11.4)
    for name, size in (
        ("maps/emd_1080_groel_2.7A.mrc", 2.7),
        ("maps/emd_3420_b4_10.48A.mrc.gz", 10.48),
    ):
        volume, apix, _ = read_volume(shared_data / name)
        assert apix == pytest.approx(size)
        assert volume.std() > 0
    folder = shared_data / "real_ribosomes" / "relion5"
    tilts = next(folder.rglob("*.mrcs"))
    with MrcReader(tilts) as reader, mrcfile.open(tilts, permissive=True) as file:
        assert (len(reader), reader.shape(0)) == (37, (32, 32))  # float16, mode 12
        data: Any = file.data
        np.testing.assert_array_equal(reader.read(5), data[5].astype("f4"), strict=True)


def test_em(tmp_path):
    data = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    write_em(tmp_path / "a.em", data)
    header, found = emfile.read(tmp_path / "a.em")
    np.testing.assert_array_equal(found, data)
    assert header["machine"] == 6
    with EmReader(tmp_path / "a.em") as reader:
        np.testing.assert_array_equal(reader.read(0), data, strict=True)
        assert (len(reader), reader.shape(0), reader.apix(0)) == (1, (2, 3, 4), None)
        assert (reader.header(0)["nx"], reader.header(0)["EM.dtype"]) == (4, 5)
        with pytest.raises(InputError, match="no image 1"):
            reader.read(1)
    emfile.write(tmp_path / "short.em", data.astype(np.int16))
    with EmReader(tmp_path / "short.em") as reader:
        np.testing.assert_array_equal(reader.read(0), data, strict=True)


def test_bad_em_files_give_a_sentence(tmp_path):
    write_em(tmp_path / "a.em", np.ones((4, 4, 4)))
    raw = (tmp_path / "a.em").read_bytes()
    big = np.frombuffer(raw[4:16], "<i4").astype(">i4").tobytes()
    (tmp_path / "cut.em").write_bytes(raw[:-1])
    (tmp_path / "head.em").write_bytes(raw[:100])
    (tmp_path / "complex.em").write_bytes(raw[:3] + b"\x08" + raw[4:])
    (tmp_path / "big.em").write_bytes(b"\x05" + raw[1:4] + big + raw[16:])
    for name, words in {
        "absent.em": "does not exist",
        "cut.em": "truncated: 767 of 768",
        "head.em": "truncated",
        "complex.em": "real values",
        "big.em": "big-endian",
    }.items():
        with pytest.raises(InputError, match=words) as error:
            EmReader(tmp_path / name)
        assert name in str(error.value)
    with pytest.raises(InputError, match="no volume"):
        write_em(tmp_path / "b.em", np.ones((4, 4)))
