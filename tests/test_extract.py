"""Boxes out of planted tomograms: images, places, units, edges, hands, memory, and the script."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import tracemalloc

import mrcfile
import numpy as np
import pytest
import script_runs
import table_images
from scipy.spatial.transform import Rotation
from table_images import APIX, PROGRAMS, SIZE

from sptjax import extract, io, tables, wedge
from sptjax._errors import InputError
from sptjax.io.tomogram import Tomogram, read_tilts

BOX = 24
PLAIN = extract.Cut(BOX, normalise="none")


def noise(rng, shape=tuple(SIZE[::-1])):
    return rng.normal(size=shape).astype(np.float32)


def table(places, unit=APIX, **more):
    count = len(places)
    turn = np.repeat(np.eye(3)[None], count, 0)
    more = {"coordinate_apix": np.full(count, unit), "apix": np.full(count, APIX)} | more
    return tables.ParticleTable(
        turn, np.zeros((count, 3)), coordinate=np.asarray(places, float), **more
    )


def cut(found, path, how=PLAIN, **more):
    boxes = extract.plan(found, {"": path}, how, **more)
    return boxes, np.stack(list(extract.extract(boxes)))


def expected(boxes, box=BOX, binning=1):
    """The reference as the poses of the boxes place it, averaged over binned voxels."""
    fine = (np.arange(box * binning) - (binning - 1) / 2) / binning - box // 2
    points = np.stack(np.meshgrid(fine, fine, fine, indexing="ij")[::-1], -1)
    for turn, shift in zip(boxes.table.rotation, boxes.table.shift):
        values = table_images.density((points @ turn.T + shift) * binning)
        yield values.reshape(box, binning, box, binning, box, binning).mean((1, 3, 5))


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_programs_numbers_give_the_image(tmp_path, name):
    """A phantom planted by a program's documented rules is where we say, turned as we say."""
    planted = PROGRAMS[name](tmp_path)
    volume = table_images.tomogram(planted.matrices, planted.places)
    path = tmp_path / "tomo.mrc"
    io.write_mrc(path, volume, APIX)
    found = tables.read(planted.path)
    files = dict.fromkeys([""] if found.tomogram is None else found.tomogram, path)
    boxes = extract.plan(found, files, PLAIN)
    for got, wanted in zip(extract.extract(boxes), expected(boxes)):
        near = wanted > 0.01  # the neighbour reaches into the corner of the box
        assert near.sum() > 500
        np.testing.assert_allclose(got[near], wanted[near], atol=2e-4)


@pytest.mark.parametrize(
    ("name", "binning"),
    [*((name, 1) for name in PROGRAMS), ("relion4", 2), ("dynamo", 2), ("csv", 2), ("relion5", 3)],
)
def test_fractions_of_a_voxel_go_into_the_pose(tmp_path, name, binning):
    centres = table_images.CENTRES + np.array([[0.3, -0.4, 0.45], [-0.2, 0.49, 0.1]])
    planted = PROGRAMS[name](tmp_path, centres=centres)
    path = tmp_path / "tomo.mrc"
    io.write_mrc(path, table_images.tomogram(planted.matrices, planted.places), APIX)
    found = tables.read(planted.path)
    files = dict.fromkeys([""] if found.tomogram is None else found.tomogram, path)
    how = extract.Cut({1: 24, 2: 12, 3: 8}[binning], binning, normalise="none")
    boxes = extract.plan(found, files, how)
    for got, wanted in zip(extract.extract(boxes), expected(boxes, how.box, binning)):
        near = wanted > 0.01
        np.testing.assert_allclose(got[near], wanted[near], atol=2e-4)
    assert boxes.apix == pytest.approx(APIX * binning)


