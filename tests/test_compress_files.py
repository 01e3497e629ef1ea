"""Compression of whole files: headers, shapes and formats, as EMAN2 and others read them."""

import shutil
import struct
import subprocess

import emfile
import h5py
import mrcfile
import numpy as np
import pytest
import tifffile
from oracles import eman2_hdf as eman2

from sptjax._errors import InputError
from sptjax.io import (
    Compression,
    HdfReader,
    LstEntry,
    TiffReader,
    compress_file,
    decompress_mrc,
    read_hdf,
    read_json,
    read_lst,
    read_mrc,
    write_hdf,
    write_json,
    write_lst,
)
from sptjax.io._inputs import open_input

F = np.float32
RAMP = np.arange(256, dtype=F).reshape(16, 16)
TURN = np.array([[0.6, -0.8, 0, 1], [0.8, 0.6, 0, -2], [0, 0, 1, 3.5]], F)
ZOO = {
    "an_int": -7,
    "a_float": 0.1,
    "text": "plain",
    "utf8": "Ångström",
    "empty": "",
    "ints": [3, -4, 5],
    "floats": [0.5, 1.5],
    "flag": True,
    "xform.align3d": TURN,
    "ctf": "E2.5 0 0 0 10 300 2.700000048 1.350000024 -1 3,1,2,3 2,0.1,0.2",
}


def header_of_the_zoo(path):
    header = eman2.header(path)
    np.testing.assert_array_equal(header["xform.align3d"], TURN)
    for name, value in ZOO.items():
        if name != "xform.align3d":
            assert header[name] == (pytest.approx(value) if name == "a_float" else value), name
    return header


def test_case_1_plain_floats(tmp_path):
    write_hdf(tmp_path / "a.hdf", [RAMP], 2.5)
    np.testing.assert_array_equal(eman2.read(tmp_path / "a.hdf"), RAMP)
    header = eman2.header(tmp_path / "a.hdf")
    assert [header[f"apix_{x}"] for x in "xyz"] == [2.5] * 3
    assert (tmp_path / "a.hdf").read_bytes()[8] == 0  # superblock


@pytest.mark.parametrize("bits", [-1, 0, 8, 12])
def test_case_2_headers_of_every_type_are_kept(tmp_path, bits):
    """All attributes pass EMAN2's eyes; those copied are the same bytes."""
    write_hdf(tmp_path / "a.hdf", [RAMP, RAMP + 1], 2.5, ZOO)
    outcome = compress_file(tmp_path / "a.hdf", tmp_path / "b.hdf", Compression(bits))
    assert outcome.lost == ()
    header = header_of_the_zoo(tmp_path / "b.hdf")
    before, after = (
        eman2.raw_attributes(tmp_path / "a.hdf"),
        eman2.raw_attributes(tmp_path / "b.hdf"),
    )
    assert all(before[f"EMAN.{name}"] == after[f"EMAN.{name}"] for name in ZOO)
    assert (tmp_path / "b.hdf").read_bytes()[8] == 0
    assert header["datatype"] == {-1: 7, 0: 7, 8: 2, 12: 4}[bits]
    assert (header["source_path"], header["source_n"]) == (str(tmp_path / "a.hdf"), 0)
    assert eman2.header(tmp_path / "b.hdf", 1)["source_n"] == 1
    assert (header["HostEndian"], header["ImageEndian"]) == ("little", "big")
    for name in ("is_complex", "is_complex_x", "is_complex_ri", "changecount"):
        assert header[name] == 0
    assert (header["minimum"], header["maximum"], header["mean"]) == (0, 255, 127.5)
    assert header["sigma"] == pytest.approx(RAMP.std(ddof=1))
    assert (header["all_int"], header["square_sum"]) == (1, pytest.approx((RAMP**2).sum()))
    assert header["mean_nonzero"] == pytest.approx(128)
    with h5py.File(tmp_path / "b.hdf") as file:
        dataset = file["MDF/images/0/image"]
        assert ("scale_factor" in dataset.attrs) == (bits > 0)
        if bits > 0:
            scaled = dataset[()] * dataset.attrs["scale_factor"] + dataset.attrs["add_offset"]
            np.testing.assert_allclose(scaled, RAMP, atol=1e-4)


