"""The console command: ``sptjax refinemulti --input=particles.hdf …`` runs a program.

The programs are the scripts of ``experiments/``. A wheel holds them in the folder ``_scripts`` of
the package; in a checkout they lie beside it.
"""

import ast
import difflib
import pathlib
import runpy
import sys

from . import __version__

_HELP = ("-h", "-help", "--help", "help")


def scripts() -> dict[str, pathlib.Path]:
    """The programs by name, in alphabetical order."""
    here = pathlib.Path(__file__).resolve().parent
    folder = here / "_scripts"
    if not folder.is_dir():
        folder = here.parent / "experiments"
    return {p.stem: p for p in sorted(folder.glob("*.py")) if not p.name.startswith("_")}


def overview() -> str:
    """One line for every program: the first of its docstring."""
    found = scripts()
    width = max(map(len, found))
    lines = [f"  {name:<{width}}  {_title(path)}" for name, path in found.items()]
    return "\n".join(
        [
            "sptjax: sub-tomogram averaging for cryo-electron tomography",
            "",
            "  sptjax PROGRAM --option=value ...",
            "",
            *lines,
            "",
            "sptjax PROGRAM --help: the options of a program; sptjax --version: the version",
        ]
    )


def _title(path: pathlib.Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def main() -> None:
    """Run the program that the command line names, with the options that follow.

    Raises:
        SystemExit: an unknown program, with the nearest name, or the end of the program.
    """
    name, *rest = sys.argv[1:] or ["--help"]
    if name in _HELP:
        print(overview())
        return
    if name == "--version":
        print(f"sptjax {__version__}")
        return
    found = scripts()
    if name not in found:
        bare = name.lower().removesuffix(".py").removeprefix("e2spt_").removeprefix("e2")
        near = difflib.get_close_matches(bare, list(found), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(found)}"
        sys.exit(f"sptjax: {name} is no program; {hint}")
    path = found[name]
    sys.argv = [str(path), *rest]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


if __name__ == "__main__":
    main()