def test_recentred_boxes_have_the_reference_in_their_middle(tmp_path):
    planted = PROGRAMS["stopgap"](tmp_path)
    path = tmp_path / "tomo.mrc"
    io.write_mrc(path, table_images.tomogram(planted.matrices, planted.places), APIX)
    how = dataclasses.replace(PLAIN, recentre=True)
    boxes = extract.plan(tables.read(planted.path), {"1": path}, how)
    assert np.abs(boxes.table.shift).max() <= 0.5 * 3**0.5 + 1e-6
    for got, wanted in zip(extract.extract(boxes), expected(boxes)):
        np.testing.assert_allclose(got[wanted > 0.01], wanted[wanted > 0.01], atol=2e-4)


def test_boxes_are_the_voxels_around_their_centre(tmp_path, rng):
    volume, places = noise(rng), [[30, 31, 25], [12, 12, 12], [51, 47, 43]]
    io.write_mrc(tmp_path / "t.mrc", volume, APIX)
    boxes, got = cut(table(places), tmp_path / "t.mrc")
    for cube, (x, y, z) in zip(got, places):
        wanted = volume[z - 12 : z + 12, y - 12 : y + 12, x - 12 : x + 12]
        np.testing.assert_allclose(cube, wanted, atol=1e-5)
    np.testing.assert_array_equal(boxes.table.shift, 0)
    np.testing.assert_array_equal(boxes.inside, 1)


@pytest.mark.parametrize("kind", ["i1", "i2", "f2"])
def test_other_types_of_values(tmp_path, rng, kind):
    volume = (noise(rng) * 20).astype(kind)
    with mrcfile.new(tmp_path / "t.mrc") as file:
        file.set_data(volume)
        file.voxel_size = APIX
    _, got = cut(table([[30, 31, 25]]), tmp_path / "t.mrc")
    np.testing.assert_array_equal(got[0], volume[13:37, 19:43, 18:42])


def test_edges_are_filled_with_the_local_mean(tmp_path, rng):
    volume = noise(rng) + 7
    io.write_mrc(tmp_path / "t.mrc", volume, APIX)
    boxes, got = cut(table([[3, 30, 55]]), tmp_path / "t.mrc")
    part = volume[43:56, 18:42, 0:15]
    np.testing.assert_array_equal(got[0][:13, :, 9:], part)
    outside = np.ones_like(got[0], bool)
    outside[:13, :, 9:] = False
    np.testing.assert_allclose(got[0][outside], part.mean(), rtol=1e-6)
    assert boxes.inside[0] == pytest.approx(part.size / BOX**3)


def test_normalisation_and_contrast(tmp_path, rng):
    volume = noise(rng) * 3 + 7
    io.write_mrc(tmp_path / "t.mrc", volume, APIX)
    for how in ("box", "edge"):
        settings = extract.Cut(12, 2, normalise=how, invert=True)
        cube = cut(table([[30, 30, 28]]), tmp_path / "t.mrc", settings)[1][0].astype(float)
        binned = np.zeros((12, 12, 12))
        start = np.array([28, 30, 30]) - 12
        for k in np.ndindex(12, 12, 12):  # slow definition
            z, y, x = start + 2 * np.array(k)
            binned[k] = volume[z : z + 2, y : y + 2, x : x + 2].astype(float).mean()
        inside = np.zeros((12, 12, 12), bool)
        inside[1:-1, 1:-1, 1:-1] = True
        level = binned.mean() if how == "box" else binned[~inside].mean()
        np.testing.assert_allclose(cube, -(binned - level) / binned.std(), atol=1e-5)


def test_a_constant_box_is_zero_and_not_nan(tmp_path):
    io.write_mrc(tmp_path / "t.mrc", np.full((40, 40, 40), 3.7), APIX)
    _, got = cut(table([[20, 20, 20]]), tmp_path / "t.mrc", extract.Cut(BOX))
    np.testing.assert_array_equal(got, 0)


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_the_hand_of_the_table_is_kept(tmp_path, axis):
    """The file is a mirror image of what the table means: boxes come back as if it were not."""
    planted = PROGRAMS["relion3.1"](tmp_path)
    volume = table_images.tomogram(planted.matrices, planted.places)
    mirrored = np.flip(volume, "zyx".index(axis))
    io.write_mrc(tmp_path / "right.mrc", volume, APIX)
    io.write_mrc(tmp_path / "wrong.mrc", mirrored, APIX)
    found = dataclasses.replace(tables.read(planted.path), tomogram=None)
    _, right = cut(found, tmp_path / "right.mrc")
    turned = dataclasses.replace(PLAIN, flip=axis)
    _, back = cut(found, tmp_path / "wrong.mrc", turned)
    np.testing.assert_array_equal(back, right)
    _, wrong = cut(found, tmp_path / "wrong.mrc")
    assert np.abs(wrong - right).max() > 0.5


