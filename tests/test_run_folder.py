"""Whole runs on a small simulated set: their files, their numbers, and what survives a kill."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import script_runs

from sptjax import io, resolution, workdir
from sptjax._errors import InputError

WEDGE = "--wedge=-60,60"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return script_runs.small_set(tmp_path_factory.mktemp("small"))


def common(small, stem):
    return [f"--input={small.particles}", WEDGE, "--search=3", "--seed=3", f"--path={stem}"]


def angle_deg(a, b):
    cosine = (np.einsum("nij,nij->n", a, b) - 1) / 2
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


# ---------------------------------------------------------------- refinemulti


@pytest.fixture(scope="module")
def multi(small, tmp_path_factory):
    """Folder, final state, printed lines and compilations by round of a 3-round, 3-class run.

    Particle 5 holds a NaN and particle 8 is constant.
    """
    folder = tmp_path_factory.mktemp("multi")
    stack = io.open_stack(small.particles).read(np.arange(script_runs.COUNT)).copy()
    stack[5, 3, 4, 5] = np.nan
    stack[8] = 2.5
    io.write_hdf(folder / "damaged.hdf", stack, script_runs.APIX)
    options = [
        *common(small, folder / "run"),
        f"--input={folder / 'damaged.hdf'}",
        f"--ref={small.ref(0)},{small.ref(1)},{small.ref(0)}:0",
        "--nref=3",
        "--iter=3",
        "--savesteps",
        "--saveali",
        "--resultmx=final_classes.hdf",
    ]
    compiled, by_round = [], []

    def count(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration)

    def listen(line):
        said.append(line)
        if line.startswith("round"):
            by_round.append(len(compiled))

    said = []
    jax.monitoring.register_event_duration_secs_listener(count)
    with pytest.MonkeyPatch.context() as patch:
        script = script_runs.load("refinemulti")
        patch.setattr(script.console, "say", listen)
        state = script.run(values=script._flags.parse(["x", *options]), argv=["x", *options])
    return workdir.latest(folder / "run"), state, said, by_round


def test_bad_particles_are_named_and_left_out(multi):
    folder, state, said, _ = multi
    assert [line.split("damaged.hdf ")[1] for line in said if line.startswith("excluded")] == [
        "image 5 (NaN or infinity)",
        "image 8 (no contrast)",
    ]
    assert np.flatnonzero(state.classes < 0).tolist() == [5, 8]
    assert not state.used[[5, 8]].any()
    matrix = io.read_classmx(folder / "classmx_2.hdf")
    assert np.flatnonzero(matrix.classes < 0).tolist() == [5, 8]
    assert np.isfinite(state.maps).all()


def test_planted_classes_and_poses_are_found(multi, small):
    """Classes 0 and 2 started from one map, class 1 from the other."""
    _, state, _, _ = multi
    good = state.classes >= 0
    assert (np.isin(state.classes[good], (0, 2)) == (small.classes[good] == 0)).all()
    turn, shift = state.pose
    error = angle_deg(turn, small.matrices[:, :, :3])[good]
    away = np.linalg.norm(shift - small.matrices[:, :, 3], axis=1)[good]
    assert np.median(error) < 5
    assert error.max() < 12
    assert np.median(away) < 0.4


def test_an_emptied_class_is_said_and_filled(multi):
    """Two equal references: the second gets nothing by score and half of the first by rule."""
    _, state, said, _ = multi
    assert any(line.startswith("class 2 was empty") for line in said)
    assert np.bincount(state.classes[state.classes >= 0], minlength=3).min() > 0


def test_pose_files_hold_the_state(multi):
    folder, state, _, _ = multi
    for c in range(3):
        raw = json.loads((folder / f"sptali_rm_2_{c}.json").read_text())
        assert sorted(raw) == [f"subtomo_{i:02d}" for i in range(script_runs.COUNT)]
        assert all(raw[k][0]["__class__"] == "Transform" for k in raw)
        assert all(len(raw[k][0]["matrix"].strip("[]").split(",")) == 12 for k in raw)
        matrices, scores = io.read_alignments(folder / f"sptali_rm_2_{c}.json")[:2]
        turn = matrices[:, :, :3]
        identity = np.einsum("nij,nkj->nik", turn, turn)
        np.testing.assert_allclose(identity, np.broadcast_to(np.eye(3), identity.shape), atol=2e-5)
        assert (np.linalg.det(turn) > 0).all()
        np.testing.assert_allclose(turn, state.rotation[:, c], atol=1e-6)
        np.testing.assert_allclose(matrices[:, :, 3], state.shift[:, c], atol=1e-5)
        np.testing.assert_allclose(scores, -state.score[:, c], atol=1e-5)
    extras = io.read_extras(folder / "sptali_rm_2_0.json", script_runs.COUNT)
    np.testing.assert_array_equal(extras["class"], state.classes)
    np.testing.assert_array_equal(extras["half"], np.arange(script_runs.COUNT) % 2)


def test_class_matrix_matches_the_pose_files(multi):
    folder, state, _, _ = multi
    with io.HdfReader(folder / "classmx_2.hdf") as reader:
        planes = np.stack([reader.read(i) for i in range(len(reader))])
    assert planes.shape[1:] == (script_runs.COUNT, 3)
    member = planes[0] == 1
    np.testing.assert_array_equal(member.sum(1), state.classes >= 0)
    np.testing.assert_array_equal(
        member.argmax(1)[state.classes >= 0], state.classes[state.classes >= 0]
    )
    np.testing.assert_array_equal(planes[1][member] == 1, state.used[state.classes >= 0])
    row = np.flatnonzero(state.classes >= 0)
    shift = np.stack([planes[2 + a][row, state.classes[row]] for a in range(3)], 1)
    np.testing.assert_allclose(shift, state.pose[1][row], atol=1e-5)
    assert (folder / "final_classes.hdf").is_file()


def test_averages_carry_their_headers(multi):
    folder, state, _, _ = multi
    with io.HdfReader(folder / "class_avgs.hdf") as reader:
        assert len(reader) == 3
        for c in range(3):
            np.testing.assert_array_equal(reader.read(c), state.maps[c])
            assert reader.apix(c) == pytest.approx(script_runs.APIX)
            assert reader.header(c)["spt_multiplicity"] == np.sum(state.classes == c)
    for c in range(3):
        aligned = io.open_stack(folder / f"class{c}_ptcl.hdf")
        assert len(aligned) == np.sum(state.classes == c)
        steps = io.open_stack(folder / f"class_{c}.hdf")
        assert len(steps) == 3
        np.testing.assert_array_equal(steps.read([2])[0], state.maps[c])
    for it in range(3):
        assert len(io.open_stack(folder / f"class_avgs_iter{it}.hdf")) == 3


def test_curves_and_resolutions(multi):
    """Abscissae in 1/angstrom up to Nyquist; the table's numbers are those of the curves."""
    folder, state, _, _ = multi
    box, apix = script_runs.BOX, script_runs.APIX
    table = json.loads((folder / "resolution.json").read_text())
    assert sorted(table) == ["0", "1", "2"]
    for c in range(3):
        found = np.loadtxt(folder / f"fsc_2_{c}.txt")
        np.testing.assert_allclose(
            found[:, 0], np.arange(1, box // 2 + 1) / (box * apix), atol=1e-6
        )
        np.testing.assert_allclose(found[:, 1], state.fsc[c, 0, 1:], atol=1e-5)
        expected = resolution.resolution_angstrom(state.fsc[c, 0], apix, 0.143)
        assert table["2"][str(c)]["unmasked"]["0.143"] == pytest.approx(expected)
        even, odd = (np.fft.fftn(h) for h in state.halves[c])
        k = np.fft.fftfreq(box, 1 / box)
        shell = np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)).astype(int)
        for s in (2, 4):  # the definition, on the halves
            at = shell == s
            value = (even[at] * odd[at].conj()).sum().real
            value /= np.sqrt((abs(even[at]) ** 2).sum() * (abs(odd[at]) ** 2).sum())
            assert state.fsc[c, 0, s] == pytest.approx(value, abs=1e-3)


