"""Tables of other programs: round trips, real files, what survives, what is lost, refusals."""

import dataclasses
import json
import xml.etree.ElementTree as ET

import emfile
import numpy as np
import pytest
import table_images
from scipy.spatial.transform import Rotation

from sptjax import io, tables
from sptjax._errors import InputError

SUFFIX = {name: kind.suffix for name, kind in tables.FORMATS.items()}


def a_table(rng, count=40):
    """Random poses, and those at and near the poles of every set of angles."""
    turns = Rotation.random(count, rng=rng).as_matrix()
    special = [[0, 0, 0], [30, 0, 0], [0, 180, 0], [70, 180, -20], [10, 1e-3, 20], [10, 179.999, 5]]
    turns[: len(special)] = Rotation.from_euler("zxz", special, degrees=True).as_matrix()
    return tables.ParticleTable(
        turns,
        rng.uniform(-20, 20, (count, 3)),
        apix=np.full(count, 5.24),
        coordinate=rng.uniform(0, 3900, (count, 3)),
        coordinate_apix=np.full(count, 2.62),
        tomogram=tables.names([f"TS_{i % 3:02d}" for i in range(count)]),
        image=tables.names(["p.hdf"] * count),
        image_index=np.arange(count),
        classes=rng.integers(1, 4, count),
        half=rng.integers(1, 3, count),
        score=rng.normal(size=count),
        box=64,
        extents={"": np.array([4000, 4200, 1000]) * 2.62},
    )


def degrees(a, b):
    return np.rad2deg(Rotation.from_matrix(np.swapaxes(a, -1, -2) @ b).magnitude())


def in_file_units(table, like):
    """Coordinates in the voxels of another table."""
    placed = dataclasses.replace(table, extents=like.extents).placed()
    unit = 5.24 if placed.coordinate_apix is None else placed.coordinate_apix[:, None]
    return placed.coordinate * unit / like.coordinate_apix[:, None]


@pytest.mark.parametrize("name", tables.FORMATS)
def test_round_trip(tmp_path, rng, name):
    before, path = a_table(rng), tmp_path / f"t{SUFFIX[name]}"
    if name in ("relion3", "lst"):  # which keep coordinates in voxels of the tomogram, unsaid
        before = before.in_particle_voxels()
    tables.write(path, before, name)
    holds = tables.FORMATS[name].holds
    after = tables.read(path, apix=None if "apix" in holds else 5.24)
    assert degrees(before.rotation, after.rotation).max() <= 1e-4
    np.testing.assert_allclose(after.shift, before.shift, rtol=0, atol=1e-4)
    np.testing.assert_allclose(in_file_units(after, before), before.coordinate, rtol=0, atol=1e-4)
    np.testing.assert_allclose(after.score, before.score, rtol=1e-6)
    assert after.tomogram.tolist() == before.tomogram.tolist()
    for field in ("classes", "half", "image_index"):
        if field in holds:
            np.testing.assert_array_equal(getattr(after, field), getattr(before, field))


@pytest.mark.parametrize("name", tables.FORMATS)
def test_writing_again_changes_nothing(tmp_path, rng, name):
    path, again = (tmp_path / f"{stem}{SUFFIX[name]}" for stem in ("t", "u"))
    tables.write(path, a_table(rng), name)
    first = dataclasses.replace(tables.read(path, apix=5.24), extents=a_table(rng).extents)
    tables.write(again, first, name)
    second = tables.read(again, apix=5.24)
    assert degrees(first.rotation, second.rotation).max() <= 1e-4
    np.testing.assert_allclose(second.shift, first.shift, rtol=0, atol=1e-4)
    np.testing.assert_allclose(second.coordinate, first.coordinate, rtol=0, atol=2e-6 * 2.62)
    assert set(second.extra) == set(first.extra)


