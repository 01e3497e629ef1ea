"""Run the script of a notebook cell by cell, as Jupyter would."""

import ast
import importlib.util
import pathlib

import jax
import jupytext
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

NOTEBOOKS = pathlib.Path(__file__).resolve().parents[1] / "notebooks"

_spec = importlib.util.spec_from_file_location("pair", NOTEBOOKS / "pair.py")
pair = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pair)

FIGURES = {
    "01_conventions": 4, "02_one_particle": 5, "03_refinement": 8, "04_first_maps": 6,
    "05_compression": 4, "06_gradients": 6,
}  # fmt: skip


def code_cells(script):
    """Tree and tags of every code cell, without the magic lines."""
    for cell in jupytext.read(script, fmt="py:percent").cells:
        if cell.cell_type == "code":
            source = "\n".join(x for x in cell.source.splitlines() if not x.startswith("%"))
            yield ast.parse(source), cell.metadata.get("tags", [])


def run(stem, folder, **parameters):
    """Names after a run, and the figures that cells end in; these are saved.

    ``parameters`` take the place of what the cell of that tag says. JAX promotes types and ranks
    as it does for a reader: the optimisers are not written for the strictness of the suite.
    """
    names, figures = {"__name__": "__main__"}, []
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for tree, tags in code_cells(NOTEBOOKS / f"{stem}.py"):
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, stem, "exec"), names)
            if last is not None:
                value = eval(compile(ast.Expression(last.value), stem, "eval"), names)
                if isinstance(value, Figure):
                    figures.append(value)
                    value.savefig(folder / f"{stem}_{len(figures)}.png", dpi=80)
            if "parameters" in tags:
                assert parameters.keys() <= names.keys()
                names.update(parameters)
    return names, figures


def check_figures(stem, figures):
    """All are there, and each shows something under a title or an axis with a name."""
    assert len(figures) == FIGURES[stem]
    for figure in figures:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        assert (pixels != 255).any(-1).mean() > 0.02
        assert any(axes.has_data() for axes in figure.axes)
        assert any(axes.get_xlabel() + axes.get_title() for axes in figure.axes)
