"""The console command ``sptjax``: what it lists, runs and refuses, and what a wheel holds of it."""

import importlib.metadata
import pathlib
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

from sptjax import __main__ as command
from sptjax import __version__, io

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPTS = sorted(p.stem for p in (ROOT / "experiments").glob("[a-z]*.py"))
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())


def ask(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["sptjax", *words])
    monkeypatch.setattr(sys, "path", list(sys.path))
    command.main()


def test_the_entry_point_is_the_command():
    name = SETTINGS["project"]["scripts"]["sptjax"]
    assert importlib.metadata.EntryPoint("sptjax", name, "console_scripts").load() is command.main


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_one_line_for_every_program(words, monkeypatch, capsys):
    ask(monkeypatch, *words)
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split() for line in lines if line.startswith("  ") and "PROGRAM" not in line]
    assert [words[0] for words in listed] == SCRIPTS
    assert all(len(words) > 4 for words in listed)
    assert max(map(len, lines)) <= 100


def test_version(monkeypatch, capsys):
    ask(monkeypatch, "--version")
    assert capsys.readouterr().out == f"sptjax {__version__}\n"


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("refinmulti", "refinemulti"),
        ("e2spt_hac.py", "hac"),
        ("e2symsearch3d.py", "symsearch3d"),
        ("e2spt_refinemulti_old.py", "refinemulti"),
        ("Compress", "compress"),
        ("classaverage.py", "classaverage"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(word, near, monkeypatch):
    with pytest.raises(SystemExit) as end:
        ask(monkeypatch, word)
    assert str(end.value) == f"sptjax: {word} is no program; did you mean {near}?"


@pytest.mark.parametrize("word", ["xyz", "_argv"])
def test_a_name_like_none_lists_all(word, monkeypatch):
    """Modules beside the programs are none."""
    with pytest.raises(SystemExit, match=f"{word} is no program; there are {', '.join(SCRIPTS)}$"):
        ask(monkeypatch, word)


def test_it_runs_a_program_with_its_options(tmp_path):
    """Through an interpreter of its own; exit status and messages are the program's."""
    base = [sys.executable, "-m", "sptjax", "compress"]
    done = subprocess.run([*base, "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"sptjax {__version__}\n")
    done = subprocess.run([*base, "--bits=many"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "bits" in done.stderr
    assert "Traceback" not in done.stderr


def laid_out(folder):
    """The files of a wheel, as pyproject.toml says."""
    wheel = SETTINGS["tool"]["hatch"]["build"]["targets"]["wheel"]
    skip = shutil.ignore_patterns("__pycache__")
    for package in wheel["packages"]:
        shutil.copytree(ROOT / package, folder / package, ignore=skip)
    for source, target in wheel["force-include"].items():
        shutil.copytree(ROOT / source, folder / target, ignore=skip)


def test_the_layout_of_a_wheel_runs(tmp_path):
    """No checkout beside the package: the programs come from inside it."""
    laid_out(tmp_path)
    base = [sys.executable, "-m", "sptjax"]
    done = subprocess.run(base, capture_output=True, text=True, cwd=tmp_path)
    assert [x.split()[0] for x in done.stdout.splitlines()[4:] if x[:2] == "  "] == SCRIPTS
    code = "import sptjax.__main__ as m; print(m.scripts()['compress'])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.strip() == str(tmp_path / "sptjax" / "_scripts" / "compress.py")
    done = subprocess.run(
        [*base, "compress", "--version"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == f"sptjax {__version__}\n"


@pytest.mark.slow
def test_a_wheel_in_an_empty_environment(tmp_path):
    """Built, installed with what it needs, and run: nothing of the checkout is in reach."""

    def call(*words):
        return subprocess.run([*map(str, words)], capture_output=True, text=True, cwd=tmp_path)

    made = call(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, ROOT)
    if made.returncode and "hatchling" in made.stderr:
        pytest.skip("pip reaches no index to fetch hatchling from")
    assert not made.returncode, made.stderr
    (wheel,) = tmp_path.glob("sptjax-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"sptjax/_scripts/{p.name}" for p in (ROOT / "experiments").glob("*.py")}
    assert wanted <= held
    assert {n for n in held if "_scripts" in n} == wanted
    call(sys.executable, "-m", "venv", tmp_path / "empty")
    bin_ = tmp_path / "empty" / "bin"
    done = call(bin_ / "python", "-m", "pip", "install", "--quiet", wheel)
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("pip reaches no index to fetch JAX from")
    assert not done.returncode, done.stderr
    done = call(bin_ / "sptjax", "--version")
    assert done.stdout == f"sptjax {__version__}\n"
    done = call(bin_ / "sptjax", "refinemulti", "--help")
    assert not done.returncode
    assert "--refrandphase" in done.stdout
    done = call(bin_ / "sptjax", "simulate", "--nptcl=2", "--box=16", "--output=two.hdf")
    assert not done.returncode, done.stderr
    assert len(io.open_stack(tmp_path / "two.hdf")) == 2
