"""Classes by PCA as files: from the script, and after a refinement by --ncls and --nbasis."""

import numpy as np
import option_runs
import pytest
import script_runs
from option_runs import APIX, BOX, CLASSES, COUNT

from sptjax import io, msa, workdir
from sptjax._errors import InputError
from sptjax.processors import PROCESSORS


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return option_runs.Bench(tmp_path_factory.mktemp("msa"))


def sort(bench, stem, *words):
    common = (f"--input={bench.folder / 'particles.hdf'}", "--wedge=none", f"--path={stem}")
    found, said = script_runs.call("msa", *common, *words)
    return found, said, workdir.latest(stem)


def agree(found):
    return max(np.mean(found == CLASSES), np.mean(found != CLASSES))


@pytest.fixture(scope="module")
def sorted_(bench):
    return sort(
        bench,
        bench.folder / "sorted",
        f"--inixforms={bench.folder / 'poses.json'}",
        "--nbasis=2",
        "--lowpass=filter.lowpass.tophat:cutoff_abs=0.3",
    )


def test_the_planted_classes_are_found(sorted_):
    found, _, _ = sorted_
    assert agree(found.classes) == 1


def test_files_hold_what_was_found(sorted_, bench):
    found, _, folder = sorted_
    basis = io.open_stack(folder / "msa_basis.hdf")
    assert len(basis) == 3
    maps = basis.read(np.arange(3))
    mean = bench.maps[CLASSES].mean(0)
    inside = np.s_[2:-2, 2:-2, 2:-2]
    assert np.corrcoef(maps[0][inside].ravel(), mean[inside].ravel())[0, 1] > 0.9
    difference = (bench.maps[1] - bench.maps[0])[inside].ravel()
    assert abs(np.corrcoef(maps[1][inside].ravel(), difference)[0, 1]) > 0.9
    values = [basis.header(i)["eigval"] for i in (1, 2)]
    shares = [basis.header(i)["explvarfrac"] for i in (1, 2)]
    assert values[0] > 2 * values[1] > 0
    assert shares[0] / shares[1] == pytest.approx(values[0] / values[1], rel=1e-3)
    assert 0 < sum(shares) < 1
    table = np.loadtxt(folder / "msa_projection.txt")
    assert table[:, 0].tolist() == list(range(COUNT))
    assert table[:, 1:] == pytest.approx(found.components.coordinates, abs=1e-4)
    matrix = io.read_classmx(folder / "classmx_msa.hdf")
    assert np.array_equal(matrix.classes, found.classes)
    assert matrix.shifts_vox == pytest.approx(bench.matrices[:, :, 3], abs=1e-3)
    averages = io.open_stack(folder / "class_avgs_msa.hdf")
    for c in (0, 1):
        planted = bench.maps[CLASSES[found.classes == c][0]]
        volume = averages.read(np.array([c]))[0]
        assert np.corrcoef(volume[inside].ravel(), planted[inside].ravel())[0, 1] > 0.8
        assert averages.header(c)["ptcl_repr"] == np.sum(found.classes == c)
    assert {"msa_scatter.png", "class_avgs_msa.png"} <= {p.name for p in folder.iterdir()}


def test_poses_of_a_class_matrix_and_one_class_alone(bench):
    words = (f"--classmx={bench.folder / 'classmx.hdf'}", "--noplots", "--nbasis=1")
    found, _, folder = sort(bench, bench.folder / "one", *words, "--oneclass=0")
    rows = np.flatnonzero(CLASSES == 0)
    assert np.array_equal(found.posed.indices, rows)
    assert np.loadtxt(folder / "msa_projection.txt")[:, 0].tolist() == rows.tolist()
    classes = io.read_classmx(folder / "classmx_msa.hdf").classes
    assert (classes[CLASSES == 1] == -1).all()
    assert (classes[rows] >= 0).all()
    assert "msa_scatter.png" not in {p.name for p in folder.iterdir()}


BAD = {
    "no poses": ([], "poses are needed"),
    "one class": (["--ncls=1"], r"--ncls=1: from 2 to all 8"),
    "too many": (["--ncls=9"], r"--ncls=9: from 2 to all 8"),
    "no component": (["--nbasis=0"], r"--nbasis=0: from 1 to 7"),
    "as many components": (["--nbasis=8"], r"--nbasis=8: from 1 to 7"),
    "class of poses": (["--oneclass=0"], "--oneclass: the classes come from --classmx"),
    "no mask": (["--mask=filter.lowpass.gauss:cutoff_abs=0.1"], r"--mask=.*group mask"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case, bench):
    words, message = BAD[case]
    poses = [] if case == "no poses" else [f"--inixforms={bench.folder / 'poses.json'}"]
    before = set(bench.folder.iterdir())
    with pytest.raises(InputError, match=message):
        sort(bench, bench.folder / "bad", *poses, *words)
    assert set(bench.folder.iterdir()) == before


def test_the_band_ends_at_half_gain():
    lowpass = PROCESSORS["filter.lowpass.tophat"](cutoff_abs=0.27)
    assert msa.passed(lowpass, 24, 5.0) == 6
    assert msa.passed(None, 24, 5.0) == 10


def test_odd_halves_are_moved_onto_even(bench):
    """Poses of the odd half are composed with the transform that moves its map."""
    state = bench.run("classaverage", goldstandardoff=True).state
    quarter = np.array([[0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3]], np.float32)
    moved = msa.members(msa.dataclasses.replace(state, odd_to_even=quarter[None]), 0)
    plain = msa.members(state, 0)
    even = plain.indices % 2 == 0
    assert np.allclose(moved.rotation[even], plain.rotation[even])
    x = np.array([1.0, -2.0, 0.5])
    for i in np.flatnonzero(~even):
        placed = plain.rotation[i] @ x + plain.shift[i]
        wanted = quarter[:, :3] @ placed + quarter[:, 3]
        assert np.allclose(moved.rotation[i] @ x + moved.shift[i], wanted, atol=1e-4)


def test_a_refinement_sorts_every_class(bench):
    """One reference for all: --ncls finds the planted classes; --nbasis says how many volumes."""
    run = bench.run("classaverage", goldstandardoff=True, ncls=2, nbasis=2)
    assert len(run.stack("msa_basis.hdf")) == 3
    assert agree(io.read_classmx(run.folder / "classmx_msa.hdf").classes) == 1
    assert run.apix("class_avgs_msa.hdf") == pytest.approx(APIX)
    assert run.stack("class_avgs_msa.hdf").shape == (2, BOX, BOX, BOX)
    several = bench.run("refinemulti", nbasis=1)
    sizes = np.bincount(several.state.classes)
    for c in (0, 1):
        classes = io.read_classmx(several.folder / f"class{c}_classmx_msa.hdf").classes
        assert np.sum(classes >= 0) == sizes[c]
        assert len(several.stack(f"class{c}_msa_basis.hdf")) == 2
    few = bench.run("refinemulti", ncls=6, nbasis=1)
    assert any("class 0 has 4 particles, too few" in line for line in few.said)
    assert "class0_msa_basis.hdf" not in few.names()
