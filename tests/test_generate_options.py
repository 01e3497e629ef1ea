"""References made by refinemulti and classaverage, and the three programs that make them alone."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from alignment_setting import volumes_of
from script_runs import APIX, BOX, EXPERIMENTS, call, load

from sptjax import io, simulate, symmetry
from sptjax._errors import InputError

COUNT = 9
SHARED = ("--wedge=-60,60", "--search=1", "--align=None", "--noplots")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Nine particles of one phantom, clear of the noise."""
    folder = tmp_path_factory.mktemp("generate")
    geometry = simulate.TiltSeries(-60, 60, snr=3.0)
    poses = simulate.random_poses(jax.random.key(2), COUNT, 0.5)
    volumes = volumes_of(simulate.phantom(BOX)[None], np.zeros(COUNT, int), poses, geometry)
    io.write_hdf(folder / "p.hdf", np.asarray(volumes), APIX)
    io.write_hdf(folder / "r.hdf", simulate.phantom(BOX), APIX)
    return folder


def recipe(bench, program, *options):
    """What a program would make references of; nothing is computed."""
    script = load(program)
    argv = [program, f"--input={bench / 'p.hdf'}", *options]
    values, said = script._flags.parse(argv), []
    names = [values["sym"]] * (values["nref"] if program == "refinemulti" else 1)
    found = script._generate.recipe(
        values, values.get("subset") or COUNT, tuple(map(symmetry.parse, names)), said.append,
        halves=program == "classaverage",
    )  # fmt: skip
    return found, said


def groups(found):
    return [group.tolist() for group in found.groups]


# ---------------------------------------------------------------- one row per option


def test_refgenmethod(bench):
    assert recipe(bench, "refinemulti", "--nref=2")[0].method == "bt"
    assert recipe(bench, "refinemulti", "--nref=2", "--refgenmethod=hac")[0].method == "hac"
    # a tree takes a power of two, a classification all of its group
    assert groups(recipe(bench, "refinemulti", "--nref=2")[0]) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    hac, _ = recipe(bench, "refinemulti", "--nref=2", "--refgenmethod=hac")
    assert groups(hac) == [[0, 2, 4, 6, 8], [1, 3, 5, 7]]


def test_refsplit(bench):
    blocks, _ = recipe(
        bench, "refinemulti", "--nref=2", "--refgenmethod=hac", "--refsplit=contiguous"
    )
    assert groups(blocks) == [[0, 1, 2, 3], [4, 5, 6, 7, 8]]


def test_subset4ref(bench):
    three = ("--nref=2", "--refgenmethod=hac", "--subset4ref=3")
    assert groups(recipe(bench, "refinemulti", *three)[0]) == [[0, 2, 4], [1, 3, 5]]
    many, said = recipe(bench, "refinemulti", "--nref=2", "--subset4ref=50")
    assert [len(g) for g in groups(many)] == [4, 4]
    assert any("--subset4ref=50" in line for line in said)


def test_hacref_ssaref_btref(bench):
    for options, method, want in (
        (("--btref=3",), "bt", [[0, 2], [1, 3]]),
        (("--btref=4",), "bt", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        (("--hacref=3", "--refgenmethod=bt"), "hac", [[0, 2, 4], [1, 3, 5]]),
        (("--ssaref=1", "--sym=c4"), "ssa", [[0], [1]]),
        (("--btref=2", "--subset4ref=4"), "bt", [[0, 2], [1, 3]]),
    ):
        found, _ = recipe(bench, "classaverage", *options)
        assert (found.method, groups(found), found.names) == (
            method, want, ("ref_even.hdf", "ref_odd.hdf")
        )  # fmt: skip
        again, _ = recipe(bench, "refinemulti", "--nref=2", *options)
        assert (again.method, groups(again)) == (method, want)


def test_whole_groups_are_capped(bench):
    script = load("refinemulti")
    values = script._flags.parse(["refinemulti", "--refgenmethod=hac"])
    own, said = (symmetry.parse("c1"),), []
    make = script._generate.recipe
    assert len(make(values, 500, own * 2, said.append, halves=False).groups[0]) == 64
    assert any("64 of 250" in line for line in said)
    values = script._flags.parse(["refinemulti"])
    assert len(make(values, 500, own * 2, said.append, halves=False).groups[0]) == 128
    assert len(make(values, 500, own, said.append, halves=True).groups[0]) == 64


@pytest.mark.parametrize(
    ("program", "options", "message"),
    [
        ("refinemulti", ["--hacref=4", "--btref=4"], "--hacref and --btref: .* one way only"),
        ("refinemulti", ["--hacref=2"], "--hacref=2: at least 3"),
        ("classaverage", ["--btref=1"], "--btref=1: at least 2"),
        ("refinemulti", ["--subset4ref=1"], "--subset4ref=1: bt needs at least 2"),
        ("refinemulti", ["--nref=5"], "9 particles in 5 groups leave 1"),
        ("refinemulti", ["--nref=4", "--refgenmethod=hac"], "in 4 groups leave 2"),
        ("refinemulti", ["--ssaref=2"], "a symmetry other than c1"),
        ("classaverage", ["--refgenmethod=ssa"], "a symmetry other than c1"),
        ("binarytree", ["--nseedlimit=1"], "--nseedlimit=1: .* at least 2"),
        ("hac", ["--groups=4"], "--groups=4: 9 particles leave 2 in a group"),
        ("hac", ["--clusters=10"], "--clusters=10: a group has 9"),
        ("symsearch3d", [], "--sym=c1: a symmetry other than c1"),
        ("symsearch3d", ["--sym=c4", "--mirror"], "--mirror does nothing without --average"),
        ("symsearch3d", ["--sym=c4", "--keep=0"], "--keep=0: a fraction above 0"),
        ("symsearch3d", ["--sym=c4", "--cmp=cc"], "--cmp"),
        (
            "symsearch3d",
            ["--sym=c4", "--ref={bench}/r.hdf"],
            "--ref does nothing without",
        ),
        (
            "symsearch3d",
            ["--sym=c4", "--average", "--ref={bench}/r.hdf"],
            "does not lie on the axes of c4",
        ),
    ],
)
def test_what_is_refused(bench, program, options, message, tmp_path):
    options = [option.format(bench=bench) for option in options]
    with pytest.raises(InputError) as raised:
        call(program, f"--input={bench / 'p.hdf'}", f"--path={tmp_path / 'run'}", *options)
    assert re.search(message, str(raised.value))
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- whole runs


@pytest.mark.slow
def test_refinemulti_makes_one_reference_per_class(bench, tmp_path, monkeypatch):
    state, said = call(
        "refinemulti", f"--input={bench / 'p.hdf'}", f"--path={tmp_path / 'run'}", "--nref=2",
        "--btref=2", *SHARED, monkeypatch=monkeypatch,
    )  # fmt: skip
    folder = tmp_path / "run_01"
    assert len(state.maps) == 2
    for r, rows in ((0, [0, 2]), (1, [1, 3])):
        volume, header = io.read_hdf(folder / f"ref{r}.hdf")
        assert volume.shape == (BOX,) * 3
        assert volume.std() > 0
        assert header["ptcl_repr"] == 2
        assert header["spt_ptcl_indxs"] == rows
    assert any("binary tree of 2 particles" in line for line in said)


def test_classaverage_makes_one_reference_per_half(bench, tmp_path, monkeypatch):
    call(
        "classaverage", f"--input={bench / 'p.hdf'}", f"--path={tmp_path / 'run'}",
        "--btref=2", *SHARED, monkeypatch=monkeypatch,
    )  # fmt: skip
    folder = tmp_path / "run_01"
    maps = []
    for name, rows in (("even", [0, 2]), ("odd", [1, 3])):
        volume, header = io.read_hdf(folder / f"ref_{name}.hdf")
        assert header["spt_ptcl_indxs"] == rows
        maps.append(volume)
    # one frame for both, though no particle is in both
    assert np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1] > 0.6