def test_units_of_coordinates(tmp_path, rng):
    """Voxels of another size, centred angstrom with the file's or RELION's own size."""
    volume = noise(rng)
    io.write_mrc(tmp_path / "t.mrc", volume, APIX)
    place = np.array([[30.0, 31, 25]])
    wanted = cut(table(place), tmp_path / "t.mrc")[1]
    fine = table(place * 4, unit=APIX / 4)
    centred = table((place - SIZE / 2) * APIX, unit=APIX / 4, centred=True)
    taller = {"": np.array([64, 60, 60]) * APIX}  # RELION's tomogram has more sections
    padded = table((place - [32, 30, 30]) * APIX, unit=APIX / 4, centred=True, extents=taller)
    unknown = dataclasses.replace(table(place), coordinate_apix=None)
    for found in (fine, centred, padded, unknown):
        np.testing.assert_array_equal(cut(found, tmp_path / "t.mrc")[1], wanted)
    with pytest.raises(InputError, match=r"1 of 1 particles lie outside .* give --coordinate_apix"):
        cut(table(place * 4), tmp_path / "t.mrc")
    with pytest.raises(InputError, match="holds no coordinates"):
        cut(dataclasses.replace(table(place), coordinate=None), tmp_path / "t.mrc")


def test_shifts_are_scaled_to_the_voxels_of_the_boxes(tmp_path, rng):
    io.write_mrc(tmp_path / "t.mrc", noise(rng), APIX)
    found = dataclasses.replace(table([[30, 31, 25]]), shift=np.array([[2.0, 4.0, -6.0]]))
    how = extract.Cut(12, 2)
    for apix, factor in ((APIX, 0.5), (4 * APIX, 2.0), (None, 0.5)):
        size = None if apix is None else np.full(1, apix)
        boxes = extract.plan(dataclasses.replace(found, apix=size), {"": tmp_path / "t.mrc"}, how)
        rest = (np.array([30, 31, 25]) - boxes.table.coordinate[0]) / 2
        got = boxes.table.shift[0] + rest
        np.testing.assert_allclose(got, np.array([2, 4, -6]) * factor, atol=1e-12)


def test_order_is_the_tables_whatever_the_batches(tmp_path, rng):
    """Three tomograms in turn; batches of one, a few, and all."""
    volumes = [noise(rng) for _ in range(3)]
    for i, volume in enumerate(volumes):
        io.write_mrc(tmp_path / f"TS_{i}.mrc", volume, APIX)
    places = rng.integers(12, 44, (11, 3))
    which = np.arange(11) % 3
    found = table(places, tomogram=tables.names([f"TS_{i}" for i in which]))
    files = extract.match(list(found.tomogram), sorted(tmp_path.glob("*.mrc")), "--tomograms")
    boxes = extract.plan(found, files, PLAIN)
    for size in (1, 4 * 4 * BOX**3, 1 << 30):
        for i, cube in enumerate(extract.extract(boxes, batch_bytes=size)):
            x, y, z = places[i]
            wanted = volumes[which[i]][z - 12 : z + 12, y - 12 : y + 12, x - 12 : x + 12]
            np.testing.assert_array_equal(cube, wanted)
    io.write_mrc(tmp_path / "TS_2.mrc", volumes[2], 5.5)
    with pytest.raises(InputError, match=r"voxels of 5\.5 A, other tomograms 5 A"):
        extract.plan(found, files, PLAIN)


