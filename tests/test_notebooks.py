"""The notebooks: pairs that agree, and scripts that run through and draw something."""

import ast

import nbformat
import pytest
from notebook_runs import FIGURES, NOTEBOOKS, check_figures, code_cells, pair, run

SCRIPTS = sorted(NOTEBOOKS.glob("[0-9]*.py"))

# Those whose compilations are few run in the default suite, on less; test_examples.py runs 06.
SMALL = {"01_conventions": {"BOX": 24}, "05_compression": {"BOX": 24, "COUNT": 8}}


def test_all_are_here():
    assert [p.stem for p in SCRIPTS] == list(FIGURES)
    assert pair.scripts() == SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_the_notebook_is_the_script(script):
    """After an edit: python notebooks/pair.py."""
    text = script.with_suffix(".ipynb").read_text()
    assert text == pair.notebook(script)
    made = nbformat.reads(text, as_version=4)
    code = [cell for cell in made.cells if cell.cell_type == "code"]
    assert not [cell for cell in code if cell.outputs or cell.execution_count]
    assert code[0].source.startswith("%matplotlib inline")
    assert [cell.metadata.get("tags") for cell in code].count(["parameters"]) == 1


def test_a_changed_script_is_noticed(tmp_path):
    changed = tmp_path / SCRIPTS[0].name
    changed.write_text(SCRIPTS[0].read_text().replace("BOX, APIX = 32", "BOX, APIX = 48"))
    assert pair.notebook(changed) != SCRIPTS[0].with_suffix(".ipynb").read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_nothing_is_of_one_machine_or_of_the_scripts(script):
    text = script.read_text()
    for word in ("cuda", "gpu", "jax.devices", "experiments", "absl", "/home", "subprocess"):
        assert word not in text.lower(), word


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_what_it_imports_is_there(script):
    tree, _ = next(code_cells(script))
    assert any(isinstance(node, ast.ImportFrom) for node in tree.body)
    exec(compile(tree, script.name, "exec"), {})


@pytest.mark.parametrize("stem", SMALL)
def test_it_runs_through_on_small_data(stem, tmp_path):
    names, figures = run(stem, tmp_path, **SMALL[stem])
    assert names["BOX"] == SMALL[stem]["BOX"]
    check_figures(stem, figures)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_it_runs_through(script, tmp_path):
    """Its own assertions hold, and every figure shows something."""
    names, figures = run(script.stem, tmp_path)
    assert names["BOX"] <= 32
    check_figures(script.stem, figures)
