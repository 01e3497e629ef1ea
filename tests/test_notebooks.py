"""The notebooks: pairs that agree, and scripts that run through and draw something."""

import ast
import importlib.util
import pathlib

import jupytext
import nbformat
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

NOTEBOOKS = pathlib.Path(__file__).resolve().parents[1] / "notebooks"
SCRIPTS = sorted(NOTEBOOKS.glob("[0-9]*.py"))
FIGURES = {
    "01_conventions": 4, "02_one_particle": 5, "03_refinement": 8, "04_first_maps": 6,
    "05_compression": 4,
}  # fmt: skip

spec = importlib.util.spec_from_file_location("pair", NOTEBOOKS / "pair.py")
pair = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pair)


def run(script, folder):
    """Run a script cell by cell, as Jupyter would; figures that cells end in are saved."""
    names, figures = {"__name__": "__main__"}, []
    for cell in jupytext.read(script, fmt="py:percent").cells:
        if cell.cell_type != "code":
            continue
        source = "\n".join(x for x in cell.source.splitlines() if not x.startswith("%"))
        tree = ast.parse(source)
        last = tree.body[-1] if tree.body else None
        if isinstance(last, ast.Expr):
            exec(compile(ast.Module(tree.body[:-1], []), script.name, "exec"), names)
            value = eval(compile(ast.Expression(last.value), script.name, "eval"), names)
            if isinstance(value, Figure):
                figures.append(value)
                value.savefig(folder / f"{script.stem}_{len(figures)}.png", dpi=80)
        else:
            exec(compile(tree, script.name, "exec"), names)
    return names, figures


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


def test_a_changed_script_is_noticed(tmp_path):
    changed = tmp_path / SCRIPTS[0].name
    changed.write_text(SCRIPTS[0].read_text().replace("BOX, APIX = 32", "BOX, APIX = 48"))
    assert pair.notebook(changed) != SCRIPTS[0].with_suffix(".ipynb").read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_nothing_is_of_one_machine_or_of_the_scripts(script):
    text = script.read_text()
    for word in ("cuda", "gpu", "jax.devices", "experiments", "absl", "/home", "subprocess"):
        assert word not in text.lower(), word


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_it_runs_through(script, tmp_path):
    """Its own assertions hold, and every figure shows something."""
    names, figures = run(script, tmp_path)
    assert names["BOX"] <= 32
    assert len(figures) == FIGURES[script.stem]
    for figure in figures:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        assert (pixels != 255).any(-1).mean() > 0.02
        titles = [axes.get_xlabel() + axes.get_title() for axes in figure.axes]
        assert any(titles)
