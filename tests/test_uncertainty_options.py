"""Options about how well poses are known, on planted particles whose poses are given."""

import numpy as np
import option_runs
import pytest
from option_runs import CLASSES, COUNT

from sptjax import io
from sptjax._errors import InputError


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return option_runs.Bench(tmp_path_factory.mktemp("uncertainty"))


def table_of(run):
    return io.read_pose_table(run.folder / "uncertainty_0.hdf")


def test_uncertainties_are_written_beside_the_poses(bench):
    base, run = bench.run(), bench.run(uncertainty=True)
    assert run.names() - base.names() == {"uncertainty_0.hdf", "uncertainty_0.json"}
    np.testing.assert_array_equal(run.state.maps, base.state.maps)
    table, again = table_of(run), io.read_pose_table(run.folder / "uncertainty_0.json")
    assert table.rotation.shape == (COUNT, 2, 3, 3)  # one pose in each class
    assert table.classes[:, 0].tolist() == CLASSES.tolist()
    np.testing.assert_allclose(table.rotation[:, 0], bench.matrices[:, :, :3], atol=1e-4)
    np.testing.assert_allclose(table.shift[:, 0], bench.matrices[:, :, 3], atol=1e-4)
    np.testing.assert_allclose(table.probability.sum(1) + table.elsewhere, 1, atol=1e-5)
    assert np.linalg.eigvalsh(table.covariance[:, 0].astype(float)).min() > 0
    np.testing.assert_allclose(again.covariance, table.covariance, atol=1e-6)


def test_the_best_known_particles_are_kept(bench):
    run = bench.run(uncertainty=True, keepbyuncertainty=0.5)
    transfer = table_of(run).transfer(CLASSES)
    for c in (0, 1):
        own = np.flatnonzero(CLASSES == c)
        kept = own[np.argsort(-transfer[own])[: len(own) // 2]]
        assert np.flatnonzero(run.state.used & (CLASSES == c)).tolist() == sorted(kept)
    alone = bench.run(keepbyuncertainty=0.5)
    assert "uncertainty_0.hdf" not in alone.names()
    np.testing.assert_array_equal(alone.state.used, run.state.used)


def test_particles_weigh_what_their_error_leaves(bench):
    run, base = bench.run(uncertainty=True, weighbyuncertainty=True), bench.run()
    wanted = table_of(run).transfer(CLASSES)
    np.testing.assert_allclose(run.state.weight, wanted, rtol=1e-5)
    assert 0 < wanted.min() < wanted.max() < 1
    assert np.abs(run.state.maps - base.state.maps).max() > 1e-5


def test_classes_that_cannot_be_told_share_their_particles(bench):
    """Two copies of one reference: half of every particle in both averages."""
    twice = ",".join([str(bench.folder / "ref0.hdf")] * 2)
    table = table_of(bench.run(ref=twice, soft=True, uncertainty=True))
    np.testing.assert_allclose(table.probability, 0.5, atol=1e-3)
    soft = bench.run(ref=twice, soft=True, uncertainty=True).stack("class_avgs.hdf")
    np.testing.assert_allclose(soft[0], soft[1], atol=1e-4)
    one = bench.classes("one.hdf", 0 * CLASSES, bench.matrices, n_classes=1)
    options = {"classmx": one, "recompute": True, "ref": None, "inixforms": None}
    alone = bench.run("classaverage", goldstandardoff=True, **options).stack("recomp_avg.hdf")
    np.testing.assert_allclose(soft[0], alone[0], atol=1e-3)


def test_clear_classes_stay_what_they_are(bench):
    run, base = bench.run(soft=True), bench.run()
    assert run.state.classes.tolist() == CLASSES.tolist()
    np.testing.assert_allclose(run.state.maps, base.state.maps, atol=0.02)


REFUSED = {
    "fraction": ({"keepbyuncertainty": 0}, r"--keepbyuncertainty=0: a fraction above 0"),
    "twice": ({"soft": True, "weighbyuncertainty": True}, "--soft and --weighbyuncertainty"),
    "score": ({"uncertainty": True, "aligncmp": "frc"}, "--uncertainty: a comparator that is"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(bench, case):
    options, message = REFUSED[case]
    with pytest.raises((InputError, SystemExit), match=message):
        bench.run(path=bench.folder / "refused", **options)
