"""The site: built strictly, every public name on the page of its module, links that lead on."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
from test_documented import offered, public_modules

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site in a folder; a warning of the build is an error."""
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    return folder


@pytest.mark.slow
def test_every_module_and_every_name_has_its_place(site):
    ids, index = set(), (site / "reference" / "index.html").read_text()
    for name in set(public_modules()) - {"sptjax.__main__"}:
        page = (site / "reference" / f"{name}.html").read_text()
        ids |= set(re.findall(r'id="([^"]+)"', page))
        assert f'href="{name}.html"' in index
    missing = set(offered()) - ids
    # what a module and its package both lift stands on the page of the module
    assert missing == {"sptjax.io.HdfReader", "sptjax.io.HdfWriter"}
    assert {"sptjax.io.hdf.HdfReader", "sptjax.io.hdf.HdfWriter"} <= ids


@pytest.mark.slow
def test_links_lead_somewhere(site):
    """Inside the site, with their anchors; nothing is loaded from elsewhere."""
    pages = {page: page.read_text() for page in site.rglob("*.html") if page.name != "404.html"}
    ids = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in pages.items()}
    for page, text in pages.items():
        for target in re.findall(r'<a [^>]*href="([^"]+)"', text):
            name, _, anchor = target.partition("#")
            if "://" in name:
                continue
            there = (page.parent / name).resolve() if name else page
            assert there.exists(), f"{page.name}: {target}"
            assert not anchor or there not in ids or anchor in ids[there], f"{page.name}: {target}"
        assert not re.findall(r'<(?:script|img)[^>]*src="https?:', text), page.name


@pytest.mark.slow
def test_docstrings_are_rendered(site):
    """Roles became links, arguments a table, comments of fields their descriptions."""
    page = (site / "reference" / "sptjax.score.html").read_text()
    assert ":func:" not in re.sub(r"<pre.*?</pre>", "", page, flags=re.DOTALL)
    assert "half-ball frequencies (kx, ky, kz)" in page
    assert 'id="sptjax.score.Observations.weight"' in page
    sums = (site / "reference" / "sptjax.average.html").read_text()
    assert "particles added with a weight other than 0" in sums