def test_case_3_files_of_eman2(tmp_path, golden):
    """Its floats are compressed, its codes are kept, its headers stay as they are."""
    values = np.load(golden / "hdf_values.npz")
    for name in ("float_stack", "c5", "c8", "c10", "c12", "c16", "ints8", "zeros8", "image2d_6"):
        source, target = golden / "hdf" / f"{name}.hdf", tmp_path / f"{name}.hdf"
        with HdfReader(source) as reader:
            mapping, count = reader.mapping(0), len(reader)
        bits = mapping.bits if mapping else 16
        compress_file(source, target, Compression(bits), verify=True)
        for index in range(count):
            expected = values[f"{name}.hdf__{index}"]
            found = eman2.read(target, index, "fused")
            before, after = eman2.raw_attributes(source, index), eman2.raw_attributes(target, index)
            if mapping:
                np.testing.assert_array_equal(found, expected)
                assert before == after
            else:
                step = np.ptp(expected) / (2**16 - 2)
                assert np.abs(found - expected).max() <= 0.51 * step
                kept = {"class_ptcl_src", "class_ptcl_idxs", "zz_list", "zz_float"}
                kept &= {key.removeprefix("EMAN.") for key in before}
                assert all(before[f"EMAN.{key}"] == after[f"EMAN.{key}"] for key in kept)


def test_case_3_forms_that_only_eman2_writes(tmp_path):
    """Truth values as letters, unsigned numbers, transforms of 12 named numbers."""
    write_hdf(tmp_path / "a.hdf", [RAMP], 2.0)
    names = [f"{row}{column}" for row in range(3) for column in range(4)]
    forms = {
        "yes": np.array([84], "i1"),
        "no": np.array([70], "i1"),
        "big": np.array([4_000_000_000], "u4"),
        "double": np.array([0.1], "f8"),
        "none": np.zeros(0, "f4"),
        "turn": np.frombuffer(TURN.tobytes(), [(name, "<f4") for name in names]),
    }
    with h5py.File(tmp_path / "a.hdf", "r+") as file:
        for name, value in forms.items():
            file["MDF/images/0"].attrs[f"EMAN.{name}"] = value
    before = eman2.raw_attributes(tmp_path / "a.hdf")
    compress_file(tmp_path / "a.hdf", tmp_path / "a.hdf", Compression(8))
    after = eman2.raw_attributes(tmp_path / "a.hdf")
    assert all(before[f"EMAN.{name}"] == after[f"EMAN.{name}"] for name in forms)
    seen, ours = eman2.header(tmp_path / "a.hdf"), read_hdf(tmp_path / "a.hdf")[1]
    for header in (seen, ours):
        assert (header["yes"], header["no"], header["double"]) == (True, False, 0.1)
        np.testing.assert_array_equal(header["turn"], TURN)
    assert (seen["big"], ours["big"]) == (2**31 - 1, 4_000_000_000)
    assert (seen["none"], ours["none"]) == ([], [])


@pytest.mark.parametrize("bits", [8, 12, 0, -1])
@pytest.mark.parametrize("shape", [(1, 64), (2, 64), (7, 64), (5, 4, 64), (16, 16, 1), (64,)])
def test_case_17_thin_images_are_not_lost(tmp_path, shape, bits):
    image = np.arange(np.prod(shape), dtype=F).reshape(shape) - 9
    write_hdf(tmp_path / "a.hdf", [image], 1.0)
    compress_file(tmp_path / "a.hdf", tmp_path / "b.hdf", Compression(bits), verify=True)
    found = eman2.read(tmp_path / "b.hdf")
    header = eman2.header(tmp_path / "b.hdf")
    nz, ny, nx = (1, 1, 1, *shape)[-3:]
    assert (header["nz"], header["ny"], header["nx"]) == (nz, ny, nx)
    assert np.abs(found.reshape(shape) - image).max() <= (4 if bits == 8 else 0)