def test_a_tomogram_larger_than_memory_is_never_read_whole(tmp_path):
    """16 GB on paper: a sparse file, of which only the boxes are touched."""
    edge, path = 1600, tmp_path / "huge.mrc"
    with mrcfile.new(path) as file:
        file.set_data(np.zeros((1, 1, 1), np.float32))
        file.set_volume()
    header = np.memmap(path, "<i4", "r+", shape=(56,))
    header[:3] = header[7:10] = edge
    header[10:13].view("<f4")[:] = edge * APIX
    header.flush()
    with open(path, "r+b") as raw:
        raw.truncate(1024 + 4 * edge**3)
        raw.seek(1024 + 4 * (1400 * edge**2 + 800 * edge + 700))
        raw.write(np.float32(5).tobytes())
    tracemalloc.start()
    _, got = cut(table([[700, 800, 1400], [20, 30, 40]]), path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert got[0, 12, 12, 12] == 5
    assert np.count_nonzero(got) == 1
    assert peak < 20e6


def test_refusals(tmp_path, rng):
    io.write_mrc(tmp_path / "t.mrc", noise(rng), APIX)
    (tmp_path / "t.mrc.gz").write_bytes(b"")
    for settings, text in (({"box": 7}, "even"), ({"box": 24, "binning": 0}, "--bin"),
                           ({"box": 24, "normalise": "x"}, "known are")):  # fmt: skip
        with pytest.raises(InputError, match=text):
            extract.Cut(**settings)
    with pytest.raises(InputError, match="unpack it"):
        Tomogram(tmp_path / "t.mrc.gz")
    with Tomogram(tmp_path / "t.mrc") as tomogram, pytest.raises(InputError, match="outside"):
        tomogram.cut([100, 0, 0], 8)


def test_files_are_found_by_name():
    files = [pathlib.Path(p) for p in ("a/TS_1_rec.mrc", "a/TS_10.mrc", "a/b_4.0Apx.mrc")]
    found = extract.match(["TS_1", "TS_10.tomostar", "b", "TS_1"], files, "--tomograms")
    assert [found[n].name for n in found] == ["TS_1_rec.mrc", "TS_10.mrc", "b_4.0Apx.mrc"]
    tilts = [pathlib.Path(p) for p in ("TS_1.mrc.mdoc", "TS_10.rawtlt")]
    assert extract.match(["TS_1_rec.mrc", "TS_10"], tilts, "--tilts")["TS_1_rec.mrc"] == tilts[0]
    assert extract.match(["5", "5"], files[:1], "--tomograms") == {"5": files[0]}
    for names, text in ((["TS_2", "b"], "no file for"), (["TS", "b"], "2 files")):
        with pytest.raises(InputError, match=text):
            extract.match(names, files, "--tomograms")


def test_tilt_files(tmp_path):
    (tmp_path / "a.tlt").write_text(" -60.00\n-57.5  0.1\n\n 59.5\n")
    (tmp_path / "a.mrc.mdoc").write_text(
        "PixelSpacing = 2.6\n[ZValue = 0]\nTiltAngle = 0.01\nTiltAxisAngle = 85\n"
        "[ZValue = 1]\nTiltAngle = -54.3\n[ZValue = 2]\nTiltAngle = 48.2\n"
    )
    (tmp_path / "bad.tlt").write_text("one\ntwo\n")
    (tmp_path / "one.tlt").write_text("3\n")
    np.testing.assert_array_equal(read_tilts(tmp_path / "a.tlt"), [-60, -57.5, 59.5])
    np.testing.assert_array_equal(read_tilts(tmp_path / "a.mrc.mdoc"), [0.01, -54.3, 48.2])
    for name, text in (("bad", "no number"), ("one", "no tilt series"), ("none", "cannot be read")):
        with pytest.raises(InputError, match=text):
            read_tilts(tmp_path / f"{name}.tlt")


class Script:
    """extract.py on two tomograms of a folder."""

    def __init__(self, folder, monkeypatch, rng):
        self.folder, self.said = folder, []
        self.script = script_runs.load("extract")
        monkeypatch.setattr(self.script.console, "say", self.said.append)
        for name in ("TS_01", "TS_02"):
            io.write_mrc(folder / f"{name}.mrc", noise(rng), APIX)
            (folder / f"{name}.tlt").write_text("-60\n0\n60\n")
        self.turns = Rotation.random(6, rng=rng).as_matrix()
        self.places = np.array([[x, 30.0, 28.0] for x in (14, 20, 26, 32, 38, 61)])
        found = dataclasses.replace(
            table(self.places),
            rotation=self.turns,
            shift=rng.uniform(-2, 2, (6, 3)),
            tomogram=tables.names([f"TS_0{1 + i % 2}" for i in range(6)]),
            classes=np.array([1, 2, 1, 2, 1, 2]),
            half=np.array([1, 1, 2, 2, 1, 2]),
            score=np.arange(6.0),
        )
        self.table = found
        tables.write(folder / "in.star", found)

    def __call__(self, **more):
        options = {
            "table": str(self.folder / "in.star"),
            "tomograms": [str(self.folder / "*.mrc")],
            "output": self.folder / "out.hdf",
            "cut": PLAIN,
            "apix": None,
            "coordinate_apix": None,
            "table_apix": None,
            "tomogram_star": None,
            "drop_edges": False,
            "tilts": None,
            "tilt_sign": 1,
        }
        return self.script.run(**(options | more))


@pytest.fixture
def script(tmp_path, monkeypatch, rng):
    return Script(tmp_path, monkeypatch, rng)


def test_script_writes_what_the_other_programs_read(script):
    script(tilts=[str(script.folder / "*.tlt")])
    stack = io.open_stack(script.folder / "out.hdf")
    assert (len(stack), stack.box, stack.apix) == (6, BOX, pytest.approx(APIX))
    inputs = script_runs.load("_inputs")
    np.testing.assert_array_equal(inputs.tomogram_x(stack), script.places[:, 0])
    particles = inputs.open_particles(str(script.folder / "out.hdf"), 0, 0)
    poses = inputs.read_poses(str(script.folder / "out_poses.json"), particles, 2)
    np.testing.assert_allclose(poses.rotation[:, 1], script.table.rotation, atol=1e-6)
    np.testing.assert_allclose(poses.shift[:, 0], script.table.shift, atol=1e-5)
    header = stack.header(1)
    assert header["ptcl_source_image"] == str(script.folder / "TS_02.mrc")
    assert header["ptcl_source_coord"] == [20, 30, 28]
    np.testing.assert_allclose(header["xform.align3d"][:, :3], script.turns[1], atol=1e-6)
    extra = json.loads((script.folder / "out_poses_ext.json").read_text())
    assert extra["class"] == [0, 1, 0, 1, 0, 1]
    assert extra["half"] == [0, 0, 1, 1, 0, 1]
    assert f"--inixforms={script.folder / 'out_poses.json'} --wedge=-60,60" in script.said[-1]
    assert "1 boxes reach over the edge" in script.said[0]
    again = inputs.describe(particles, None)  # coordinates come back from the headers
    np.testing.assert_array_equal(again.coordinate, script.places)
    star = tables.read(script.folder / "out.star")
    assert star.image[0] == str(script.folder / "out.hdf")
    np.testing.assert_array_equal(star.image_index, range(6))
    np.testing.assert_allclose(star.coordinate, script.places)
    assert star.box == BOX


def test_script_leaves_out_boxes_at_the_edge(script):
    script(drop_edges=True)
    assert len(io.open_stack(script.folder / "out.hdf")) == 5
    assert "left out: 5" in script.said[0]


def test_script_writes_a_wedge_per_particle_where_they_differ(script):
    (script.folder / "TS_02.tlt").write_text("-40\n-10\n50\n")
    for flip, sign, (low, high) in (("", 1, (-40, 50)), ("z", 1, (-50, 40)), ("", -1, (-50, 40))):
        how = dataclasses.replace(PLAIN, flip=flip)
        script(cut=how, tilts=[str(script.folder / "*.tlt")], tilt_sign=sign)
        weights = io.open_stack(script.folder / "out_weights.hdf").read(range(6))
        for i, limits in enumerate([(-60, 60), (low, high)] * 3):
            np.testing.assert_array_equal(weights[i], wedge.region(BOX, wedge.Wedge(*limits)))
        assert script.said[-1].endswith(f"--wedge={script.folder / 'out_weights.hdf'}")


def test_script_takes_a_list_of_files_and_names_of_files(script):
    first = script()
    (script.folder / "list.txt").write_text(
        "".join(f"TS_0{i} {script.folder / f'TS_0{i}.mrc'}\n" for i in (1, 2))
    )
    listed = script(tomograms=[str(script.folder / "list.txt")])
    assert listed.files == first.files
    tables.write(script.folder / "named.csv", dataclasses.replace(first.table))
    named = script(table=str(script.folder / "named.csv"), tomograms=None)
    np.testing.assert_array_equal(named.start, first.start)
    for more, text in (
        ({"tomograms": None}, "does not name files itself"),
        ({"tomograms": [str(script.folder / "TS_01.mrc")]}, "no file for the tomogram 'TS_02'"),
        ({"output": script.folder / "out.mrc"}, "must end in .hdf"),
        ({"table": None}, "--table: a table"),
    ):
        with pytest.raises(InputError, match=text):
            script(**more)


@pytest.mark.slow
def test_from_a_dynamo_table_and_tomograms_to_the_average(tmp_path, rng):
    """Eight phantoms in four tomograms: extracted at a Dynamo table, averaged at its poses."""
    turns = Rotation.random(8, rng=rng).as_matrix()
    shifts = rng.uniform(-2, 2, (8, 3))
    places = np.array([[18, 20, 17], [43, 38, 37]] * 4) + rng.uniform(-0.5, 0.5, (8, 3))
    centres = places - np.einsum("nji,nj->ni", turns, shifts)
    for i in range(4):
        rows = slice(2 * i, 2 * i + 2)
        volume = table_images.tomogram(turns[rows].transpose(0, 2, 1), centres[rows])
        noisy = volume + 0.02 * noise(rng)
        io.write_mrc(tmp_path / f"tomo{i}_rec.mrc", noisy, APIX)
    found = dataclasses.replace(
        table(places),
        rotation=turns,
        shift=shifts,
        tomogram=tables.names([f"tomo{i // 2}" for i in range(8)]),
    )
    tables.write(tmp_path / "picks.tbl", found)
    words = [f"--table={tmp_path / 'picks.tbl'}", f"--tomograms={tmp_path / '*.mrc'}", "--box=24"]
    words += [f"--output={tmp_path / 'particles.hdf'}", "--normalise=none"]
    script = str(script_runs.EXPERIMENTS / "extract.py")
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    options = done.stdout.rsplit("go on with ", 1)[1].split()
    reference = table_images.density(table_images.grid((24, 24, 24)) - 12)
    io.write_hdf(tmp_path / "ref.hdf", reference.astype(np.float32), APIX)
    more = (f"--ref={tmp_path / 'ref.hdf'}", "--align=None", "--wedge=none", "--noplots")
    script_runs.call("classaverage", *options, *more, f"--path={tmp_path / 'run'}")
    average, _ = io.read_hdf(tmp_path / "run_01" / "final_avg.hdf")
    near = reference > 0.05
    assert np.corrcoef(average[near], reference[near])[0, 1] > 0.99
    star = tables.read(tmp_path / "run_01" / "particles_0.star")
    assert [name.rsplit("/", 1)[1] for name in star.tomogram[:3]] == ["tomo0_rec.mrc"] * 2 + [
        "tomo1_rec.mrc"
    ]
    middle = star.coordinate - np.einsum("nji,nj->ni", star.rotation, star.shift)
    np.testing.assert_allclose(middle, centres, atol=1e-3)
