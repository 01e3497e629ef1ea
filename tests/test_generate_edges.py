"""References from particles at the edges: resumed runs, known classes, centring, noise alone."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from alignment_setting import APIX, BOX, Volumes
from generate_setting import planted, sampling
from script_runs import call
from test_generate_options import SHARED, bench, groups, recipe  # noqa: F401

from sptjax import generate, io, simulate
from sptjax._errors import InputError
from sptjax._types import Pose
from sptjax.averaging import Averaging
from sptjax.centring import Autocentre
from sptjax.processors._centre import CentreOfMass


def membership(path, classes):
    """A class matrix of two planes, membership and weight."""
    plane = np.zeros((1, len(classes), classes.max() + 1), np.float32)
    for i, c in enumerate(classes):
        if c >= 0:
            plane[0, i, c] = 1
    io.write_hdf(path, [plane, plane], 1.0, [{"classmx_format": "membership"}, {}])


# ---------------------------------------------------------------- known classes


CLASSES = np.array([1, 1, 0, 0, 0, 1, -1, 0, 0])


def test_every_known_class_makes_its_reference(bench, tmp_path, monkeypatch):  # noqa: F811
    """Two planes hold no poses: members alone say who makes which reference."""
    membership(tmp_path / "mx.hdf", CLASSES)
    call(
        "refinemulti", f"--input={bench / 'p.hdf'}", f"--path={tmp_path / 'run'}",
        f"--classmx={tmp_path / 'mx.hdf'}", "--btref=2", *SHARED, monkeypatch=monkeypatch,
    )  # fmt: skip
    for r, rows in ((0, [2, 3]), (1, [0, 1])):
        assert io.read_hdf(tmp_path / "run_01" / f"ref{r}.hdf")[1]["spt_ptcl_indxs"] == rows


@pytest.mark.slow
def test_halves_of_a_known_class_make_references(bench, tmp_path, monkeypatch):  # noqa: F811
    membership(tmp_path / "mx.hdf", CLASSES)
    call(
        "classaverage", f"--input={bench / 'p.hdf'}", f"--path={tmp_path / 'run'}", "--oneclass=0",
        f"--classmx={tmp_path / 'mx.hdf'}", "--btref=2", *SHARED, monkeypatch=monkeypatch,
    )  # fmt: skip
    (folder,) = (tmp_path / "run_01").glob("class0_*")
    for name, rows in (("even", [2, 4]), ("odd", [3, 7])):  # halves of 2, 3, 4, 7, 8
        assert io.read_hdf(folder / f"ref_{name}.hdf")[1]["spt_ptcl_indxs"] == rows


@pytest.mark.parametrize(
    ("program", "options", "message"),
    [
        ("classaverage", ["--recompute"], "--recompute: .* holds no poses"),
        ("refinemulti", ["--skipali"], "--skipali: .* holds no poses"),
        ("refinemulti", ["--refgenmethod=hac", "--classmx=small"], "in 2 groups leave 2"),
        ("msa", [], "--classmx: .* holds no poses"),
    ],
)
def test_what_needs_poses_or_more_members(bench, tmp_path, program, options, message):  # noqa: F811
    membership(tmp_path / "mx.hdf", CLASSES)
    membership(tmp_path / "small.hdf", np.array([0, 0, 0, 0, 0, 0, 0, 1, 1]))
    small = any("small" in option for option in options)
    options = [option for option in options if "small" not in option]
    given = tmp_path / ("small.hdf" if small else "mx.hdf")
    with pytest.raises(InputError) as raised:
        call(
            program, f"--input={bench / 'p.hdf'}", f"--path={tmp_path / 'run'}",
            f"--classmx={given}", *options,
        )  # fmt: skip
    assert re.search(message, str(raised.value))
    assert not list(tmp_path.glob("run*"))


def test_fewer_particles_than_maps_of_a_descent(bench):  # noqa: F811
    with pytest.raises(InputError, match="9 particles in 5 groups leave 1"):
        recipe(bench, "refinemulti", "--nref=5", "--refgenmethod=sgd")
    found, _ = recipe(bench, "refinemulti", "--nref=4", "--refgenmethod=sgd")
    assert groups(found) == [[0, 4, 8], [1, 5], [2, 6], [3, 7]]


# ---------------------------------------------------------------- runs


@pytest.mark.slow
def test_a_resumed_run_keeps_its_references(bench, tmp_path, monkeypatch):  # noqa: F811
    """Stopped after a round and resumed: no reference is made again, the end is the same."""
    common = (f"--input={bench / 'p.hdf'}", "--nref=2", "--btref=2", *SHARED)
    whole, _ = call(
        "refinemulti", *common, f"--path={tmp_path / 'whole'}", "--iter=2", monkeypatch=monkeypatch
    )
    part = (*common, f"--path={tmp_path / 'part'}")
    call("refinemulti", *part, "--iter=1", monkeypatch=monkeypatch)
    path = tmp_path / "part_01" / "ref0.hdf"
    made = path.stat().st_mtime_ns
    again, said = call("refinemulti", *part, "--iter=2", "--resume", monkeypatch=monkeypatch)
    assert path.stat().st_mtime_ns == made
    assert not any("binary tree" in line for line in said)
    np.testing.assert_array_equal(again.classes, whole.classes)
    np.testing.assert_array_equal(again.maps, whole.maps)


def test_groups_of_hac_are_classified_apart(bench, tmp_path, monkeypatch):  # noqa: F811
    found, _ = call(
        "hac", f"--input={bench / 'p.hdf'}", f"--path={tmp_path / 'hac'}", "--subset=7",
        "--groups=2", "--iterstop=1", "--wedge=-60,60", "--search=1", "--noplots",
        monkeypatch=monkeypatch,
    )  # fmt: skip
    assert [done.indices.tolist() for done in found] == [[0, 1, 2], [3, 4, 5, 6]]
    for g, done in enumerate(found):
        folder = tmp_path / "hac_01" / f"group{g}"
        assert len(done.rounds) == 1
        header = io.read_hdf(folder / "final_avg.hdf")[1]
        assert set(header["spt_ptcl_indxs"]) <= set(done.indices.tolist())
        assert header["ptcl_repr"] == 2


# ---------------------------------------------------------------- centring and noise


def off_centre():
    """Particles whose phantom lies three voxels off along x of its own frame."""
    poses = simulate.random_poses(jax.random.key(4), 4, 0.0)
    away = Pose(poses.rotation, jnp.asarray([[3.0, 0, 0]]) + poses.shift)
    volumes = simulate.white_wedge_particles(
        jnp.asarray(simulate.phantom(BOX))[None], jnp.zeros(4, jnp.int32), away,
        simulate.TiltSeries(-60, 60, snr=3.0), jax.random.key(1),
    )  # fmt: skip
    return generate.prepare(Volumes(np.asarray(volumes)), sampling(), APIX)


def middle(volume):
    """Centre of mass of what is bright, voxels from the centre of the box."""
    bright = np.maximum(volume - 0.3 * volume.max(), 0)
    axis = np.arange(BOX) - BOX // 2
    return np.array([(bright.sum(axes) * axis).sum() for axes in ((0, 1), (0, 2), (1, 2))]) / (
        bright.sum()
    )


@pytest.mark.slow
def test_averages_are_centred():
    """The mean density of a tree's and a classification's map moves to the centre of the box."""
    material = off_centre()
    centre = Autocentre(CentreOfMass(powercenter=True))
    got = {}
    for name, autocentre in (("not", None), ("centred", centre)):
        tree = generate.TreeSettings(
            search_vox=2.0, seeds=2, averaging=Averaging(), autocentre=autocentre
        )
        hac = generate.HacSettings(search_vox=2.0, rounds=1, autocentre=autocentre)
        rows = np.arange(3)
        got[name] = [
            generate.tree_reference(generate.binary_tree(material, rows, tree)),
            generate.hac_reference(generate.classify_ascending(material, rows, hac)),
        ]
    for before, after in zip(got["not"], got["centred"]):
        assert np.linalg.norm(middle(after.map)) < np.linalg.norm(middle(before.map)) - 1
        # the poses moved with the map
        step = after.shift - before.shift
        np.testing.assert_allclose(step, np.broadcast_to(step[0], step.shape), atol=1e-5)
        assert np.linalg.norm(step[0]) > 1.5


def test_noise_alone_is_said_not_to_converge():
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(4, BOX, BOX, BOX)).astype(np.float32)
    material = generate.prepare(Volumes(noise), sampling(), APIX)
    tree = generate.binary_tree(material, np.arange(4), generate.TreeSettings(search_vox=2.0))
    assert "NOT CONVERGED" in generate.tree_reference(tree).note
    hac = generate.HacSettings(search_vox=2.0)
    found = generate.classify_ascending(material, np.arange(4), hac)
    assert "NOT CONVERGED" in generate.hac_reference(found).note


@pytest.mark.slow
def test_particles_are_not_said_to_be_noise():
    *_, material = planted()
    tree = generate.binary_tree(material, np.arange(4), generate.TreeSettings(search_vox=2.0))
    assert "NOT CONVERGED" not in generate.tree_reference(tree).note
    assert "2 levels" in generate.tree_reference(tree).note
