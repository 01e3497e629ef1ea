"""Options for classes that can be trusted: fixed poses, masks, random draws, repeated runs."""

import numpy as np
import option_runs
import pytest
from option_runs import APIX, BLOBS, BOX, CLASSES, COUNT

from sptjax import io, stability
from sptjax._errors import InputError
from sptjax.selection import assign


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return option_runs.Bench(tmp_path_factory.mktemp("robust"))


def agree(found):
    return max(np.mean(found == CLASSES), np.mean(found != CLASSES))


def near(places, radius=3.0):
    """Mask around places of blobs."""
    axis = np.arange(BOX) - BOX // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    inside = [(x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2 <= radius**2 for a, b, c in places]
    return np.any(inside, 0).astype(np.float32)


LAST = [blobs[-1][0] for blobs in BLOBS]  # where the classes differ


def test_poses_are_kept(bench):
    """The poses of the file, although an aligner is the default; classes by the references."""
    run = bench.run(skipali=True, align=None)
    given = np.asarray(bench.matrices)
    for c in (0, 1):
        found, _ = run.poses(f"sptali_rm_0_{c}.json")
        assert np.abs(found - given).max() < 1e-4
    assert np.array_equal(run.state.classes, CLASSES)


def test_without_references_classes_come_from_the_particles(bench):
    run = bench.run(skipali=True, align=None, ref=None, iter=2)
    assert np.abs(run.poses("sptali_rm_1_0.json")[0] - bench.matrices).max() < 1e-4
    assert agree(run.state.classes) == 1
    matrix = bench.folder / "classmx.hdf"
    other = bench.run(skipali=True, align=None, ref=None, inixforms=None, classmx=matrix)
    assert np.array_equal(other.state.classes, CLASSES)


def test_a_mask_while_aligning(bench):
    """References without the blob that tells the classes, but what is written has it."""
    outside = bench.write("outside.hdf", 1 - near(LAST))
    run, base = bench.run(maskalign=outside), bench.run()
    own, spread = (np.ptp(r.state.score, axis=1) for r in (run, base))
    assert np.median(own) < 0.3 * np.median(spread)
    assert np.array_equal(base.state.classes, CLASSES)
    averages = run.stack("class_avgs.hdf")
    assert (averages * near(LAST)).max() > 0.5


def test_a_mask_for_the_classes(bench):
    """Inside it the planted classes; with a mask elsewhere nothing tells them."""
    outside = bench.write("outside.hdf", 1 - near(LAST))
    inside = bench.write("inside.hdf", near(LAST))
    run = bench.run(maskalign=outside, maskclass=inside)
    assert np.array_equal(run.state.classes, CLASSES)
    elsewhere = bench.run(maskclass=bench.write("else.hdf", near([(4, 0, 0)], 2.0)))
    margin = [np.median(np.abs(np.diff(r.state.score, axis=1))) for r in (run, elsewhere)]
    assert margin[1] < 0.3 * margin[0]


def test_classes_are_drawn_in_the_first_rounds(bench):
    run, base = bench.run(iter=2, anneal=1, seed=5), bench.run(iter=2, seed=5)
    score = base.state.score
    assert np.array_equal(run.state.classes, np.argmax(run.state.score, 1))
    first, plain = (r.folder / "classmx_0.hdf" for r in (run, base))
    drawn = io.read_classmx(first).classes
    scores = np.stack([-run.poses(f"sptali_rm_0_{c}.json")[1] for c in (0, 1)], 1)
    assert np.array_equal(drawn, assign(scores, 0, 1, 5))
    assert not np.array_equal(drawn, io.read_classmx(plain).classes)
    assert score.shape == (COUNT, 2)


def test_runs_with_several_seeds_are_compared(bench):
    run = bench.run(nseeds=3, seed=4, iter=2, anneal=1)
    folders = {p.name for p in run.folder.iterdir() if p.is_dir()}
    assert folders == {"seed4_01", "seed5_01", "seed6_01"}
    runs = [io.read_classmx(run.folder / f"seed{s}_01/classmx_1.hdf").classes for s in (4, 5, 6)]
    record = run.json("stability.json")
    wanted = [[stability.adjusted_rand(a, b) for b in runs] for a in runs]
    assert np.allclose(record["adjusted_rand"], wanted)
    assert record["seeds"] == [4, 5, 6]
    lines = (run.folder / "stability.txt").read_text().splitlines()
    assert lines[0].split("\t") == ["particle", "class", "stability", "seed_4", "seed_5", "seed_6"]
    table = np.array([line.split("\t") for line in lines[1:]], float)
    named = np.stack([stability.renamed(r, table[:, 1].astype(int), 2) for r in runs], 1)
    assert np.array_equal(table[:, 3:], named)
    assert table[:, 2] == pytest.approx((named == table[:, [1]]).mean(1), abs=1e-3)
    assert any("3 seeds: mean adjusted Rand index" in line for line in run.said)
    first = bench.run(seed=4, iter=2, anneal=1)
    assert np.array_equal(runs[0], first.state.classes)
    assert run.apix("seed4_01/class_avgs.hdf") == pytest.approx(APIX)


BAD = {
    "no poses": (
        {"skipali": True, "align": None, "inixforms": None},
        "--skipali: poses are needed",
    ),
    "aligned": ({"skipali": True, "align": "rotate_translate_3d"}, "--skipali and --align"),
    "polished": ({"skipali": True, "align": None, "falign": "refine_3d"}, "--skipali and --falign"),
    "always drawn": ({"anneal": 2, "iter": 2}, "--anneal=2: fewer rounds than the 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_contradictions_are_refused(case, bench):
    options, message = BAD[case]
    with pytest.raises(InputError, match=message):
        bench.run(**options)


def test_masks_are_checked(bench):
    mask = bench.write("mask.hdf", near(LAST))
    with pytest.raises(InputError, match="two masks for the references"):
        bench.run(maskalign=mask, maskfile=mask, maskfile_target="both")
    wrong = bench.write("wrong.hdf", near(LAST), apix=3.0)
    with pytest.raises(InputError, match=r"--maskclass: .*voxels of 3 A"):
        bench.run(maskclass=wrong)