def test_case_18_a_stack_of_several_sizes(tmp_path, rng):
    shapes = [(5, 6, 7), (16, 16, 16), (3, 40, 20), (2, 9, 9), (10, 8, 64)]
    stack = [rng.normal(0, 1, shape).astype(F) for shape in shapes]
    write_hdf(tmp_path / "a.hdf", stack, 3.5)
    compress_file(tmp_path / "a.hdf", tmp_path / "b.hdf", Compression(8), threads=2)
    assert eman2.count(tmp_path / "b.hdf") == 5
    for index, image in enumerate(stack):
        assert np.abs(eman2.read(tmp_path / "b.hdf", index) - image).max() < 0.05
    with h5py.File(tmp_path / "b.hdf") as file:
        top = file["MDF/images"]
        assert sorted(top, key=int) == list("01234")
        assert top.attrs.get_id("imageid_max").dtype == np.int32
        # IMOD: one type of pixels in a file; numbers float32 or int32 in simple spaces
        assert {top[i]["image"].dtype.str for i in top} == {"|u1"}
        for name in ("nx", "ny", "nz"):
            assert top["0"].attrs.get_id(f"EMAN.{name}").dtype.str == "<i4"
        for name in ("apix_x", "minimum", "maximum", "mean", "stored_rendermin"):
            assert top["0"].attrs.get_id(f"EMAN.{name}").dtype.str == "<f4"
            assert top["0"].attrs.get_id(f"EMAN.{name}").shape == (1,)


def test_case_18_chimerax(tmp_path, rng):
    """ChimeraX goes through PyTables: children of /MDF/images, apix_x[0], rank 2 or 3."""
    tables = pytest.importorskip("tables")
    write_hdf(tmp_path / "a.hdf", list(rng.normal(0, 1, (2, 12, 20, 24)).astype(F)), 3.5)
    compress_file(tmp_path / "a.hdf", tmp_path / "b.hdf", Compression(10))
    with tables.open_file(tmp_path / "b.hdf") as file:
        for group in file.root.MDF.images:
            assert group._v_attrs["EMAN.apix_x"][0] == 3.5
            array = group.image
            assert array.shape == (12, 20, 24)
            np.testing.assert_array_equal(
                array[3:5, :, 2:9], eman2.codes(tmp_path / "b.hdf", group._v_name)[3:5, :, 2:9]
            )


def test_case_22_mrc(tmp_path, rng):
    volume = rng.integers(-5, 5, (5, 24, 32)).astype(np.int8)
    with mrcfile.new(tmp_path / "v.mrc", volume) as file:
        file.voxel_size = 2.0
        file.add_label("who made this")
    shutil.copy(tmp_path / "v.mrc", tmp_path / "v.mrcs")
    with mrcfile.open(tmp_path / "v.mrcs", "r+") as file:
        file.set_image_stack()

    def values(**options):
        source = tmp_path / options.pop("name", "v.mrc")
        compress_file(source, tmp_path / "o.hdf", Compression(8), **options)
        return [eman2.read(tmp_path / "o.hdf", i) for i in range(eman2.count(tmp_path / "o.hdf"))]

    (found,) = values()
    np.testing.assert_array_equal(found, volume)
    header = eman2.header(tmp_path / "o.hdf")
    assert (header["apix_x"], header["MRC.mode"], header["nz"]) == (2.0, 0, 5)
    assert any("who made this" in str(v) for k, v in header.items() if k.startswith("MRC.label"))
    np.testing.assert_array_equal(values(split=True), volume)
    np.testing.assert_array_equal(values(name="v.mrcs"), volume)
    assert eman2.header(tmp_path / "o.hdf", 3)["nz"] == 1
    np.testing.assert_array_equal(values(unsigned=True)[0], volume.view(np.uint8))
    cubes = rng.integers(-5, 5, (16, 8, 8)).astype(np.int8)
    with mrcfile.new(tmp_path / "w.mrcs", cubes) as file:
        file.set_image_stack()
    np.testing.assert_array_equal(values(name="w.mrcs"), cubes)  # as EMAN2
    np.testing.assert_array_equal(values(name="w.mrcs", split=False), cubes.reshape(2, 8, 8, 8))
    mrcfile.write(tmp_path / "x.mrcs", cubes.reshape(2, 8, 8, 8), overwrite=True)
    np.testing.assert_array_equal(values(name="x.mrcs"), cubes.reshape(2, 8, 8, 8))


