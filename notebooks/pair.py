"""Write every notebook (.ipynb, without outputs) from its script (.py, percent format).

python notebooks/pair.py

The scripts are what is edited and compared; the notebooks follow from them. To go the other way
after work in Jupyter: jupytext --to py:percent 01_conventions.ipynb.

The cell with the tag ``parameters`` holds box, voxel size and numbers of particles; papermill sets
them from outside: papermill -p BOX 24 01_conventions.ipynb out.ipynb.
"""

import pathlib

import jupytext
import nbformat

HERE = pathlib.Path(__file__).resolve().parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def scripts() -> list[pathlib.Path]:
    """The scripts of all notebooks, in their order."""
    return sorted(HERE.glob("[0-9]*.py"))


def notebook(script: pathlib.Path) -> str:
    """The text of the notebook that belongs to a script."""
    made = jupytext.read(script, fmt="py:percent")
    for number, cell in enumerate(made.cells):
        cell["id"] = f"cell-{number:02d}"
        cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k == "tags"}
    made.metadata = {"kernelspec": KERNEL, "jupytext": {"formats": "ipynb,py:percent"}}
    made.nbformat, made.nbformat_minor = 4, 5
    nbformat.validate(made)
    return nbformat.writes(made) + "\n"


if __name__ == "__main__":
    for path in scripts():
        target = path.with_suffix(".ipynb")
        target.write_text(notebook(path), encoding="utf-8")
        print(target)