@pytest.mark.parametrize("other", [name for name in tables.FORMATS if name != "relion5"])
def test_through_another_program_and_back(tmp_path, rng, other):
    """RELION 5 to a program and back: the same particles, in space."""
    before = a_table(rng)
    first, there, back = (tmp_path / x for x in ("a.star", f"b{SUFFIX[other]}", "c.star"))
    tables.write(first, before, "relion5")
    start = dataclasses.replace(tables.read(first), extents=before.extents)
    tables.write(there, start, other)
    size = {} if "apix" in tables.FORMATS[other].holds else {"apix": 5.24}
    unit = {"coordinate_apix": 2.62} if other in ("relion3", "lst") else {}
    middle = dataclasses.replace(tables.read(there, **size, **unit), extents=before.extents)
    tables.write(back, middle, "relion5")
    end = tables.read(back)
    assert degrees(before.rotation, end.rotation).max() <= 1e-4
    np.testing.assert_allclose(end.shift, before.shift, rtol=0, atol=1e-4)
    np.testing.assert_allclose(in_file_units(end, before), before.coordinate, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["eman", "eman-parms"])
def test_emans_json_by_image(tmp_path, name):
    """A particle placed by EMAN2's matrix; the pose read takes it onto the reference."""
    turn = np.stack([table_images.eman_matrix(*a) for a in table_images.ANGLES])
    matrices = np.concatenate([turn.transpose(0, 2, 1), table_images.SHIFTS[..., None]], -1)
    data = {}
    for i, matrix in enumerate(matrices):
        numbers = "[" + ",".join(f"{x:.9g}" for x in matrix.ravel()) + "]"
        pose = {"__class__": "Transform", "matrix": numbers}
        value = {"xform.align3d": pose, "score": -0.5 - i, "coverage": 0.25}
        old, new = f"subtomo_{i:03d}", str(("particles/a b.hdf", i))
        data |= {old: [pose, -0.5 - i]} if name == "eman" else {new: value}
    path = tmp_path / "p.json"
    path.write_text(json.dumps(data))
    table = tables.read(path)
    points = table_images.grid((24, 24, 24)) - 12
    for matrix, place, found, shift in zip(
        turn, -np.einsum("nij,nj->ni", turn, table_images.SHIFTS), table.rotation, table.shift
    ):
        particle = table_images.density((points - place) @ matrix)
        aligned = table_images.density(points @ found.T + shift)
        np.testing.assert_allclose(aligned, particle, atol=1e-5)
    np.testing.assert_array_equal(table.score, [0.5, 1.5])
    if name == "eman-parms":
        assert table.image.tolist() == ["particles/a b.hdf"] * 2
        tables.write(tmp_path / "q.json", table, name)
        again = json.loads((tmp_path / "q.json").read_text())
        assert set(again) == set(data)
        assert again["('particles/a b.hdf', 1)"]["coverage"] == 0.25


# ---------------------------------------------------------------- real files


def test_relion5_of_real_ribosomes(shared_data):
    folder = shared_data / "real_ribosomes"
    stem = "warptools_test_4-tomos_10-ptcls_box-32_angpix-12"
    table = tables.read(folder / "relion5" / f"{stem}.star")
    published, _ = io.read_alignments(folder / "poses.json", 40)
    assert degrees(published[..., :3].astype(float), table.rotation).max() <= 1e-4
    np.testing.assert_array_equal(table.shift, 0)
    np.testing.assert_array_equal(table.apix, 12)
    np.testing.assert_array_equal(table.coordinate[0], [494.521, 564.065, 28.146])
    assert (len(table), table.box, table.tomogram[10]) == (40, 32, "Unt_050.tomostar")
    assert table.image[39].endswith("Unt_088/Unt_088_12.00A_000010.mrcs")
    assert table.image_index is None  # a file per particle
    assert table.extra["rlnTomoVisibleFrames"][0].startswith("[0,1,1,1,1,0")
    whole = tables.read(folder / "relion5" / f"{stem}_optimisation_set.star")
    np.testing.assert_allclose(
        whole.extents["Unt_076.tomostar"], np.array([4400, 6000, 1400]) * 1.667
    )
    np.testing.assert_array_equal(whole.rotation, table.rotation)
    path = folder / "relion5" / f"{stem}.star"  # WarpTools counts voxels of its own output
    warp = dataclasses.replace(tables.read(path, coordinate_apix=12), extents=whole.extents)
    np.testing.assert_allclose(warp.coordinate_apix, 1.667)
    np.testing.assert_allclose(warp.coordinate * 1.667 / 12, table.coordinate)
    middle = np.array([4400, 6000, 1400]) * 1.667 / 2
    np.testing.assert_allclose(warp.from_middle().coordinate, table.coordinate * 12 - middle)
    assert (np.abs(warp.from_middle().coordinate) < middle).all()


