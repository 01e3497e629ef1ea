"""The lazy stack: order, laziness, and one sentence for everything that can be wrong."""

import tracemalloc

import h5py
import numpy as np
import pytest

from sptjax._errors import InputError
from sptjax.io import HdfWriter, open_stack, read_lst, read_volume, write_em, write_hdf, write_mrc


@pytest.fixture
def files(tmp_path, rng):
    """Six 8³ volumes over three formats, and their values in order."""
    values = rng.normal(size=(6, 8, 8, 8)).astype(np.float32)
    write_hdf(tmp_path / "a.hdf", values[:3], 4.0, [{"id": i} for i in range(3)])
    write_mrc(tmp_path / "b.mrcs", values[3:5].reshape(16, 8, 8), 4.0)
    write_em(tmp_path / "c.em", values[5])
    return [tmp_path / name for name in ("a.hdf", "b.mrcs", "c.em")], values


def test_one_stack_over_all_formats(files):
    paths, values = files
    with open_stack(paths) as stack:
        assert (len(stack), stack.box, stack.apix) == (6, 8, 4.0)
        order = [5, 0, 4, 4, 1, 3, 2]
        found = stack.read(order)
        np.testing.assert_array_equal(found, values[order], strict=True)
        assert stack.name(4) == f"{paths[1]} image 1"
        assert stack.header(2)["id"] == 2
        batches = list(stack.batches(4))
        assert [indices.tolist() for indices, _ in batches] == [[0, 1, 2, 3], [4, 5]]
        np.testing.assert_array_equal(np.concatenate([v for _, v in batches]), values)
        assert stack.read([]).shape == (0, 8, 8, 8)
        for bad in (6, -1):
            with pytest.raises(InputError, match=f"no volume {bad}"):
                stack.read([0, bad])


def test_one_image_of_a_file(files):
    paths, values = files
    for spec in (f"{paths[0]}:2", f"{paths[0]}@2"):
        np.testing.assert_array_equal(open_stack(spec).read([0])[0], values[2])
    mixed = open_stack([f"{paths[1]}:1", paths[0], f"{paths[0]}:0"])
    np.testing.assert_array_equal(mixed.read(range(5)), values[[4, 0, 1, 2, 0]])
    with pytest.raises(InputError, match="no image 3"):
        open_stack(f"{paths[0]}:3")
    odd = paths[0].with_name("name:1")  # a file may be called like a specification
    odd.write_bytes(paths[0].read_bytes())
    assert len(open_stack(odd)) == 3


def test_reads_only_what_is_asked(tmp_path):
    """40 volumes of 128 KiB; two of them must cost about two of them."""
    path = tmp_path / "a.hdf"
    with HdfWriter(path, 1.0) as writer:
        for index in range(40):
            writer.append(np.full((32, 32, 32), index, np.float32))
    write_mrc(tmp_path / "a.mrcs", np.zeros((40 * 32, 32, 32)), 1.0)
    for name in ("a.hdf", "a.mrcs"):
        tracemalloc.start()
        stack = open_stack(tmp_path / name)
        opened = tracemalloc.get_traced_memory()[1]
        found = stack.read([7, 31])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(stack) == 40
        assert opened < 1.5 * 32**3 * 4  # no volume was read on opening
        assert peak < 5 * 32**3 * 4
        if name == "a.hdf":
            assert found[:, 0, 0, 0].tolist() == [7, 31]