@pytest.mark.parametrize("kind", ["i2", "u2", "f2", "f4"])
def test_mrc_modes(tmp_path, rng, kind):
    volume = rng.integers(0, 60, (3, 20, 30)).astype(kind)
    with mrcfile.new(tmp_path / "v.mrc") as file:
        file.set_data(volume)
        file.set_volume()
    compress_file(tmp_path / "v.mrc", tmp_path / "o.hdf", Compression(6))
    np.testing.assert_array_equal(eman2.read(tmp_path / "o.hdf"), volume.astype(F))


@pytest.mark.parametrize("nx", [30, 31])
def test_mrc_with_four_bits(tmp_path, rng, nx):
    values = rng.integers(0, 16, (3, 20, nx)).astype(np.uint8)
    even = np.pad(values, ((0, 0), (0, 0), (0, nx % 2)))
    packed = even[..., ::2] | even[..., 1::2] << 4
    with mrcfile.new(tmp_path / "v.mrc", np.zeros((3, 20, nx), np.int8)) as file:
        file.set_volume()
    raw = bytearray((tmp_path / "v.mrc").read_bytes()[:1024])
    raw[12:16] = struct.pack("<i", 101)
    (tmp_path / "v.mrc").write_bytes(bytes(raw) + packed.tobytes())
    np.testing.assert_array_equal(read_mrc(tmp_path / "v.mrc")[0], values)
    compress_file(tmp_path / "v.mrc", tmp_path / "o.hdf", Compression(4))
    np.testing.assert_array_equal(eman2.read(tmp_path / "o.hdf"), values)
    assert eman2.limits(tmp_path / "o.hdf") == (0, 15, 0)


@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "f4"])
def test_case_22_tiff_rows_are_reversed(tmp_path, rng, kind):
    frames = rng.integers(0, 30, (4, 25, 40)).astype(kind)
    options = {"photometric": "minisblack"}
    tifffile.imwrite(
        tmp_path / "m.tif", frames, **options, compression="zlib" if kind == "u1" else None
    )
    compress_file(tmp_path / "m.tif", tmp_path / "o.hdf", Compression(5), threads=2)
    assert eman2.count(tmp_path / "o.hdf") == 4
    for index, frame in enumerate(frames):
        np.testing.assert_array_equal(eman2.read(tmp_path / "o.hdf", index), frame[::-1])
    assert eman2.header(tmp_path / "o.hdf")["TIFF.ImageWidth"] == 40
    tifffile.imwrite(tmp_path / "w.tif", frames[0], photometric="miniswhite")
    compress_file(tmp_path / "w.tif", tmp_path / "o.hdf", Compression(6))
    np.testing.assert_array_equal(eman2.read(tmp_path / "o.hdf"), -frames[0, ::-1].astype(F))


@pytest.mark.parametrize(
    "options",
    [{}, {"rowsperstrip": 7}, {"rowsperstrip": 7, "compression": "zlib"}, {"tile": (16, 16)}],
    ids=["one block", "strips", "zlib", "tiles"],
)
def test_truncated_tiff_files_are_refused(tmp_path, rng, options):
    """Tifffile itself leaves out images, or fills in zeros."""
    frames = rng.integers(1, 100, (6, 40, 44)).astype("u2")
    tifffile.imwrite(tmp_path / "m.tif", frames, photometric="minisblack", **options)
    raw = (tmp_path / "m.tif").read_bytes()

    def read(name):
        with TiffReader(tmp_path / name) as reader:
            return [reader.read(index)[::-1] for index in range(len(reader))]

    np.testing.assert_array_equal(read("m.tif"), frames)
    refused = 0
    for length in range(0, len(raw), 251):
        (tmp_path / "c.tif").write_bytes(raw[:length])
        try:
            found = read("c.tif")
        except InputError:
            refused += 1
        else:  # only a text at the end is missing
            np.testing.assert_array_equal(found, frames)
    assert refused > 0.95 * len(raw) / 251
    (tmp_path / "c.tif").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InputError) as failure:
        compress_file(tmp_path / "c.tif", tmp_path / "o.hdf")
    assert str(failure.value).count("c.tif") == 1
    assert not (tmp_path / "o.hdf").exists()


@pytest.mark.parametrize("kind", ["?", "f2", "f8", ">u2"])
def test_tiff_of_other_types(tmp_path, rng, kind):
    frames = rng.integers(0, 2, (3, 25, 41)).astype(kind)
    options = {"photometric": "minisblack", "bigtiff": True}
    tifffile.imwrite(tmp_path / "m.frames", frames, byteorder=">", **options)
    compress_file(tmp_path / "m.frames", tmp_path / "o.hdf", Compression(5))
    for index, frame in enumerate(frames):
        np.testing.assert_array_equal(eman2.read(tmp_path / "o.hdf", index), frame[::-1])


@pytest.mark.parametrize("order", ["<", ">"])
def test_spider(tmp_path, rng, order):
    images = rng.normal(0, 1, (3, 10, 16)).astype(F)

    def header(stack):
        fields = np.zeros(256, F)
        fields[[0, 1, 4, 11, 12, 21, 22]] = 1, 10, 1, 16, 16, 1024, 64
        fields[[23, 25]] = (2, 3) if stack else (0, 0)
        fields[37] = 1.5
        return fields.astype(f"{order}f4").tobytes()

    data = [image.astype(f"{order}f4").tobytes() for image in images]
    (tmp_path / "one.dat").write_bytes(header(False) + data[0])
    (tmp_path / "all.spi").write_bytes(header(True) + b"".join(header(False) + d for d in data))
    with open_input(tmp_path / "one.dat") as found:
        np.testing.assert_array_equal(found.image(0).read((slice(0, 10),)), images[0])
    compress_file(tmp_path / "all.spi", tmp_path / "o.hdf", Compression(0))
    assert eman2.header(tmp_path / "o.hdf")["apix_y"] == 1.5
    for index, image in enumerate(images):
        np.testing.assert_array_equal(eman2.read(tmp_path / "o.hdf", index), image)
    (tmp_path / "short.spi").write_bytes((tmp_path / "all.spi").read_bytes()[:-10])
    with pytest.raises(InputError, match="truncated"):
        compress_file(tmp_path / "short.spi", tmp_path / "o.hdf")


def test_em_volumes(tmp_path, rng):
    volume = rng.integers(0, 200, (6, 7, 8)).astype(np.int16)
    emfile.write(tmp_path / "v.em", volume)
    compress_file(tmp_path / "v.em", tmp_path / "o.hdf", Compression(8))
    np.testing.assert_array_equal(eman2.read(tmp_path / "o.hdf"), volume)


def test_case_24_regions(tmp_path, rng):
    image = rng.normal(5, 1, (20, 30, 40)).astype(F)
    write_hdf(tmp_path / "a.hdf", [image], 1.0)
    compress_file(tmp_path / "a.hdf", tmp_path / "b.hdf", Compression(8))
    whole = eman2.read(tmp_path / "b.hdf", order="fused")
    with HdfReader(tmp_path / "b.hdf") as reader:
        np.testing.assert_array_equal(
            reader.read_region(0, (3, 4, 5), (6, 7, 8)), whole[3:9, 4:11, 5:13]
        )
        part = reader.read_region(0, (-2, 25, 36), (5, 10, 10))
    expected = np.zeros((5, 10, 10), F)
    expected[2:, :5, :4] = whole[:3, 25:, 36:]
    np.testing.assert_array_equal(part, expected)  # EMAN2 fills with the lowest density


def foreign(path, **dataset):
    image = np.arange(300 * 310).reshape(300, 310) % 251
    with h5py.File(path, "w", libver="latest") as file:
        group = file.create_group("MDF/images/0")
        file["MDF/images"].attrs["imageid_max"] = 0  # scalar int64
        file["MDF/images"].attrs["IMOD.PixelSpacing"] = np.array([4.5])
        group.create_dataset("image", data=image.astype(dataset.pop("dtype", "f4")), **dataset)
        group.attrs["EMAN.nx"] = 310
        group.attrs["EMAN.ptcl_repr"] = 12
        group.attrs["EMAN.comment"] = "variable length"
        group.attrs["EMAN.score"] = np.float64(0.25)
        group.attrs["EMAN.doubles"] = np.array([0.5, 1.5, 2.5])
        group.attrs["EMAN.names"] = ["several", "texts"]
        group.attrs["TiltAngle"] = np.float32(12.5)
    return image