def test_relion4_with_turned_boxes(shared_data):
    """EMPIAR-10064: coordinates are picks on a grid of 8 unbinned pixels."""
    table = tables.read(shared_data / "quirks" / "run_data_empiar10064.star")
    np.testing.assert_array_equal(table.coordinate % 8, 0)
    np.testing.assert_array_equal(table.coordinate_apix, 2.62)
    np.testing.assert_array_equal(table.apix, 10.48)
    assert set(table.half) == {1, 2}
    np.testing.assert_allclose(table.coordinate[0], [424, 1584, 864])
    angles, box = [68.371027, 73.856489, -118.85148], [-138, 120, 25]
    particle, turned = (table_images.relion_matrix(*a) for a in (angles, box))
    np.testing.assert_allclose(table.upright().rotation[0], (turned @ particle).T, atol=1e-6)
    origin = np.array([-32.54977, 21.893834, 22.915634]) / 10.48
    np.testing.assert_allclose(table.shift[0], particle.T @ origin, atol=1e-5)
    upright = table.upright()  # coordinate - A_subtomogram origin, RELION's position
    place = -upright.rotation[0].T @ upright.shift[0]
    np.testing.assert_allclose(place, -turned @ origin, atol=1e-5)


def test_dynamo_table_of_real_filaments(shared_data):
    table = tables.read(shared_data / "quirks" / "dynamo_aligned.tbl", apix=13.1)
    assert len(table) == 499
    np.testing.assert_array_equal(table.coordinate % 1, 0)  # Dynamo crops at middles of voxels
    np.testing.assert_array_equal(table.coordinate[0], [263, 1375, 171])
    np.testing.assert_allclose(table.score[:2], [0.53796, 0.52842])
    matrix = table_images.dynamo_matrix(172.95, 96.221, 52.63)
    np.testing.assert_allclose(table.rotation[0].T, matrix, atol=1e-6)
    np.testing.assert_allclose(
        -table.rotation[0].T @ table.shift[0], [0.93647, -2.8631, 4.9013], atol=1e-5
    )
    assert any("i" in word for word in table.extra["daxis"])  # kept as it stands


def test_golden_sptali_and_list(golden):
    table = tables.read(golden / "hdf" / "sptali_ir_0.json")
    np.testing.assert_array_equal(table.score, [0.5, 0.25])
    np.testing.assert_allclose(table.shift[0], [1, 2, 3], atol=1e-6)
    with pytest.raises(InputError, match="names images but holds no poses"):
        tables.read(golden / "hdf" / "set.lst")


# ---------------------------------------------------------------- what survives, what is lost


def test_unknown_columns_survive_within_a_program(tmp_path, shared_data):
    star = shared_data / "quirks" / "run_data_empiar10064.star"
    for name in ("relion3", "relion3.1", "relion4", "relion5"):
        table = dataclasses.replace(tables.read(star), extents={"": np.array([1e4, 1e4, 3e3])})
        path = tmp_path / f"{name}.star"
        tables.write(path, table, name)
        again = tables.read(path)
        for column in ("rlnCtfImage", "rlnLogLikeliContribution", "rlnObjectNumber"):
            assert again.extra[column] == table.extra[column]
        if name != "relion3":
            assert again.blocks["optics"]["rlnSphericalAberration"] == ["2.700000"]
    table = tables.read(shared_data / "quirks" / "dynamo_aligned.tbl", apix=13.1)
    tables.write(tmp_path / "t.tbl", table)
    again = tables.read(tmp_path / "t.tbl").extra
    assert {key: again[key] for key in table.extra} == table.extra