def test_text_files_pictures_and_manifest(multi):
    folder, state, _, _ = multi
    membership = (folder / "class_membership.txt").read_text()
    assert membership.count("ITERATION") == 3
    last = membership.split("ITERATION 2")[1]
    for c in range(3):
        line = next(x for x in last.splitlines() if x.startswith(f"CLASS {c}:"))
        rows = [int(x.rstrip("*")) for x in line.split(":")[1].split(",")]
        assert rows == np.flatnonzero(state.classes == c).tolist()
        scores = np.loadtxt(folder / f"spt_cccs_2_{c}.txt", ndmin=2)
        assert (np.diff(scores[:, 1]) <= 0).all()
        assert sorted(scores[:, 0].astype(int)) == rows
    for name in ("slices.png", "fsc_2.png", "spt_cccs_2.png", "class_occupancy.png"):
        assert (folder / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    manifest = workdir.read_manifest(folder)
    assert (manifest.program, manifest.seed) == ("refinemulti", 3)
    assert manifest.options["nref"] == 3
    log = workdir.read_lines(folder, "log.jsonl")
    assert [r["round"] for r in log] == [0, 1, 2]
    assert log[0]["changed_fraction"] is None, "there was no class before"
    assert all(0 <= r["changed_fraction"] <= 1 for r in log[1:])
    assert not list(folder.glob(".*")), "temporary files are left"


def test_later_rounds_compile_next_to_nothing(multi):
    """References, rotations and tables are arguments of the compiled functions.

    The second round may plan its search anew, because its references have another spectrum and
    score higher: one search plan is at most ten compilations. Nothing grows with the round.
    """
    *_, by_round = multi
    assert len(by_round) == 3
    assert 0 < by_round[0] < 400
    assert max(np.diff(by_round)) <= 10


# ---------------------------------------------------------------- gold standard


def test_gold_standard_halves_share_no_reference(small):
    """Other odd particles leave the even poses, scores and map as they were, bit for bit.

    The noise model belongs to the stack and is held fixed here.
    """
    import dataclasses

    from sptjax import particles as spt_particles
    from sptjax import refinement, symmetry
    from sptjax.align import AlignmentSettings, RotateTranslate3D
    from sptjax.copies import Copies
    from sptjax.rows import MemoryRows
    from sptjax.state import initial_state
    from sptjax.wedge import parse, region

    stack = io.open_stack(small.particles)
    sampling = spt_particles.Sampling(region(stack.box, parse("-60,60")), None, False)
    loaded = spt_particles.load_particles(stack, sampling, 8)
    settings = refinement.RefineSettings(
        alignment=AlignmentSettings(aligner=RotateTranslate3D(search=2, delta=30, dphi=30)),
        symmetries=(symmetry.parse("c1"),),
        apix=script_runs.APIX,
        gold_standard=True,
    )
    reference = io.read_volume(small.ref(0))[0][None]
    start = initial_state(reference, len(stack), gold_standard=True, expected_score=20.0)

    class Swapped:
        """The stack with its odd particles in reverse order."""

        box = stack.box
        order = np.arange(len(stack))

        def __len__(self):
            return len(stack)

        def read(self, indices):
            return stack.read(self.order[indices])

    odd = np.arange(1, len(stack), 2)
    Swapped.order[odd] = odd[::-1]
    other = dataclasses.replace(loaded, coefficients=MemoryRows(loaded.read(Swapped.order)[0]))
    one = refinement.refine_round(start, Copies.of(loaded), stack, sampling, settings)
    two = refinement.refine_round(start, Copies.of(other), Swapped(), sampling, settings)
    np.testing.assert_array_equal(one.rotation[::2], two.rotation[::2])
    np.testing.assert_array_equal(one.score[::2], two.score[::2])
    np.testing.assert_array_equal(one.halves[0, 0], two.halves[0, 0])
    np.testing.assert_array_equal(one.score[odd], two.score[odd[::-1]])  # the odd ones moved
    assert not np.array_equal(one.references[0], one.references[1])


# ---------------------------------------------------------------- kill and resume


def start_script(folder, *options):
    environment = dict(os.environ, JAX_COMPILATION_CACHE_DIR=str(folder / "xla"))
    script = script_runs.EXPERIMENTS / "refinemulti.py"
    return subprocess.Popen(
        [sys.executable, str(script), *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    return out


RESUMABLE = ["--nref=2", "--iter=3", "--align=rotate_translate_3d:search=2:delta=30:dphi=30"]


@pytest.fixture(scope="module")
def unbroken(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    finish(start_script(folder, *resumable(small, folder, "whole")))
    return folder


def resumable(small, folder, name):
    refs = f"--ref={small.ref(0)},{small.ref(1)}"
    return [*common(small, folder / name), refs, *RESUMABLE, "--noplots"]


def kill_after(process, run, state, delay):
    """Kill -9 once a state file is there, and a little later still."""
    while not (run / state).exists() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def assert_same_results(one, two):
    names = sorted(p.name for p in one.iterdir())
    assert [p.name for p in sorted(two.iterdir()) if not p.name.startswith(".")] == names
    for name in names:
        if (name.endswith(".json") and name != "manifest.json") or name.endswith(".txt"):
            if not name.startswith("parameters"):
                assert (one / name).read_bytes() == (two / name).read_bytes(), name
        elif name.endswith(".hdf"):
            with io.HdfReader(one / name) as a, io.HdfReader(two / name) as b:
                assert len(a) == len(b), name
                for i in range(len(a)):
                    np.testing.assert_array_equal(a.read(i), b.read(i), err_msg=name)
    last = workdir.load_last_round(one), workdir.load_last_round(two)
    assert last[0].index == last[1].index
    for name, array in last[0].arrays.items():
        np.testing.assert_array_equal(array, last[1].arrays[name], err_msg=name)


def test_a_killed_run_resumes_to_the_same_bits(small, unbroken, rng):
    options = resumable(small, unbroken, "killed")
    process = start_script(unbroken, *options)
    kill_after(process, unbroken / "killed_01", "state_1.npz", rng.uniform(0, 0.5))
    assert (unbroken / "killed_01" / "state_1.npz").exists()
    said = finish(start_script(unbroken, *options, "--resume"))
    assert "resuming after round" in said
    assert_same_results(unbroken / "whole_01", unbroken / "killed_01")
    assert not (unbroken / "killed_02").exists()
    lines = workdir.read_lines(unbroken / "killed_01", "log.jsonl")
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert not list((unbroken / "killed_01").glob(".*.tmp"))


def test_resume_with_other_options_is_refused(small, unbroken, monkeypatch):
    before = set(unbroken.rglob("*"))
    options = [*resumable(small, unbroken, "whole"), "--resume", "--keep=0.5", "--seed=4"]
    with pytest.raises(InputError, match=r"--keep \(was 1.0, is 0.5\), --seed \(was 3, is 4\)"):
        script_runs.call("refinemulti", *options, monkeypatch=monkeypatch)
    assert set(unbroken.rglob("*")) == before


def test_resume_for_more_digits_of_rounds_is_refused(small, unbroken, monkeypatch):
    options = [*resumable(small, unbroken, "whole"), "--resume", "--iter=10"]
    with pytest.raises(InputError, match=r"--iter=10: the files of .* are numbered for 3 rounds"):
        script_runs.call("refinemulti", *options, monkeypatch=monkeypatch)


def test_a_stack_without_usable_particles_leaves_no_folder(small, tmp_path, monkeypatch):
    box = script_runs.BOX
    volumes = np.zeros((4, box, box, box), np.float32)
    volumes[0, 3, 4, 5] = 1
    io.write_hdf(tmp_path / "flat.hdf", volumes, script_runs.APIX)
    options = [*common(small, tmp_path / "run"), f"--input={tmp_path / 'flat.hdf'}", "--wedge=none"]
    with pytest.raises(InputError, match="fewer than two particles are usable"):
        script_runs.call(
            "refinemulti", *options, f"--ref={small.ref(0)}", "--nref=2", monkeypatch=monkeypatch
        )
    assert not (tmp_path / "run_01").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", range(6))
def test_kills_at_random_moments(small, unbroken, rng, number):
    """Killed twice, anywhere from its start on, and damaged once; the end is the same."""
    name = f"random{number}"
    options = resumable(small, unbroken, name)
    run = unbroken / f"{name}_01"
    process = start_script(unbroken, *options)
    kill_after(process, run, "manifest.json", rng.uniform(0, 15))
    process = start_script(unbroken, *options, "--resume")
    kill_after(process, run, "state_0.npz", rng.uniform(0, 10))
    states = sorted(run.glob("state_*.npz"))
    if number % 2 and len(states) > 1:
        content = states[-1].read_bytes()
        states[-1].write_bytes(content[: len(content) // 2])
    finish(start_script(unbroken, *options, "--resume"))
    assert_same_results(unbroken / "whole_01", run)