@pytest.mark.parametrize(
    "dataset",
    [
        {"chunks": (256, 256), "compression": 9, "shuffle": True, "fletcher32": True},
        {"dtype": ">f4"},
        {"dtype": ">i2", "chunks": (300, 1)},
        {"compression": "lzf", "dtype": "u2"},
    ],
)
def test_case_25_files_of_other_programs(tmp_path, dataset):
    image = foreign(tmp_path / "a.hdf", **dict(dataset))
    outcome = compress_file(tmp_path / "a.hdf", tmp_path / "b.hdf", Compression(8), verify=True)
    np.testing.assert_array_equal(eman2.read(tmp_path / "b.hdf"), image)
    header = eman2.header(tmp_path / "b.hdf")
    assert (header["nx"], header["ptcl_repr"], header["comment"]) == (310, 12, "variable length")
    assert (header["score"], header["doubles"]) == (0.25, [0.5, 1.5, 2.5])
    assert (header["apix_x"], header["TiltAngle"]) == (4.5, 12.5)
    assert outcome.lost == ("EMAN.names",)
    assert eman2.count(tmp_path / "b.hdf") == 1


def test_case_25_legacy_and_bare_files(tmp_path):
    with h5py.File(tmp_path / "old.hdf", "w") as file:
        file.attrs["num_dataset"] = np.int32(2)
        for index in range(2):
            file[str(index)] = RAMP + index
            file[str(index)].attrs["apix_x"] = F(2.5)
    compress_file(tmp_path / "old.hdf", tmp_path / "b.hdf", Compression(10))
    np.testing.assert_array_equal(eman2.read(tmp_path / "b.hdf", 1), RAMP + 1)
    assert eman2.header(tmp_path / "b.hdf")["apix_x"] == 2.5
    with h5py.File(tmp_path / "bare.h5", "w") as file:
        file["exchange/data"] = np.stack([RAMP, RAMP * 2])[:, None]  # four axes: two images
    compress_file(tmp_path / "bare.h5", tmp_path / "b.hdf", Compression(10))
    np.testing.assert_array_equal(eman2.read(tmp_path / "b.hdf", 1), RAMP * 2)


