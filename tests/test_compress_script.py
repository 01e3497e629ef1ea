"""experiments/compress.py: names, options, exit statuses, reports."""

import importlib
import json
import pathlib
import subprocess
import sys

import mrcfile
import numpy as np
import pytest
from oracles import eman2_hdf as eman2

from sptjax import fidelity
from sptjax.io import read_hdf, write_hdf, write_mrc

F = np.float32
EXPERIMENTS = pathlib.Path(__file__).resolve().parents[1] / "experiments"
RAMP = np.arange(256, dtype=F).reshape(16, 16)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command line in a folder of its own; returns the exit status."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    monkeypatch.chdir(tmp_path)
    script = importlib.import_module("compress")
    return lambda *words: script.main(["compress.py", *map(str, words)])


def names(folder="."):
    return {path.name for path in pathlib.Path(folder).iterdir()}


def test_the_documented_command(run, capsys):
    pathlib.Path("out").mkdir()
    for name in ("a.mrc", "b.mrc"):
        write_mrc(name, RAMP * 2 + 100, 2.0)
    line = "--nooutliers --outpath out --threads 2 -v 2 --bits 5 --ppid 7 *.mrc".split()
    assert run(*line) == 0
    assert names("out") == {"a.hdf", "b.hdf"}
    assert names() == {"a.mrc", "b.mrc", "out"}
    assert eman2.header("out/a.hdf")["stored_renderbits"] == 5
    said = capsys.readouterr()
    assert "a.mrc -> out/a.hdf: 1 image" in said.out


def test_defaults_and_extensions(run):
    write_mrc("a.mrc", RAMP, 2.0)
    write_hdf("b.HDF", [RAMP], 2.0)
    write_hdf("c.hdf", [RAMP], 2.0)
    assert run("a.mrc", "b.HDF", "c.hdf") == 0
    assert names() == {"a.mrc", "a.hdf", "b.HDF", "b.hdf", "c.hdf"}
    for name in ("a.hdf", "b.hdf", "c.hdf"):
        assert eman2.header(name)["stored_renderbits"] == 10
        np.testing.assert_array_equal(eman2.read(name), RAMP)
    with pathlib.Path("b.hdf").open("rb") as stream:
        assert stream.read(4) == b"\x89HDF"


def test_case_20_names(run, capsys):
    write_hdf("noext", [RAMP], 2.0)
    for folder in ("a.b", "c"):
        pathlib.Path(folder).mkdir()
    write_hdf("a.b/d", [RAMP], 2.0)
    for name in ("x y.mrc", "$(id).mrc", "c/x y.mrc", "[1].mrc"):
        write_mrc(name, RAMP, 2.0)
    assert run("./noext", "a.b/d", "x y.mrc", "$(id).mrc", "[1].mrc") == 0
    assert {"noext.hdf", "x y.hdf", "$(id).hdf", "[1].hdf"} <= names()
    assert names("a.b") == {"d", "d.hdf"}
    before = names("c")
    pathlib.Path("e").mkdir()
    assert run("x y.mrc", "c/x y.mrc", "--outpath=e") == 2
    assert "both" in capsys.readouterr().err
    assert names("e") == set()
    assert names("c") == before
    assert run("x y.mrc", "c/*.mrc") == 0  # two folders
    assert run("x y.mrc", "x y.hdf") == 2


def test_case_21_one_bad_file_of_five(run, capsys):
    for index in range(5):
        write_mrc(f"{index}.mrc", RAMP + index, 2.0)
    pathlib.Path("2.mrc").write_bytes(pathlib.Path("2.mrc").read_bytes()[:1100])
    assert run("--threads=4", *(f"{i}.mrc" for i in range(5))) == 1
    said = capsys.readouterr().err
    assert "2.mrc" in said
    assert "truncated" in said
    assert "1 failed" in said
    assert not [name for name in names() if "tmp" in name]
    assert "2.hdf" not in names()
    for index in (0, 1, 3, 4):
        np.testing.assert_array_equal(eman2.read(f"{index}.hdf"), RAMP + index)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--outpath=missing"], 1),
        (["--range", "5,1"], 2),
        (["--range=1"], 2),
        (["--bits=17"], 2),
        (["--bits=1"], 2),
        (["--compresslevel=12"], 2),
        (["--compresslevel=-1"], 2),
        (["--sigrange=-4,-4"], 2),
        (["--sigrange=inf,3"], 2),
        (["--range=nan,3"], 2),
        (["--decompress", "--report"], 2),
        (["--threads=0"], 2),
        (["--bits=many"], 2),
        (["--nosuchoption"], 2),
        (["missing.mrc"], 1),
    ],
)
def test_case_28_lines_that_make_no_sense(run, words, status, capsys):
    write_mrc("a.mrc", RAMP, 2.0)
    assert run("a.mrc" if status == 2 or "out" in words[0] else "missing.mrc", *words) == status
    assert names() == {"a.mrc"}
    assert capsys.readouterr().err.startswith("compress.py: ")
    assert run() == 2


def test_case_28_negative_limits_need_no_sign_of_equality(run):
    write_mrc("a.mrc", RAMP - 128, 2.0)
    assert run("a.mrc", "--range", "-3,3", "--bits", "4") == 0
    assert eman2.limits("a.hdf")[:2] == (-3, 12)
    assert run("a.mrc", "--sigrange", "0.02,0.02", "--bits=3") == 0
    assert eman2.limits("a.hdf")[0] == -2
    assert run("a.mrc", "--sigrange=1,1", "--range=-3,3", "--nooutliers", "--bits=8") == 0
    assert eman2.limits("a.hdf")[0] == -120  # the ninth smallest