def test_given_references_win(bench, tmp_path, monkeypatch):
    _, said = call(
        "classaverage", f"--input={bench / 'p.hdf'}", f"--path={tmp_path / 'run'}",
        f"--ref={bench / 'r.hdf'}", "--btref=4", *SHARED, monkeypatch=monkeypatch,
    )  # fmt: skip
    assert any("--btref=4 does nothing" in line for line in said)
    assert not list((tmp_path / "run_01").glob("ref_*.hdf"))


def test_binarytree_writes_levels_poses_and_nodes(bench, tmp_path, monkeypatch):
    result, _ = call(
        "binarytree", f"--input={bench / 'p.hdf'}", f"--path={tmp_path / 'bt'}", "--nseedlimit=5",
        "--iterstop=1", "--savesteps", "--wedge=-60,60", "--search=1", monkeypatch=monkeypatch,
    )  # fmt: skip
    folder = tmp_path / "bt_01"
    with io.HdfReader(folder / "seedtree_0.hdf") as first:
        assert len(first) == 4
    with io.HdfReader(folder / "final_nodes.hdf") as nodes:
        assert len(nodes) == 2
        np.testing.assert_array_equal(nodes.read(0), io.read_hdf(folder / "final_avg.hdf")[0])
    matrices, scores = io.read_alignments(folder / "bt_poses.json")
    assert len(matrices) == 4
    assert (scores < -5).all()
    np.testing.assert_allclose(matrices[:2, :, :3], result.rotation, atol=1e-5)


def test_hac_writes_its_tables(bench, tmp_path, monkeypatch):
    (done,), _ = call(
        "hac", f"--input={bench / 'p.hdf'}", f"--path={tmp_path / 'hac'}", "--subset=3",
        "--clusters=2", "--exclusive_class_min=2", "--wedge=-60,60", "--search=1",
        monkeypatch=monkeypatch,
    )  # fmt: skip
    folder = tmp_path / "hac_01"
    text = (folder / "dendrogram.txt").read_text()
    assert re.match(r"ITERATION 0\nraw000\d averaged with raw000\d into avg0000 with score=-", text)
    assert len((folder / "ranking0.txt").read_text().splitlines()) == 3
    planes = [io.read_hdf(folder / "simmx_0.hdf", i)[0] for i in range(8)]
    for (a, b), score, pose in zip(
        done.rounds[0].pairs, done.rounds[0].score, done.rounds[0].poses
    ):
        assert planes[0][a, b] == pytest.approx(-score, rel=1e-5)
        np.testing.assert_allclose([p[a, b] for p in planes[1:4]], pose[:, 3], atol=1e-5)
    assert planes[0][0, 0] == 1
    last = json.loads((folder / "hac_final.json").read_text())
    assert sorted(last["0"]) == ["0", "1", "2"]
    assert sum(map(len, json.loads((folder / "clusters.json").read_text()).values())) == 3
    assert [p.name for p in (folder / "me_classes_2").iterdir()] == ["me_class0_s3.hdf"]
    assert io.read_hdf(folder / "final_avg.hdf")[1]["ptcl_repr"] == 3
    assert (folder / "dendrogram.png").stat().st_size > 1000


@pytest.mark.parametrize("name", ["binarytree", "hac", "symsearch3d"])
def test_help_names_every_flag(name):
    done = subprocess.run(
        [sys.executable, EXPERIMENTS / f"{name}.py", "--help"], capture_output=True, text=True
    )
    for flag in ("--input", "--search", "--mask", "--path"):
        assert flag in done.stdout