def test_case_27_lists(tmp_path, rng, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stack = list(rng.integers(0, 200, (4, 12, 12)).astype(F))
    write_hdf("a.hdf", stack, 2.0, [{"own": i} for i in range(4)])
    entries = [
        LstEntry(tmp_path / "a.hdf", 2, {"score": -0.5, "xform.align3d": TURN}),
        LstEntry(tmp_path / "a.hdf", 0),
        LstEntry(tmp_path / "a.hdf", 2, {"own": 9}),
    ]
    write_lst("s.lst", entries)
    raw = (tmp_path / "s.lst").read_bytes()
    first, comment, length, body = raw.split(b"\n", 3)
    assert (first, comment[:1], length[:2]) == (b"#LSX", b"#", b"# ")
    each = int(length[2:])
    assert len(body) == 3 * each
    assert all(body[i * each + each - 1 :][:1] == b"\n" for i in range(3))
    assert body.split(b"\t")[2].startswith(
        b'{"score":-0.5,"xform.align3d":{"__class__":"Transform"'
    )
    found = read_lst("s.lst")
    assert [(e.path, e.index) for e in found] == [(e.path, e.index) for e in entries]
    np.testing.assert_allclose(found[0].header["xform.align3d"], TURN, atol=1e-6)
    before = (tmp_path / "s.lst").stat().st_mtime_ns
    compress_file("s.lst", "s.hdf", Compression(8))
    assert (tmp_path / "s.lst").stat().st_mtime_ns == before
    for index, entry in enumerate(entries):
        np.testing.assert_array_equal(eman2.read("s.hdf", index), stack[entry.index])
    header = eman2.header("s.hdf", 0)
    assert (header["score"], header["own"], header["data_n"]) == (-0.5, 2, 2)
    np.testing.assert_allclose(header["xform.align3d"], TURN, atol=1e-6)
    assert eman2.header("s.hdf", 2)["own"] == 9
    with pytest.raises(InputError, match="cannot stand in a list"):
        write_lst("t.lst", [LstEntry(tmp_path / "a\tb.hdf", 0)])


def test_case_27_foreign_objects_in_dictionaries_stay(tmp_path):
    write_json(tmp_path / "a.json", {"x": {"__pickle__": "cos\nsystem\n."}, "n": 3})
    items = read_json(tmp_path / "a.json")
    assert items["x"] == {"__pickle__": "cos\nsystem\n."}
    write_json(tmp_path / "b.json", items)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize("bits", [0, 5, 12])
def test_h5dump_reads_the_codes(tmp_path, rng, bits):
    """The command of the HDF5 library itself, where it is installed."""
    if shutil.which("h5dump") is None:
        pytest.skip("h5dump is not installed")
    image = rng.normal(0, 1, (3, 70, 600)).astype(F)
    write_hdf(tmp_path / "a.hdf", [image, image[0]], 2.0, ZOO)
    compress_file(tmp_path / "a.hdf", tmp_path / "b.hdf", Compression(bits), threads=2)
    line = ["h5dump", "-d", "/MDF/images/0/image", "-b", "LE", "-o", "raw", "b.hdf"]
    subprocess.run(line, cwd=tmp_path, check=True, capture_output=True)
    codes = eman2.codes(tmp_path / "b.hdf")
    np.testing.assert_array_equal(
        np.fromfile(tmp_path / "raw", codes.dtype).reshape(codes.shape), codes
    )
    line = ["h5dump", "-H", "-p", "-A", "b.hdf"]
    said = subprocess.run(line, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert "COMPRESSION DEFLATE { LEVEL 1 }" in said
    assert ("PREPROCESSING SHUFFLE" in said) == (bits != 5)
    assert "SUPERBLOCK_VERSION 0" in subprocess.run(
        ["h5dump", "-B", "-H", "b.hdf"], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout  # fmt: skip


def test_decompression(tmp_path, rng):
    stack = [rng.normal(0, 1, (10, 20, 24)).astype(F) for _ in range(3)]
    write_hdf(tmp_path / "a.hdf", stack, 3.5, {"origin_x": 7.0})
    compress_file(tmp_path / "a.hdf", tmp_path / "b.hdf", Compression(6))
    seen = [read_hdf(tmp_path / "b.hdf", i)[0] for i in range(3)]
    compress_file(tmp_path / "b.hdf", tmp_path / "c.hdf", Compression(-1), verify=True)
    for index, image in enumerate(seen):
        np.testing.assert_array_equal(eman2.codes(tmp_path / "c.hdf", index), image)
        assert "stored_renderbits" not in eman2.header(tmp_path / "c.hdf", index)
    decompress_mrc(tmp_path / "b.hdf", tmp_path / "s.mrc")
    with mrcfile.open(tmp_path / "s.mrc") as file:
        np.testing.assert_array_equal(file.data, seen)
        assert file.is_volume_stack()
        assert float(file.voxel_size.x) == 3.5
        assert file.header.origin.x == 7.0
        assert file.header.dmin == np.min(seen)
        assert file.header.rms == pytest.approx(np.std(seen), rel=1e-5)
    assert mrcfile.validate(tmp_path / "s.mrc")
    write_hdf(tmp_path / "i.hdf", [RAMP, RAMP + 1], 2.0)
    decompress_mrc(tmp_path / "i.hdf", tmp_path / "i.mrcs")
    with mrcfile.open(tmp_path / "i.mrcs") as file:
        assert file.is_image_stack()
        np.testing.assert_array_equal(file.data[1], RAMP + 1)
    write_hdf(tmp_path / "d.hdf", [RAMP, RAMP[:8]], 2.0)
    with pytest.raises(InputError, match="one shape"):
        decompress_mrc(tmp_path / "d.hdf", tmp_path / "d.mrc")
    assert not (tmp_path / "d.mrc").exists()
