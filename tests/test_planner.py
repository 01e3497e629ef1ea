"""What a run is predicted to take, and how it is made to fit."""

import dataclasses

import numpy as np
import option_runs
import pytest

from sptjax import fourier, planner
from sptjax._errors import InputError
from sptjax.align import BATCH_BYTES
from sptjax.resample import padded_box

SIZE = planner.Size(particles=2000, box=64, copies=(64,), classes=1, halves=2)


def test_coefficients_are_counted_in_bytes():
    ball = fourier.half_ball_size(30)
    assert planner.coefficient_bytes(SIZE) == 2000 * ball * 8
    half = dataclasses.replace(SIZE, half=True)
    assert planner.coefficient_bytes(half) == 2000 * ball * 4
    own = dataclasses.replace(SIZE, own_sampling=True, copies=(64, 32))
    assert planner.coefficient_bytes(own) == 2000 * (ball + fourier.half_ball_size(14)) * 12


def test_memory_then_a_file_then_smaller_batches_then_a_refusal(tmp_path):
    """The order in which a run is squeezed, and that every plan keeps its limit."""
    many = dataclasses.replace(SIZE, particles=100_000)
    seen = []
    for limit in np.geomspace(90e9, 1e8, 40):
        try:
            plan = planner.make(many, limit=limit, folder=tmp_path)
        except InputError:
            seen.append(("refused", 0))
            continue
        assert plan.memory <= limit
        on_disk = plan.storage.folder is not None
        assert (plan.disk > 0) == on_disk
        seen.append(("file" if on_disk else "memory", plan.batch_bytes))
    order = list(dict.fromkeys(kind for kind, _ in seen))
    assert order == ["memory", "file", "refused"]
    for kind in ("memory", "file"):
        batches = [b for k, b in seen if k == kind]
        assert batches[0] == BATCH_BYTES
        assert batches == sorted(batches, reverse=True)
    with pytest.raises(InputError, match=r"100000 particles .* need \d.* GB .*--scratch"):
        planner.make(many, limit=10e9, folder=None)


def test_a_file_makes_memory_flat_in_the_particles(tmp_path):
    few, many = (
        planner.make(dataclasses.replace(SIZE, particles=n), limit=4e9, folder=tmp_path)
        for n in (20_000, 200_000)
    )
    assert few.storage.folder == many.storage.folder == tmp_path
    assert many.memory - few.memory < 250 * 180_000  # poses and scores alone


def test_every_device_of_a_cpu_has_programs_and_references(monkeypatch):
    one = planner.make(SIZE, limit=90e9, folder=None).memory
    monkeypatch.setattr(planner, "devices", lambda: ["first", "second", "third"])
    tables = 2 * 8 * padded_box(64, 2.0) ** 3
    least = 2 * (planner.DEVICE + tables) - 0.3e9  # where reading takes more than aligning
    assert planner.make(SIZE, limit=90e9, folder=None).memory - one > least
    monkeypatch.setattr(planner, "on_cpu", lambda: False)
    assert planner.make(SIZE, limit=90e9, folder=None).memory == one


@pytest.mark.slow
def test_a_run_from_a_file_finds_the_same(tmp_path):
    """The limit is put between what memory and what a file would take."""
    bench = option_runs.Bench(tmp_path)
    search = {"falign": "refine_3d"}
    plain = bench.run(**search)
    assert any("coefficients in memory" in line for line in plain.said)
    size = planner.Size(option_runs.COUNT, option_runs.BOX, (option_runs.BOX,), 2)
    last = len(planner.READ) - 1
    least = planner.program_bytes() + planner.working_bytes(
        size, BATCH_BYTES >> last, planner.READ[last]
    )
    limit = (least + planner.coefficient_bytes(size) / 2) / 1e9
    (tmp_path / "scratch").mkdir()
    tight = bench.run(**search, memory=limit, scratch=tmp_path / "scratch")
    assert any("GB in " in line and "1 particles at a time" in line for line in tight.said)
    # products of other shapes round otherwise, and climbs end within their own precision
    for name, atol in (("rotation", 1e-3), ("shift", 5e-3), ("score", 1e-3)):
        one, other = (getattr(run.state, name) for run in (tight, plain))
        np.testing.assert_allclose(one, other, atol=atol)
    np.testing.assert_array_equal(tight.state.classes, plain.state.classes)
    np.testing.assert_allclose(tight.state.maps, plain.state.maps, atol=2e-3)
    half = bench.run(**search, cache="bfloat16")
    np.testing.assert_array_equal(half.state.classes, plain.state.classes)
    apart = np.abs(half.state.score - plain.state.score).max()
    assert 0 < apart < 0.02 * np.abs(plain.state.score).max()


def test_what_cannot_fit_is_refused_before_work(tmp_path):
    bench = option_runs.Bench(tmp_path)
    with pytest.raises(InputError, match=r"need .* GB of memory .* 0\.1 GB may be used"):
        bench.run(memory=0.1)
    with pytest.raises(InputError, match=r"--scratch=.*no such folder"):
        bench.run(scratch=tmp_path / "nowhere")
