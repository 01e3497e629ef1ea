"""The page about a run, read as HTML: everything said, nothing loaded, nothing taken for markup."""

import base64
import json
import pathlib
import re
import shutil
import subprocess
import urllib.parse

import numpy as np
import pytest
from html_page import Page
from matplotlib.image import imread

from sptjax import plots, report
from sptjax._errors import InputError

NASTY = '<script>alert("1 & 2")</script>'


def png(tmp_path):
    path = tmp_path / "p.png"
    plots.save(plots.ranked_scores(np.arange(9.0)), path)
    return path.read_bytes()


@pytest.fixture
def full(tmp_path):
    return report.Report(
        title=f"refinemulti: {NASTY}",
        facts=[("Device", "1 x cpu"), (NASTY, NASTY)],
        command=f"sptjax refinemulti --input='{NASTY}'",
        done=["First.", NASTY],
        warnings=["warning: disk", NASTY],
        notes=["note"],
        table=report.Table(("Class", "Particles"), (("class 0", "12"), (NASTY, "<3")), NASTY),
        pictures=[report.Picture(f'a "{NASTY}', NASTY, png(tmp_path))],
        steps=[report.Step(NASTY, "sptjax msa --x='a & b' && true")],
        files=[report.File('odd #1 "name" 50%?.hdf', NASTY, 1_234_567)],
        options=[("input", NASTY), ("nref", "3")],
        messages=[NASTY, "round 1/3"],
    )


def test_everything_is_said_and_nothing_is_markup(full):
    text = report.render(full)
    page = Page(text)
    assert not page.all("script")
    assert "<script" not in text
    whole = page.all("html")[0][1]
    assert whole.count(NASTY) == 15  # title and heading, twice among facts, once elsewhere
    for words in ("First.", "warning: disk", "note", "round 1/3", "--nref=3", "1 x cpu"):
        assert words in whole
    assert page.all("title")[0][1] == full.title
    assert page.rows("classes") == [["Class", "Particles"], ["class 0", "12"], [NASTY, "<3"]]
    assert page.rows("files")[1] == ['odd #1 "name" 50%?.hdf', NASTY, "1.23 MB"]
    commands = [text for _, text in page.all("pre")]
    assert full.command in commands
    assert full.steps[0].command in commands


def test_pictures_are_inside_and_the_page_loads_nothing(full, tmp_path):
    page = Page(report.render(full))
    (image,) = page.all("img")
    kind, data = image[0]["src"].split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data, validate=True) == full.pictures[0].png
    assert image[0]["alt"] == full.pictures[0].title
    loading = {"src", "srcset", "poster", "data", "background", "action"}
    for tag, attributes, _ in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        if tag != "img":
            assert not loading & set(attributes)
    style = page.all("style")[0][1]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style


def test_links_lead_to_files_with_odd_names(full, tmp_path):
    (tmp_path / full.files[0].name).write_text("x")
    page = Page(report.render(full))
    (link,) = [a["href"] for a, _ in page.all("a")]
    address = urllib.parse.urljoin((tmp_path / "report.html").as_uri(), link)
    assert pathlib.Path(urllib.parse.unquote(urllib.parse.urlparse(address).path)).is_file()


def test_a_bare_report_has_no_empty_sections():
    page = Page(report.render(report.Report("t", [], "c", ["Done."])))
    assert [text for _, text in page.all("h2")] == ["What was done"]


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (64e6, "64 MB"), (2e13, "2e+04 GB")],
)
def test_sizes_are_readable(size, shown):
    one = report.Report("t", [], "c", [], files=[report.File("a", "b", int(size))])
    assert Page(report.render(one)).rows("files")[1][2] == shown


def test_the_file_appears_whole_or_not_at_all(full, tmp_path):
    path = tmp_path / "run" / "report.html"
    with pytest.raises(InputError):
        report.write(path, full)
    path.parent.mkdir()
    report.write(path, full)
    assert path.read_text(encoding="utf-8") == report.render(full)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


# ---------------------------------------------------------------- a browser

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed to open the report with")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_the_page_within_its_width(full, tmp_path, width):
    """The page is measured inside of a frame of that width: it fits, and its picture is drawn."""
    page = tmp_path / "report.html"
    report.write(page, full)
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe id="f" src="report.html" width="{width}" height="900" style="border:0"></iframe>'
        "<pre id='out'></pre><script>window.onload = () => {"
        "const d = document.getElementById('f').contentDocument; const i = d.images[0];"
        "document.getElementById('out').textContent = JSON.stringify({"
        "wide: d.documentElement.scrollWidth, drawn: i.complete && i.naturalWidth > 0,"
        "alerts: d.scripts.length, right: i.getBoundingClientRect().right}); }</script>"
    )
    found = browse("--allow-file-access-from-files", "--dump-dom", frame.as_uri())
    measured = json.loads(re.search(r'<pre id="out">(.*?)</pre>', found.replace("'", '"'))[1])
    assert measured["wide"] <= width
    assert measured["right"] <= width
    assert measured["drawn"]
    assert measured["alerts"] == 0
    shot = tmp_path / "shot.png"
    browse(f"--window-size={width},2000", f"--screenshot={shot}", page.as_uri())
    pixels = imread(shot)[..., :3]
    assert pixels.shape[1] == width
    assert pixels.std() > 0.02  # something is drawn


def browse(*options):
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout
