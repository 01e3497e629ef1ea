"""``--help``: every option of a program once, in a group, in two lines, with its default."""

import re
import runpy
import subprocess
import sys

import pytest
import script_runs

NAMES = sorted(p.stem for p in script_runs.EXPERIMENTS.glob("[a-z]*.py"))
OPTION = re.compile(r"  --(?:\[no\])?(\w+)(?: |$)")
ORDER = (
    "Input|References|Preprocessing|Alignment|Classification|Averaging|Simulation|Boxes"
    "|Compression|Output|Computing"
).split("|")


class Page:
    """The page of a program, taken apart."""

    def __init__(self, name):
        script = script_runs.load(name)
        self.values = script.FLAGS if name == "compress" else script_runs.flags.FLAGS
        self.help = sys.modules["_help"]
        self.lines = self.help.text(script.__doc__, self.values).splitlines()
        self.headings, self.entries = [], {}
        for before, line in zip(["", *self.lines], self.lines):
            found = OPTION.match(line)
            if found:
                assert found[1] not in self.entries, f"--{found[1]} is shown twice"
                self.entries[found[1]] = [line]
            elif not before and line and not line.startswith(" "):
                self.headings.append(line)
            elif self.entries and line:
                self.entries[next(reversed(self.entries))].append(line)

    def flags(self):
        table = self.values.flags_by_module_dict().items()
        return {flag.name: flag for module, own in table if "absl" not in module for flag in own}


@pytest.fixture(scope="module", params=NAMES)
def page(request):
    return Page(request.param)


def test_every_option_is_shown_once(page):
    assert set(page.entries) == set(page.flags())


def test_every_option_is_in_a_group_of_the_list(page):
    grouped = page.help.grouped(page.values)
    assert list(grouped) == list(page.help.GROUPS)
    found = [flag.name for own in grouped.values() for flag in own]
    assert sorted(found) == sorted(page.flags())


def test_the_groups_are_in_order(page):
    shown = [h.split()[0].rstrip(":") for h in page.headings if h in page.help.GROUPS.values()]
    assert [word for word in ORDER if word in shown] == shown
    assert shown[-1] in ("Output", "Computing")
    assert [h.split()[0] for h in page.help.GROUPS.values()] == ORDER


def test_nothing_is_wider_than_a_hundred(page):
    assert max(map(len, page.lines)) <= 100


def test_two_lines_are_enough(page):
    long = {name: entry for name, entry in page.entries.items() if len(entry) > 2}
    assert not long, "\n".join(line for entry in long.values() for line in entry)


def test_defaults_are_shown(page):
    for name, flag in page.flags().items():
        entry = " ".join(line.strip() for line in page.entries[name])
        if flag.default in (None, "", []) or flag.default is False:
            assert "default:" not in entry, name
        elif flag.default is True:
            assert f"--[no]{name}" in entry, name
            assert entry.endswith("(default: on)"), name
        else:
            value = ",".join(flag.default) if isinstance(flag.default, list) else flag.default
            assert entry.endswith(f"(default: {value})"), name


def test_every_choice_is_named(page):
    for name, flag in page.flags().items():
        entry = " ".join(page.entries[name])
        for word in getattr(flag.parser, "enum_values", None) or ():
            assert word in entry, f"--{name}={word}"


def test_a_script_prints_its_page():
    path = script_runs.EXPERIMENTS / "refinemulti.py"
    done = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.splitlines() == Page("refinemulti").lines


def test_absl_still_lists_everything_with_helpfull():
    path = script_runs.EXPERIMENTS / "simulate.py"
    done = subprocess.run([sys.executable, path, "--helpfull"], capture_output=True, text=True)
    assert "--nptcl: number of particles" in done.stdout
    assert "--verbosity" in done.stdout  # of absl


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_the_demo_shows_two_options(word, monkeypatch, capsys):
    path = script_runs.EXPERIMENTS / "demo.py"
    script_runs.load("demo")
    script_runs.unload()
    monkeypatch.setattr(sys, "argv", [str(path), word])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [found[1] for line in lines if (found := OPTION.match(line))] == ["path", "verbose"]


def test_the_demo_takes_no_other(tmp_path):
    path = script_runs.EXPERIMENTS / "demo.py"
    words = [sys.executable, path, "--iter=9"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith("demo.py: --iter: this program takes path, verbose alone\n")