def test_unknown_parts_of_other_lists_survive(tmp_path):
    for name, key in (("pytom", "xml"), ("stopgap", "object"), ("av3", "row6")):
        planted = table_images.PROGRAMS[name](tmp_path)
        table = tables.read(planted.path, apix=5.0)
        path = tmp_path / f"again{planted.path.suffix}"
        tables.write(path, table, "stopgap" if name == "stopgap" else None)
        assert tables.read(path).extra[key] == table.extra[key]
    wedge = ET.parse(tmp_path / "again.xml").find(".//Wedge/SingleTiltWedge")
    assert wedge is not None
    assert wedge.attrib == {"Angle1": "30", "Angle2": "28"}
    (tmp_path / "c.csv").write_text("x,y,z,comment\n1,2,3,blue\n")
    tables.write(tmp_path / "d.csv", tables.read(tmp_path / "c.csv"))
    assert tables.read(tmp_path / "d.csv").extra == {"comment": ["blue"]}


def test_what_a_format_cannot_hold_is_said(tmp_path, rng):
    table = a_table(rng)
    said = tables.write(tmp_path / "t.tbl", table)
    assert "Dynamo holds no image names, half sets: they are lost" in said
    assert any("names are in t.doc" in line for line in said)
    assert (tmp_path / "t.doc").read_text().splitlines() == ["1 TS_00", "2 TS_01", "3 TS_02"]
    bare = dataclasses.replace(
        table, half=None, tomogram=None, family="relion", extra={"a": ["x"] * 40}
    )
    said = tables.write(tmp_path / "s.star", bare, "stopgap")
    assert any("half sets A and B are given" in line for line in said)
    assert "columns that STOPGAP does not know are lost: a" in said
    turned = dataclasses.replace(bare, box_rotation=table.rotation)
    assert any("boxes turned against" in line for line in tables.write(tmp_path / "t.em", turned))
    upright = table.rotation @ table.rotation
    assert degrees(tables.read(tmp_path / "t.em").rotation, upright).max() < 1e-4
    tables.write(tmp_path / "r.star", turned, "relion4")
    kept = tables.read(tmp_path / "r.star")
    assert degrees(kept.rotation, table.rotation).max() < 1e-4
    assert degrees(kept.box_rotation, table.rotation).max() < 1e-4


def test_names_that_look_like_numbers_stay_names(tmp_path):
    text = "data_particles\n\nloop_\n_rlnTomoName #1\n_rlnCoordinateX #2\n_rlnCoordinateY #3\n"
    text += "_rlnCoordinateZ #4\n_rlnMyLabel #5\n007 1 2 3 0010\n1e3 4 5 6 nan\n"
    (tmp_path / "t.star").write_text(text)
    table = tables.read(tmp_path / "t.star")
    assert table.tomogram.tolist() == ["007", "1e3"]
    assert table.extra["rlnMyLabel"][0] == "0010"
    np.testing.assert_array_equal(table.coordinate, [[1, 2, 3], [4, 5, 6]])


def test_awkward_names_survive(tmp_path, rng):
    files = ["a b.mrc", "a#1.mrc", "b #2/c.mrc", "ü.mrc", "'x'.mrc"]
    table = dataclasses.replace(a_table(rng, 10).select(range(5)), image=tables.names(files))
    for name in ("relion4", "eman", "eman-parms", "lst", "pytom", "csv"):
        path = tmp_path / f"{name}{SUFFIX[name]}"
        tables.write(path, table, name)
        found = tables.read(path).image.tolist()
        if SUFFIX[name] == ".star":  # starfile reads ' as "
            assert found[:4] == files[:4]
        else:
            assert found == files, name
    with pytest.raises(InputError, match="cannot stand in a STAR file"):
        tables.write(tmp_path / "t.star", dataclasses.replace(table, image=tables.names(['"'] * 5)))


