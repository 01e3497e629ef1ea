"""convert.py, tables of other programs as --inixforms, and the STAR file at the end of a run."""

import dataclasses
import subprocess
import sys

import numpy as np
import option_runs
import pytest
import script_runs
from scipy.spatial.transform import Rotation

from sptjax import io, tables
from sptjax._errors import InputError

NOTHING = dict.fromkeys(
    ("name", "apix", "coordinate_apix", "new_apix", "tomograms", "tomo_size", "particles", "box")
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return option_runs.Bench(tmp_path_factory.mktemp("bench"))


def known(bench, apix=option_runs.APIX):
    """The planted poses as a table, for particles of another voxel size."""
    count = len(bench.matrices)
    return tables.ParticleTable(
        bench.matrices[..., :3],
        bench.matrices[..., 3],
        apix=np.full(count, option_runs.APIX),
        coordinate=np.arange(3.0 * count).reshape(-1, 3) + 50,
        coordinate_apix=np.full(count, option_runs.APIX),
        tomogram=tables.names([f"TS_{i % 2}" for i in range(count)]),
        image=tables.names([f"particle_{i}.mrc" for i in range(count)]),
        extents={"": np.array([500.0, 500, 200]) * option_runs.APIX},
    ).at(apix)


@pytest.mark.parametrize("name", tables.FORMATS)
def test_any_table_gives_the_poses(bench, tmp_path, name):
    """In voxels of the particles, also where the table is for binned ones and says so."""
    holds = "apix" in tables.FORMATS[name].holds
    apix = option_runs.APIX * (2 if holds else 1)
    path = tmp_path / f"poses{tables.FORMATS[name].suffix}"
    tables.write(path, known(bench, apix), name)
    inputs = script_runs.load("_inputs")
    particles = inputs.open_particles(str(bench.folder / "particles.hdf"), 0.0, 5)
    found = inputs.read_poses(str(path), particles, 2)
    assert found.rotation.shape == (5, 2, 3, 3)
    np.testing.assert_allclose(found.rotation[:, 1], bench.matrices[:5, :, :3], atol=1e-6)
    np.testing.assert_allclose(found.shift[:, 0], bench.matrices[:5, :, 3], atol=1e-5)


@pytest.mark.parametrize("name", ["dynamo", "relion5"])
def test_runs_take_tables_and_write_star(bench, tmp_path, name):
    base = bench.run()
    path = tmp_path / f"poses{tables.FORMATS[name].suffix}"
    tables.write(path, known(bench), name)
    run = bench.run(inixforms=path)
    for c in (0, 1):
        wanted, got = (r.poses(f"sptali_rm_0_{c}.json") for r in (base, run))
        np.testing.assert_allclose(got[0], wanted[0], atol=2e-5)
        np.testing.assert_allclose(got[1], wanted[1], rtol=1e-2)
    star = tables.read(run.folder / "particles_0.star")
    plain = tables.read(base.folder / "particles_0.star")
    for table in (star, plain):
        np.testing.assert_array_equal(table.classes, option_runs.CLASSES + 1)
        np.testing.assert_array_equal(table.half, np.arange(option_runs.COUNT) % 2 + 1)
        np.testing.assert_allclose(table.rotation, bench.matrices[..., :3], atol=2e-6)
        np.testing.assert_allclose(table.shift, bench.matrices[..., 3], atol=1e-5)
        own = [run.poses(f"sptali_rm_0_{c}.json")[1][i] for i, c in enumerate(option_runs.CLASSES)]
        np.testing.assert_allclose(table.score, -np.array(own), rtol=1e-2)
        np.testing.assert_array_equal(table.apix, option_runs.APIX)
    assert plain.image.tolist() == [str(bench.folder / "particles.hdf")] * option_runs.COUNT
    np.testing.assert_array_equal(plain.image_index, range(option_runs.COUNT))
    assert star.centred == (name == "relion5")
    star = dataclasses.replace(star, extents=known(bench).extents)
    np.testing.assert_allclose(star.placed().coordinate, known(bench).coordinate, atol=1e-5)
    assert star.tomogram.tolist() == known(bench).tomogram.tolist()
    if name == "relion5":
        assert star.image[3] == "particle_3.mrc"


def convert(source, output, monkeypatch=None, **more):
    script, said = script_runs.load("convert"), []
    if monkeypatch is not None:
        monkeypatch.setattr(script, "say", said.append)
    return script.run(str(source), str(output), **(NOTHING | {"box_poses": False} | more)), said


def test_flags(bench, tmp_path, monkeypatch):
    table = known(bench)
    tables.write(tmp_path / "in.tbl", dataclasses.replace(table, apix=None, coordinate_apix=None))
    out = tmp_path / "out.star"
    _, said = convert(tmp_path / "in.tbl", out, monkeypatch, apix=4.0, new_apix=2.0, box=32)
    assert said[-1] == f"{out}: {len(table)} particles, RELION 4"
    got = tables.read(out)
    np.testing.assert_allclose(got.shift, table.shift * 2, atol=1e-4)
    np.testing.assert_allclose(got.coordinate_apix, 4)
    assert (got.box, set(got.apix)) == (32, {2.0})
    size = {"tomo_size": ["500", "500", "200"], "apix": option_runs.APIX}
    convert(tmp_path / "in.tbl", out, name="relion5", **size)
    got = tables.read(out)
    np.testing.assert_allclose(got.coordinate, table.from_middle().coordinate, atol=1e-3)
    stack = str(bench.folder / "particles.hdf")
    convert(
        bench.folder / "poses.json", tmp_path / "parms.json", name="eman-parms", particles=stack
    )
    parms = tables.read(tmp_path / "parms.json")
    np.testing.assert_allclose(parms.matrices(), bench.matrices, atol=1e-6)
    assert parms.image.tolist() == [stack] * len(table)


def test_turned_boxes_are_composed_or_kept(bench, tmp_path):
    turns = Rotation.random(len(bench.matrices), random_state=1).as_matrix()
    turned = dataclasses.replace(known(bench), box_rotation=turns)
    tables.write(tmp_path / "in.star", turned)
    for keep, wanted in ((True, turned.rotation), (False, turned.rotation @ turns)):
        convert(tmp_path / "in.star", tmp_path / "out.json", box_poses=keep)
        got = tables.read(tmp_path / "out.json")
        np.testing.assert_allclose(got.rotation, wanted, atol=2e-6)


def test_sizes_of_tomograms_from_relion(bench, tmp_path):
    star = "data_global\n\nloop_\n_rlnTomoName\n_rlnTomoSizeX\n_rlnTomoSizeY\n_rlnTomoSizeZ\n"
    star += "_rlnTomoTiltSeriesPixelSize\nTS_0 500 500 200 {0}\nTS_1 600 500 200 {0}\n"
    (tmp_path / "tomograms.star").write_text(star.format(option_runs.APIX))
    tables.write(tmp_path / "in.star", known(bench))
    out = tmp_path / "out.star"
    convert(tmp_path / "in.star", out, name="relion5", tomograms=str(tmp_path / "tomograms.star"))
    middle = np.array([[250.0, 250, 100], [300, 250, 100]])[np.arange(len(bench.matrices)) % 2]
    wanted = (known(bench).coordinate - middle) * option_runs.APIX
    np.testing.assert_allclose(tables.read(out).coordinate, wanted, atol=1e-5)


def test_refusals(bench, tmp_path):
    source, out = bench.folder / "poses.json", tmp_path / "out.star"
    three = io.write_hdf(tmp_path / "three.hdf", [np.ones((16,) * 3, np.float32)] * 3, 4.0)
    assert three is None
    tables.write(tmp_path / "in.star", known(bench))
    for more, text in (
        ({"particles": str(tmp_path / "three.hdf")}, "3 images for 8 poses"),
        ({"new_apix": 2.0}, "give it with --apix"),
        ({"apix": -1.0}, "must be positive"),
        ({"name": "relion6"}, "known are relion3"),
        ({"tomo_size": ["1", "2"], "apix": 4.0}, "three sizes in voxels"),
        ({"tomograms": str(bench.folder / "poses.json")}, "holds no sizes"),
    ):
        with pytest.raises(InputError, match=text):
            convert(source, out, **more)
    with pytest.raises(InputError, match=r"one voxel size of the coordinates .*--coordinate_apix"):
        convert(source, out, tomo_size=["1", "2", "3"])
    with pytest.raises(InputError, match="--tomo_size=X,Y,Z"):
        convert(tmp_path / "in.star", out, name="relion5")
    assert not out.exists()


def test_command_line(bench, tmp_path):
    script = script_runs.EXPERIMENTS / "convert.py"
    words = [sys.executable, str(script), str(bench.folder / "poses.json")]
    done = subprocess.run([*words, str(tmp_path / "out.csv")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"{tmp_path / 'out.csv'}: 8 particles, CSV\n")
    assert done.stderr == ""
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "convert.py: two files are needed: convert.py [options] IN OUT\n"


@pytest.mark.slow
def test_generators_write_star_beside_their_map(bench, tmp_path):
    options = (
        f"--input={bench.folder / 'particles.hdf'}",
        "--wedge=none",
        "--noplots",
    )
    poses = f"--inixforms={bench.folder / 'poses.json'}"
    script_runs.call("binarytree", *options, poses, f"--path={tmp_path / 'bt'}")
    table = tables.read(tmp_path / "bt_01" / "final_avg.star")
    written, _ = io.read_alignments(tmp_path / "bt_01" / "bt_poses.json")
    np.testing.assert_allclose(table.matrices(), written, atol=1e-5)
    assert table.image_index.tolist() == list(range(option_runs.COUNT))