def test_opening_looks_at_headers_only(tmp_path):
    """Unreadable voxels go unnoticed on opening and are named on reading."""
    path = tmp_path / "a.hdf"
    with h5py.File(path, "w") as file:
        data = np.random.default_rng(0).normal(size=(8, 8, 8))
        file["MDF/images/0/image"] = np.ones((8, 8, 8))
        made = file.create_dataset("MDF/images/1/image", data=data, compression="gzip")
        chunk = made.id.get_chunk_info(0)
    raw = bytearray(path.read_bytes())
    raw[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    path.write_bytes(raw)
    stack = open_stack(path)
    assert (len(stack), stack.apix) == (2, None)
    with pytest.raises(InputError, match=r"a\.hdf image 1 cannot be read"):
        stack.read([0, 1])


@pytest.mark.parametrize(
    ("shapes", "options", "words"),
    [
        ([], {}, "no images"),
        ([(8, 8, 10)], {}, r"image 0 is not a cubic volume: its size is 10 x 8 x 8"),
        ([(8, 8)], {}, "image 0 is not a cubic volume"),
        ([(8, 8, 8), (10, 10, 10)], {}, "image 1 has a box of 10 voxels, but .* have 8"),
        ([(9, 9, 9)], {}, "odd box of 9"),
        ([(9, 9, 9)], {"even": False}, None),
        ([(6, 6, 6)], {}, "at least 8"),
        ([(6, 6, 6)], {"min_box": 4}, None),
    ],
)
def test_boxes_are_checked(tmp_path, shapes, options, words):
    path = tmp_path / "a.hdf"
    write_hdf(path, [np.ones(shape) for shape in shapes], 1.0)
    if words is None:
        assert open_stack(path, **options).box == shapes[0][0]
        return
    with pytest.raises(InputError, match=words) as error:
        open_stack(path, **options)
    assert "a.hdf" in str(error.value)


def test_other_mistakes_give_a_sentence(tmp_path, files):
    paths, _ = files
    (tmp_path / "cut.hdf").write_bytes(paths[0].read_bytes()[:4000])
    (tmp_path / "cut.mrc").write_bytes(paths[1].read_bytes()[:4000])
    (tmp_path / "note.txt").write_text("hello")
    write_hdf(tmp_path / "fine.hdf", np.ones((8, 8, 8)), 2.0)
    for spec, words in (
        (tmp_path / "absent.hdf", "absent.hdf does not exist"),
        (tmp_path / "absent", "absent does not exist"),
        (f"{tmp_path}/absent.hdf:3", "absent.hdf does not exist"),
        (tmp_path / "cut.hdf", "cut.hdf is truncated"),
        (tmp_path / "cut.mrc", "cut.mrc is truncated"),
        (tmp_path / "note.txt", "format of .*note.txt is not known"),
        ([paths[0], tmp_path / "fine.hdf"], "fine.hdf has a voxel size of 2 A"),
        ([], "no images"),
    ):
        with pytest.raises(InputError, match=words):
            open_stack(spec)


def test_a_file_without_extension_is_recognised(tmp_path, files):
    paths, values = files
    (tmp_path / "noext").write_bytes(paths[0].read_bytes())
    np.testing.assert_array_equal(open_stack(tmp_path / "noext").read([1])[0], values[1])


def test_a_file_that_changes_is_noticed(files):
    paths, _ = files
    stack = open_stack(paths[0])
    write_hdf(paths[0], np.ones((3, 10, 10, 10)), 4.0)
    with pytest.raises(InputError, match="image 1 changed"):
        stack.read([1])


def test_read_volume(files, tmp_path):
    paths, values = files
    volume, apix, header = read_volume(f"{paths[0]}:1")
    np.testing.assert_array_equal(volume, values[1], strict=True)
    assert (apix, header["id"]) == (4.0, 1)
    assert read_volume(paths[2])[1] is None
    with pytest.raises(InputError, match=r"holds 3 images; name one of them as .*a\.hdf:0"):
        read_volume(paths[0])
    write_hdf(tmp_path / "flat.hdf", [np.ones((8, 8))], 1.0)
    with pytest.raises(InputError, match="not a volume"):
        read_volume(tmp_path / "flat.hdf")


def test_lists(golden, tmp_path, files):
    entries = read_lst(golden / "hdf" / "set.lst")
    assert [(entry.index, entry.path.name) for entry in entries] == [
        (2, "float_stack.hdf"),
        (0, "float_stack.hdf"),
    ]
    assert entries[0].header == {"score": -0.25}
    assert entries[0].path.exists()
    paths, values = files
    pose = '{"xform.align3d":{"__class__":"Transform","matrix":"[1,0,0,5,0,1,0,6,0,0,1,7]"}}'
    (tmp_path / "s.lst").write_text(
        f"#LSX\n# comment\n# 60\n2\ta.hdf\t{pose}\n0\t{paths[1]}\n1\ta.hdf   \n"
    )
    stack = open_stack(tmp_path / "s.lst")
    np.testing.assert_array_equal(stack.read([0, 1, 2]), values[[2, 3, 1]])
    np.testing.assert_array_equal(stack.header(0)["xform.align3d"][:, 3], [5, 6, 7])
    assert "xform.align3d" not in stack.header(2)
    assert stack.header(0)["id"] == 2
    np.testing.assert_array_equal(open_stack(f"{tmp_path / 's.lst'}:1").read([0])[0], values[3])
    (tmp_path / "old.lst").write_text(f"#LST\n1 {paths[0]}\n")
    np.testing.assert_array_equal(open_stack(tmp_path / "old.lst").read([0])[0], values[1])
    for text, words in (
        ("0\ta.hdf\n", "not an EMAN2 list"),
        ("#LSX\nx\ta.hdf\n", "line 2"),
        ("#LSX\n3\n", "line 2"),
        ("#LSX\n3\ta.hdf\t{'a': __import__('os')}\n", "line 2"),
        ("#LSX\n", "no images"),
    ):
        (tmp_path / "bad.lst").write_text(text)
        with pytest.raises(InputError, match=words):
            open_stack(tmp_path / "bad.lst")


def test_real_particles(shared_data):
    stack = open_stack(shared_data / "real_ribosomes" / "particles.hdf")
    assert (len(stack), stack.box, stack.apix) == (40, 32, 12.0)
    assert np.isfinite(stack.read([0, 39])).all()