def test_the_best_of_several_entries_of_a_particle(tmp_path):
    planted = table_images.PROGRAMS["stopgap"](tmp_path)
    text = planted.path.read_text().rstrip().splitlines()
    rows = [text[-2], text[-1], text[-2].replace(" 0.5 ", " 0.75 ", 1), text[-1]]
    planted.path.write_text("\n".join([*text[:-2], *rows]) + "\n")
    table = tables.read(planted.path)
    assert table.score.tolist() == [0.75, 0.25]
    assert "of 4 entries" in table.notes[0]


def test_double_precision_of_motive_lists_only_where_needed(tmp_path, rng):
    table = a_table(rng).in_particle_voxels()
    said = tables.write(
        tmp_path / "a.em", dataclasses.replace(table, coordinate=np.rint(table.coordinate))
    )
    assert not any("double" in line for line in said)
    assert emfile.read(tmp_path / "a.em")[0]["dtype"] == 5
    far = dataclasses.replace(table, coordinate=table.coordinate + 4000)
    assert any("double" in line for line in tables.write(tmp_path / "b.em", far))
    assert emfile.read(tmp_path / "b.em")[0]["dtype"] == 9


# ---------------------------------------------------------------- refusals

PARTICLES = "data_particles\n\nloop_\n_rlnTomoName\n_rlnCoordinateX\n_rlnAngleRot\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "nothing here\n", "no table of particles that is known"),
        ("a.star", "data_\n\nloop_\n_mine #1\n_yours #2\n1 2\n", "its columns are mine, yours"),
        ("a.star", PARTICLES + "t 1 one\n", "no number"),
        ("a.star", PARTICLES.replace("Rot", "Rot\n_rlnOriginXAngst") + "t 1 2 3\n", "--apix"),
        ("a.json", '{"a": 1}', "has no entries"),
        ("a.json", '{"subtomo_0": [1, 2]}', "not a transform"),
        ("a.xml", "<html/>", "holds no ParticleList"),
        ("a.xml", "<ParticleList>", "cannot be read as XML"),
        ("a.tbl", "1 2 3\n", "no table of particles"),
        ("a.tbl", "1 " * 30 + "\n" + "1 " * 29 + "\n", "all rows alike"),
        ("a.csv", "x,y,z\n1,2\n", "line 2: 2 values under 3 names"),
        ("a.csv", "x,y,z\n1,2,nan\n", "coordinate that is not finite"),
        ("a.lst", "#LSX\n# a\n# 20\n0\tp.hdf\n", "holds no poses"),
    ],
)
def test_refusals(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        tables.read(tmp_path / name)


def test_more_refusals(tmp_path, rng):
    table = a_table(rng)
    (tmp_path / "b.bin").write_bytes(bytes(range(256)) * 4)
    io.write_em(tmp_path / "v.em", np.ones((4, 4, 4), np.float32))
    for path in (tmp_path / "b.bin", tmp_path / "v.em"):
        with pytest.raises(InputError, match="no table of particles that is known"):
            tables.read(path)
    with pytest.raises(InputError, match="does not exist"):
        tables.read(tmp_path / "none.star")
    with pytest.raises(InputError, match="size of tomogram TS_00, TS_01, TS_02 is not known"):
        tables.write(tmp_path / "t.star", dataclasses.replace(table, extents={}), "relion5")
    no_images = dataclasses.replace(table, image=None, image_index=None)
    for name in ("lst", "eman-parms"):
        with pytest.raises(InputError, match="--particles"):
            tables.write(tmp_path / f"t{SUFFIX[name]}", no_images, name)
    with pytest.raises(InputError, match="must be one of"):
        tables.choose("t.doc")
    with pytest.raises(InputError, match=r"a table of Dynamo ends in \.tbl"):
        tables.choose("t.star", "dynamo")
    with pytest.raises(InputError, match="give the voxel size with --apix"):
        tables.write(tmp_path / "t.star", dataclasses.replace(table, apix=None))
    assert not list(tmp_path.glob("t.*"))