def test_strict_files_split_and_formats(run, capsys):
    broken = RAMP.copy()
    broken[3, 3] = np.nan
    write_mrc("n.mrc", broken, 2.0)
    assert run("n.mrc", "--strict") == 1
    assert names() == {"n.mrc"}
    assert run("n.mrc") == 0
    assert "1 values were NaN" in capsys.readouterr().out
    write_mrc("v.mrc", np.stack([RAMP] * 3), 2.0)
    assert run("v.mrc", "--split", "--report") == 0
    assert json.loads(pathlib.Path("v_report.json").read_text())["images"] == 3
    assert eman2.count("v.hdf") == 3
    pathlib.Path("folder.mrc").mkdir()
    assert run("folder.mrc") == 1
    assert "is a folder" in capsys.readouterr().err
    for name in ("a.dm4", "a.eer", "a.png", "a.xyz"):
        pathlib.Path(name).write_bytes(b"something")
        assert run(name) == 1
        assert name in capsys.readouterr().err
    with mrcfile.new("c.mrc", np.zeros((3, 4), np.complex64)):
        pass
    assert run("c.mrc") == 1
    assert "no real values" in capsys.readouterr().err


def test_decompression(run, rng, capsys):
    write_hdf("a.hdf", [rng.normal(0, 1, (8, 12, 16)).astype(F)], 2.0)
    assert run("a.hdf", "--bits=6") == 0
    seen = read_hdf("a.hdf")[0]
    assert run("a.hdf", "--decompress", "--format=mrc") == 0
    with mrcfile.open("a.mrc") as file:
        np.testing.assert_array_equal(file.data, seen)
    assert run("a.hdf", "--decompress", "--format=mrc") == 1
    assert "exists" in capsys.readouterr().err
    assert run("a.hdf", "--decompress") == 0
    np.testing.assert_array_equal(eman2.codes("a.hdf"), seen)


def test_report(run, rng, capsys):
    image = rng.normal(0, 1, (16, 40, 48)).astype(F)
    write_hdf("a.hdf", [image], 2.0)
    assert run("a.hdf", "--bits=4", "--report") == 0
    found = json.loads(pathlib.Path("a_report.json").read_text())
    error = np.abs(read_hdf("a.hdf")[0] - image)
    sigma = image.std(ddof=1)
    assert found["worst_sigma"] == pytest.approx(error.max() / sigma, rel=1e-5)
    rms = np.sqrt((error.astype(float) ** 2).mean()) / sigma
    assert found["rms_sigma"] == pytest.approx(rms, rel=1e-5)
    assert found["ratio_to_float32"] == 4 * image.size / pathlib.Path("a.hdf").stat().st_size
    rows = {row["bits"]: row for row in found["by_bits"]}
    assert sorted(rows) == list(range(2, 17))
    assert rows[4]["rms_sigma"] == pytest.approx(rms, rel=1e-5)
    assert rows[8]["rms_sigma"] == pytest.approx(rms / 16, rel=0.2)
    # white signal and error: 1 / sqrt(1 + error power), in every shell
    values = np.array(found["fsc"][3:])
    np.testing.assert_allclose(values, 1 / np.sqrt(1 + rms**2), atol=0.01)
    assert pathlib.Path("a_report.png").read_bytes()[:4] == b"\x89PNG"
    assert "lowest FSC" in capsys.readouterr().out


def test_reports_of_integers_and_of_names_with_points(run, rng, capsys):
    write_hdf("a.b.hdf", [rng.poisson(3, (20, 30)), RAMP], 2.0)
    assert run("a.b.hdf", "--bits=8", "--report") == 0
    assert names() == {"a.b.hdf", "a.b_report.json", "a.b_report.png"}
    found = json.loads(pathlib.Path("a.b_report.json").read_text())
    assert (found["worst_sigma"], found["rms_sigma"]) == (0, 0)
    assert min(x for x in found["fsc"] if x is not None) == pytest.approx(1, abs=1e-12)


def test_correlation_of_known_noise(rng):
    """Noise in the upper half of the frequencies only, its power a quarter of the signal's."""
    signal, noise = rng.normal(0, 1, (2, 64, 96))
    radius = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.rfftfreq(96))
    noise = np.fft.irfftn(np.fft.rfftn(noise) * (radius >= 0.25) * 0.5, signal.shape, axes=(0, 1))
    found = fidelity.correlation([signal], [signal + noise + 3])
    np.testing.assert_allclose(found[1:16], 1, atol=1e-12)
    np.testing.assert_allclose(found[16:31], 1 / np.sqrt(1.25), atol=0.06)
    one = fidelity.correlation([signal[:4, :6]], [signal[:4, :6] * 2 + 1e5])
    np.testing.assert_allclose(one[~np.isnan(one)], 1, atol=1e-8)
    assert np.isnan(one[0])  # the mean alone, which does not count


def test_the_script_starts_without_the_accelerator(tmp_path):
    write_hdf(tmp_path / "a.hdf", [RAMP], 2.0)
    code = (
        "import sys, compress; status = compress.main(['c', sys.argv[1], '--bits=5']);"
        " sys.exit(10 if 'jax' in sys.modules else status)"
    )
    line = [sys.executable, "-c", code, str(tmp_path / "a.hdf")]
    assert subprocess.run(line, cwd=EXPERIMENTS).returncode == 0


def test_help_and_version(run, capsys):
    assert run("-h") == 0
    said = capsys.readouterr().out
    for name in (
        "bits compresslevel nooutliers range sigrange outpath threads verbose ppid decompress"
    ).split():
        assert f"--{name}" in said or f"--[no]{name}" in said
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("sptjax ")
