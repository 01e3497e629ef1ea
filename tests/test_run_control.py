"""What a run says, what it warns of, and how runs of several classes go on."""

import re
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import option_runs
import pytest
import script_runs
from option_runs import CLASSES, COUNT

from sptjax import io, runner

APART = {"classmx": "classmx.hdf", "ref": None, "inixforms": None, "align": "None", "iter": 2}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return option_runs.Bench(tmp_path_factory.mktemp("control"))


@pytest.fixture
def quiet_compilations():
    """Level 9 switches JAX's log of compilations on, for good."""
    yield
    jax.config.update("jax_log_compiles", False)


@pytest.mark.usefixtures("quiet_compilations")
def test_levels_of_detail_add_lines(bench):
    """Levels 2 to 5 say what classmx and the pose files hold."""
    said = {level: bench.run(verbose=level).said for level in (0, 2, 3, 4, 5, 9)}
    assert not [line for line in said[0] if re.match(r"(class|particle) \d", line)]
    score = bench.run().state.score
    for level in (2, 3, 4, 5):
        classes = [line for line in said[level] if re.match(r"class \d: ", line)]
        assert [line.split(",")[0] for line in classes] == [
            f"class {c}: {np.sum(CLASSES == c)} particles" for c in (0, 1)
        ]
        particles = [line for line in said[level] if line.startswith("particle")]
        assert len(particles) == (COUNT if level >= 3 else 0)
        for i, line in enumerate(particles):
            c = CLASSES[i]
            assert f"particle {i}: class {c}, score {score[i, c]:.2f}" in line
            margin = f"margin {score[i, c] - score[i, 1 - c]:.2f}"
            assert (margin in line) == (level >= 4)
            assert ("rotation [" in line) == (level >= 5)
    assert [line for line in said[9] if line.startswith("peak memory")]
    assert [line for line in said[9] if "AlignmentSettings(" in line]


def test_a_full_disk_is_foreseen(bench, monkeypatch):
    """Aligned and prepared particles are counted, before any of them is written."""
    needed = 3 * COUNT * option_runs.BOX**3 * 4  # two rounds and the prepared ones
    options = {"saveallalign": True, "savepreproc": True, "iter": 2}
    for free, warned in ((needed - 1, True), (needed, False)):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        said = bench.run(**options, seed=int(warned)).said
        assert any(line.startswith("warning: ") and "left" in line for line in said) == warned


def test_the_average_is_followed_in_the_frame_of_the_reference(bench):
    run = bench.run("classaverage", iter=2, savesteps=True)
    steps = run.stack("avgs_ali2ref.hdf")
    assert len(steps) == 2
    np.testing.assert_array_equal(steps[1], run.stack("final_avg_ali2ref.hdf")[0])
    near = [np.corrcoef(step.ravel(), bench.maps[0].ravel())[0, 1] for step in steps]
    assert min(near) > 0.5


def test_all_peaks_are_kept_without_a_fine_aligner(bench):
    options = {"align": "rotate_translate_3d:search=2:delta=30:dphi=30", "inixforms": None}
    run = bench.run("classaverage", **options, npeakstorefine=3, saveallpeaks=True)
    keys = run.json("sptali_ir_coarse_allpeaks_0.json")
    assert len(keys) == 3 * COUNT
    scores = [
        float(keys[f"subtomo_{i}_peak_{p}"][1].split("=")[1])
        for i in range(COUNT)
        for p in range(3)
    ]
    scores = np.array(scores).reshape(COUNT, 3)
    assert (np.diff(scores, axis=1) >= 0).all()  # in files smaller is better


def test_a_killed_run_of_several_classes_goes_on(bench, monkeypatch):
    """Killed in the second class: the first is kept, the second is done, as if unbroken."""
    options = APART | {"classmx": bench.folder / "classmx.hdf", "goldstandardoff": True}
    whole = bench.run("classaverage", **options)
    stem = bench.folder / "broken"
    words = [
        f"--{k}={v}" for k, v in (bench.common("classaverage") | options).items() if v is not None
    ]
    real, calls = runner.execute, []

    def dies(job, **rest):
        calls.append(job.output.folder)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(job, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "execute", dies)
        with pytest.raises(KeyboardInterrupt):
            script_runs.call("classaverage", f"--path={stem}", *words, monkeypatch=patch)
    first = (calls[0] / "state_2.npz").read_bytes()
    script_runs.call("classaverage", f"--path={stem}", *words, "--resume", monkeypatch=monkeypatch)
    assert (calls[0] / "state_2.npz").read_bytes() == first
    folders = sorted(p.name for p in (bench.folder / "broken_01").iterdir() if p.is_dir())
    assert folders == ["class0_01", "class1_01"]
    for name in folders:
        average = [
            io.read_hdf(f / name / "final_avg.hdf")[0]
            for f in (whole.folder, stem.with_name("broken_01"))
        ]
        np.testing.assert_array_equal(*average)
