"""The reports that the programs write: true to the files of their run."""

import base64
import pathlib
import shlex
import urllib.parse

import numpy as np
import option_runs
import pytest
import script_runs
from html_page import Page
from option_runs import APIX, CLASSES, COUNT

from sptjax import _messages, _run_files, console, io, results, run_report, workdir

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return option_runs.Bench(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def multi(bench):
    return bench.run(plots=True, iter=2, resultmx="named.hdf")


def read(folder):
    """The report of a run, checked for what holds for all of them."""
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert not page.all("script")
    for attributes, _ in page.all("img"):
        kind, data = attributes["src"].split(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data, validate=True)[:8] == PNG
    names = [urllib.parse.unquote(a["href"]) for a, _ in page.all("a")]
    assert all(name.startswith("./") for name in names)
    assert all((folder / name).is_file() for name in names)
    inner = {p.parent for p in folder.glob("*/manifest.json")}
    there = {
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_file() and (p.parent not in inner or p.name == "report.html")
    }
    assert {name.removeprefix("./") for name in names} == there - {"report.html"}
    for name, what, size in page.rows("files")[1:]:
        assert what, f"{name} is not described"
        assert size
    return page


def sections(page):
    return [text for _, text in page.all("h2")]


def commands(page):
    """Words of the ways to go on, by program, the command of the run itself left out."""
    found = {}
    for attributes, text in page.all("pre")[1:]:
        if attributes.get("class") == "command":
            words = typed(text)
            program = pathlib.Path(words[1]).stem if words[0] == "python" else words[0]
            found.setdefault(program, []).append(words)
    return found


def typed(text):
    """Words that a shell makes of a command, also one of several lines."""
    return shlex.split(text.replace("\\\n", ""))


def values(words):
    """What a script of ours makes of a command line."""
    script = script_runs.load(pathlib.Path(words[1]).stem)
    return script._flags.parse(words[1:])


def titles(page):
    return [a["alt"] for a, _ in page.all("img")]


# ---------------------------------------------------------------- refinement


def test_class_table_equals_the_files(multi):
    page, (head, *rows) = read(multi.folder), read(multi.folder).rows("classes")
    found = multi.json("resolution.json")["1"]
    assert head[:4] == ["Class", "Particles", "Averaged", "Symmetry"]
    assert [("0.5" in name, "corrected" in name) for name in head[4:]] == [
        *((False, False), (False, True), (True, False), (True, True)),
    ]  # fmt: skip
    assert len(rows) == 2
    for c, row in enumerate(rows):
        own = found[str(c)]
        wanted = [own[curve][t] for t in ("0.143", "0.5") for curve in ("unmasked", "corrected")]
        assert row[4:] == ["-" if x is None else f"{x:.1f}" for x in wanted]
        matrix = io.read_classmx(multi.folder / "classmx_1.hdf")
        count = str(int((matrix.classes == c).sum()))
        assert row[:4] == [f"class {c}", count, count, "c1"]
    assert sections(page)[:1] == ["What was done"]


def test_pictures_are_those_of_the_folder_in_order(multi):
    page = read(multi.folder)
    wanted = [
        *("slices", "projections", "fsc_1", "spt_cccs_1", "margins", "class_occupancy"),
        *("class_flow", "directions", "coverage"),
    ]
    shown = [base64.b64decode(a["src"].split(",")[1]) for a, _ in page.all("img")]
    assert shown == [(multi.folder / f"{name}.png").read_bytes() for name in wanted]


def test_the_ways_to_go_on_are_commands_that_work(multi):
    found = commands(read(multi.folder))
    (viewer,) = found["chimerax"]
    assert f"voxelSize {APIX:g}" in viewer[2]
    opened = viewer[2].split('"')[1]
    assert io.open_stack(opened).apix == APIX
    assert len(io.open_stack(opened)) == 2
    for c, words in enumerate(found["classaverage"]):
        chosen = values(words)
        assert chosen["oneclass"] == c
        assert chosen["wedge"] == "none"
        matrix = io.read_classmx(chosen["classmx"])
        assert len(matrix.classes) == len(io.open_stack(chosen["input"])) == COUNT
        assert matrix.n_classes == 2
    assert len(found["classaverage"]) == 2
    assert "refinemulti" not in found  # it has converged


def test_the_way_to_more_rounds_is_a_command_that_works(bench):
    for run in (bench.run(iter=1), bench.run(iter=1, nseeds=2)):
        (again,) = commands(read(run.folder))["refinemulti"]
        assert [w for w in again if w.startswith(("--iter", "--path", "--resume"))] == [
            f"--path={run.folder}", "--iter=6", "--resume",
        ]  # fmt: skip
        workdir.check_resume(run.folder, values(again))


def test_words_say_what_was_done(multi, bench):
    page = read(multi.folder)
    whole = page.all("main")[0][1]
    assert f"{COUNT} particles of 24 voxels (10 Å each) from" in whole
    assert "sorted into 2 classes in 2 rounds" in whole
    assert "Particles kept the poses that were given." in whole
    assert f"--input={bench.folder / 'particles.hdf'}" in page.all("pre")[0][1]
    assert "--nref=2" in whole
    described = {name: what for name, what, _ in page.rows("files")[1:]}
    assert described["named.hdf"] == "class matrix: class and pose of every particle"


def test_the_search_is_named_only_where_it_was_stated():
    options = {"align": "DEFAULT", "falign": "", "aligncmp": "matched"}
    for words, named in (
        (["x.py", "--aligncmp=matched"], False),
        (["x.py", "--align=DEFAULT"], True),
        (["x.py", "-align", "DEFAULT"], True),
    ):
        manifest = workdir.describe("refinemulti", words, options, 0, "cpu")
        said = results.alignment_words(manifest)
        assert ("DEFAULT" in said) == named
        assert said.endswith("score: matched.")
    manifest = workdir.describe("refinemulti", [], options | {"align": "None"}, 0, "cpu")
    assert results.alignment_words(manifest) == "Particles kept the poses that were given."


def test_without_plots_there_are_no_pictures(bench):
    run = bench.run(iter=1)
    page = read(run.folder)
    assert not page.all("img")
    assert "Pictures" not in sections(page)


def test_gold_standard_run(bench):
    run = bench.run("classaverage", plots=True, iter=1, sym="c2", breaksym=True, saveali=True)
    page = read(run.folder)
    assert "references of their own" in page.all("main")[0][1]
    assert len(page.rows("classes")) == 2
    assert page.rows("classes")[1][3] == "c2"
    assert titles(page)[:3] == ["Central slices", "Projections", "Fourier shell correlation"]
    assert "Margins" not in titles(page)
    found = commands(page)
    chosen = values(found["classaverage"][-1])
    assert (chosen["sym"], chosen["align"], chosen["falign"]) == ("c2", "None", "refine_3d")
    assert pathlib.Path(chosen["classmx"]).is_file()
    assert pathlib.Path(values(found["msa"][0])["inixforms"]).is_file()


def test_recomputed_averages_have_a_report(bench):
    run = bench.run(
        "classaverage",
        recompute=True,
        plots=True,
        classmx=bench.folder / "classmx.hdf",
        inixforms=None,
        ref=None,
    )
    page = read(run.folder)
    assert "were averaged with the classes and poses of" in page.all("main")[0][1]
    wanted = ["Central slices", "Projections", "Viewing directions", "Sampling of Fourier space"]
    assert titles(page) == wanted
    assert [row[1] for row in page.rows("classes")[1:]] == [
        str((CLASSES == c).sum()) for c in (0, 1)
    ]


def test_classes_refined_apart_have_one_report_and_one_each(bench):
    options = {"classmx": bench.folder / "classmx.hdf", "ref": None, "inixforms": None}
    run = bench.run("classaverage", **options, goldstandardoff=True, iter=1)
    page = read(run.folder)
    for c, row in enumerate(page.rows("classes")[1:]):
        part = read(run.folder / f"class{c}_01").rows("classes")[1]
        assert row[:2] == [f"class {c}", part[1]]
        assert [row[2], row[3]] == [part[5], part[7]]
        assert row[4] == f"class{c}_01/report.html"
        assert set(commands(read(run.folder / f"class{c}_01"))) == {"chimerax"}


def test_several_seeds_have_one_report(bench):
    run = bench.run(iter=1, nseeds=2)
    page = read(run.folder)
    assert "Rand index" in page.all("main")[0][1]
    assert len(commands(read(run.folder / "seed1_01"))["classaverage"]) == 2
    assert "refinemulti" not in commands(read(run.folder / "seed1_01"))
    assert [row[0] for row in page.rows("classes")[1:]] == [
        f"seed {s}, class {c}" for s in (0, 1) for c in (0, 1)
    ]


# ---------------------------------------------------------------- messages, resume


def test_messages_and_warnings_of_the_run_are_kept_over_a_resume(bench, capsys):
    damaged = bench.particles.copy()
    damaged[3] = np.nan
    bench.write("damaged.hdf", damaged)
    stem = bench.folder / "spoken"
    options = {k: v for k, v in bench.common("refinemulti").items() if k != "plots"}
    options |= {"input": bench.folder / "damaged.hdf", "path": stem, "precision": 2, "iter": 2}
    words = [f"--{k}={v}" for k, v in options.items()]
    script_runs.call("refinemulti", *words)
    folder = workdir.latest(stem)
    printed = capsys.readouterr().out.splitlines()
    kept = [_messages.read(x) for x in (folder / "messages.log").read_text().splitlines()]
    assert [line for line in printed if not line.startswith("averages")] == kept[: len(printed) - 1]
    page = read(folder)
    (warned,) = (text for a, text in page.all("ul") if a["class"] == "warnings")
    assert "excluded:" in warned
    assert "image 3 (NaN or infinity)" in warned
    assert "--precision does nothing without --radius" in warned
    assert "round 1/2" not in warned
    assert len(page.all("img")) == 9
    before = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    script_runs.call("refinemulti", *words, "--resume", "--noplots")
    after = read(folder)
    assert not after.all("img")
    assert "resuming after round 1" in after.all("pre")[-1][1]
    assert [text for _, text in after.all("li")] == [text for _, text in page.all("li")]
    assert after.rows("classes") == page.rows("classes")
    assert len(before) > 5 * (folder / "report.html").stat().st_size


def test_a_transcript_belongs_to_its_run(tmp_path):
    with console.transcript():
        console.say("before")
        console.keep(tmp_path / "outer.log")
        with console.transcript():
            console.say("early")
            console.keep(tmp_path / "inner.log")
            console.say(_messages.warning("late"))
        console.say(_messages.step("after"))
    console.say("outside")
    early = "note    early\nwarning late\n"
    assert (tmp_path / "inner.log").read_text() == early
    assert (tmp_path / "outer.log").read_text() == f"note    before\n{early}step    after\n"


def test_a_run_that_fails_leaves_no_folder(bench):
    missing = bench.folder / "nothing.hdf"
    with pytest.raises(Exception, match="nothing"):
        bench.run(input=missing, path=bench.folder / "failed")
    assert not list(bench.folder.glob("failed*"))


# ---------------------------------------------------------------- other programs


def run_alone(bench, program, *words):
    stem = bench.folder / program
    common = (f"--input={bench.folder / 'particles.hdf'}", "--wedge=none", f"--path={stem}")
    script_runs.call(program, *common, *words)
    return workdir.latest(stem)


@pytest.mark.slow
def test_report_of_msa(bench):
    folder = run_alone(bench, "msa", f"--inixforms={bench.folder / 'poses.json'}", "--nbasis=2")
    page = read(folder)
    matrix = io.read_classmx(folder / "classmx_msa.hdf")
    counts = [str(int((matrix.classes == c).sum())) for c in (0, 1)]
    assert [row[1] for row in page.rows("classes")[1:]] == counts
    assert titles(page) == ["Central slices", "Principal coordinates"]
    chosen = values(commands(page)["classaverage"][1])
    assert (chosen["oneclass"], chosen["classmx"]) == (1, str(folder / "classmx_msa.hdf"))


@pytest.mark.parametrize(
    ("program", "words", "pictures"),
    [
        ("binarytree", ["--nseedlimit=4"], 1),
        ("hac", ["--subset=4", "--exclusive_class_min=2"], 2),
        ("symsearch3d", ["--subset=3", "--sym=c2", "--average", "--steps=2"], 1),
    ],
)
@pytest.mark.slow
def test_reports_of_maps_from_particles(bench, program, words, pictures):
    folder = run_alone(bench, program, "--search=1", *words)
    page = read(folder)
    average = io.open_stack(folder / "final_avg.hdf")
    sym = "c2" if program == "symsearch3d" else "c1"
    row = ["final_avg.hdf", str(average.header(0)["ptcl_repr"]), sym]
    assert page.rows("classes")[1] == row
    assert len(page.all("img")) == pictures
    found = commands(page)
    chosen = values(found["classaverage"][0])
    assert chosen["ref"] == str(folder / "final_avg.hdf")
    assert chosen["sym"] == sym
    assert chosen["subset"] == 0
    assert values(found["refinemulti"][0])["nref"] == 3


# ---------------------------------------------------------------- words


def test_commands_are_spoken_as_they_were_started():
    options = {"input": "a b.hdf", "premultiplied": True, "wedge": "w.hdf", "subset": 0}

    def spoken(first):
        manifest = workdir.describe("refinemulti", [first, "--nref=2"], options, 0, "cpu")
        carried = run_report.particle_options(manifest)
        return typed(run_report.call(manifest, "classaverage", carried | {"oneclass": 1}))

    rest = ["--input=a b.hdf", "--wedge=w.hdf", "--premultiplied", "--oneclass=1"]
    assert spoken("/x/_scripts/refinemulti.py") == ["sptjax", "classaverage", *rest]
    assert spoken("experiments/refinemulti.py") == [
        *("python", "experiments/classaverage.py"), *rest,
    ]  # fmt: skip


def test_long_commands_go_over_several_lines():
    manifest = workdir.describe("msa", ["x/_scripts/msa.py"], {"input": "p"}, 0, "cpu")
    text = run_report.call(manifest, "msa", {f"option{i}": "x" * 30 for i in range(9)})
    assert max(map(len, text.splitlines())) <= 100
    assert len(typed(text)) == 11


def test_a_run_of_the_most_rounds_offers_no_more():
    manifest = workdir.describe("msa", ["sptjax", "--iter=9"], {}, 0, "cpu")
    folder = pathlib.Path("run_01")
    assert run_report.resume(manifest, folder, 9) is None
    more = run_report.resume(manifest, folder, 8)
    assert more is not None
    assert typed(more.command) == ["sptjax", "--path=run_01", "--iter=9", "--resume"]


def test_every_file_of_the_documents_is_described():
    page = (pathlib.Path(__file__).parents[1] / "docs" / "results.md").read_text()
    table = page.split("# The run folder")[1].split("\n## ")[0]
    names = [n for line in table.splitlines() if line.startswith("| `") for n in named(line)]
    assert len(names) > 15
    for name in names:
        assert _run_files.describe(name), name


def named(line):
    """Files that the first cell of a row names, with numbers in the place of <it> and <c>."""
    cell = line.split("|")[1]
    found = [part for part in cell.split("`")[1::2] if "." in part]
    for old, new in (("<it>", "2"), ("<c>", "0"), ("<n>", "1"), ("<program>", "refinemulti")):
        found = [name.replace(old, new) for name in found]
    return [n.replace("[_0][_masked, _maskedtight, _corrected]", "_0_masked") for n in found
            if "…" not in n and not n.startswith(".")]  # fmt: skip
