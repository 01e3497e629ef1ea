"""The import graph and the house rules, read from the source with ``ast``."""

import ast
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sptjax"

# A module imports from lower floors only. Within 1, mathematics (a) and files (b) never meet.
FLOORS = {
    "0": "_errors _messages _types _chunk _team options rows distributed _run_files",
    "1a": "fourier rotation _helix symmetry orientations resample masks wedge _wedge_fit noise"
    " tilt_series soft_wedge",
    "1b": "io",
    "2": "score average resolution phantom simulate transfer particles processors averagers"
    " comparators _pipeline selection fidelity tables",
    "3": "align preprocess averaging extract",
    "4": "halves calibration classify bootstrap centring copies state pca stability coverage"
    " uncertainty particle_weights",
    "5": "references measure refinement generate planner",
    "6": "outputs products reporting runner console workdir plots msa __main__ report run_report"
    " pictures results",
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names.split()}

# Imports within a floor, all of them.
SAME_FLOOR = {
    "options": {"_errors"},
    "rows": {"_errors"},
    "_chunk": {"_team"},
    "distributed": {"_errors"},
    "symmetry": {"rotation", "_helix"},
    "orientations": {"symmetry", "_helix"},
    "resample": {"fourier"},
    "wedge": {"fourier", "_wedge_fit"},
    "tilt_series": {"wedge"},
    "soft_wedge": {"wedge", "_wedge_fit"},
    "simulate": {"phantom"},
    "transfer": {"score"},
    "particles": {"score", "comparators"},
    "processors": {"resolution"},
    "_pipeline": {"processors"},
    "pca": {"classify"},
    "copies": {"calibration"},
    "refinement": {"references", "measure"},
    "outputs": {"plots"},
    "msa": {"plots"},
    "products": {"outputs", "msa"},
    "reporting": {"outputs"},
    "run_report": {"report", "workdir"},
    "pictures": {"outputs", "plots", "run_report"},
    "results": {"outputs", "pictures", "report", "run_report", "workdir"},
    "runner": {"msa", "outputs", "pictures", "products", "reporting", "results", "workdir"},
}


def height(floor):
    """Floors 1a and 1b are level."""
    return int(floor[0])


def source_files():
    return sorted(PACKAGE.rglob("*.py"))


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


@functools.cache
def tree(path):
    return ast.parse(path.read_text(), str(path))


def exists(name):
    path = PACKAGE / pathlib.Path(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports(path):
    """Modules of the package that a file imports, as dotted names below ``sptjax``."""
    here = ["sptjax", *path.relative_to(PACKAGE).parent.parts]
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
            found |= {n.removeprefix("sptjax.") for n in names if n.startswith("sptjax.")}
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            if base[0] != "sptjax":
                continue
            inner = ".".join(base[1:])
            for alias in node.names:
                deep = f"{inner}.{alias.name}".strip(".")
                found.add(deep if exists(deep) else inner)
    return found - {""}


def external(path):
    """Top-level packages that a file imports."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
    return found


def top(name):
    return name.split(".")[0]


def test_every_module_has_a_floor_and_every_floor_its_modules():
    present = {top(module_name(path)) for path in source_files()} - {""}
    assert present == set(FLOOR)


@pytest.mark.parametrize("path", source_files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    own = top(module_name(path))
    if not own:  # sptjax/__init__.py imports nothing
        assert not imports(path)
        return
    for other in {top(name) for name in imports(path)} - {own}:
        if height(FLOOR[other]) < height(FLOOR[own]):
            continue
        assert other in SAME_FLOOR.get(own, ()), f"{own} ({FLOOR[own]}) -> {other} ({FLOOR[other]})"
        assert FLOOR[other] == FLOOR[own], f"{own} and {other} are level but apart"


def test_listed_level_imports_all_exist():
    for own, others in SAME_FLOOR.items():
        files = [p for p in source_files() if top(module_name(p)) == own]
        assert {top(n) for p in files for n in imports(p)} >= others, own


def test_files_see_no_mathematics_and_no_accelerator():
    for path in (PACKAGE / "io").glob("*.py"):
        assert not external(path) & {"jax", "jaxlib", "equinox", "jaxtyping"}, path
        assert {top(n) for n in imports(path)} <= {"io", "_errors"}, path


def test_no_cycles():
    graph = {module_name(path): imports(path) for path in source_files()}
    state = {}

    def visit(name, trail):
        assert state.get(name) != "open", f"cycle: {' -> '.join([*trail, name])}"
        if state.get(name) == "done":
            return
        state[name] = "open"
        for other in sorted(graph.get(name, ())):
            visit(other, [*trail, name])
        state[name] = "done"

    for name in sorted(graph):
        visit(name, [])


def attributes(path):
    """Dotted attribute chains of a file, such as ``jnp.fft.rfftn`` and ``jnp.fft``."""
    return {ast.unparse(n) for n in ast.walk(tree(path)) if isinstance(n, ast.Attribute)}


def test_one_caller_of_the_fft():
    for path in source_files():
        if module_name(path) != "fourier":
            used = attributes(path)
            assert not [n for n in used if n.startswith(("jnp.fft", "jax.numpy.fft"))], path
            assert "jax.numpy.fft" not in path.read_text(), path


def test_the_library_reads_no_flags_and_no_environment():
    for path in source_files():
        assert "absl" not in external(path), path
        bad = {"os.environ", "os.getenv", "jax.config"}
        assert not [n for n in attributes(path) if any(n.startswith(b) for b in bad)], path


def test_only_plots_draws():
    for path in source_files():
        assert top(module_name(path)) == "plots" or "matplotlib" not in external(path), path


def python_files():
    folders = ("sptjax", "experiments", "benchmarks")
    return sorted(p for f in folders for p in (ROOT / f).rglob("*.py"))


def test_files_and_functions_stay_readable():
    for path in python_files():
        assert len(path.read_text().splitlines()) <= 600, path
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 120, f"{path}: {node.name} has {length} lines"


# Bases that a class may have: records, vocabularies, and what the entries of one share.
BASES = {
    "eqx.Module", "NamedTuple", "enum.Enum", "enum.IntEnum", "enum.StrEnum", "Protocol",
    "ValueError", "Exception", "str", "Processor", "Centring", "Cutoff", "Box",
    "_OfBlocks", "_OfKept", "_OfMoments",
}  # fmt: skip


def test_class_hierarchies_are_flat():
    for path in source_files():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(b) for b in node.bases}
                assert bases <= BASES, f"{path}: {node.name}({', '.join(bases)})"


def public(body):
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [
        n
        for n in body
        if isinstance(n, kinds)
        and not n.name.startswith("_")
        and "overload" not in map(ast.unparse, n.decorator_list)
    ]


def test_everything_public_has_a_docstring():
    for path in source_files():
        assert ast.get_docstring(tree(path)), path
        for node in public(tree(path).body):
            assert ast.get_docstring(node), f"{path}: {node.name}"
            for inner in public(node.body) if isinstance(node, ast.ClassDef) else ():
                assert ast.get_docstring(inner) or protocol(node), f"{path}: {inner.name}"


def protocol(node):
    """The signatures of a protocol may speak for themselves."""
    return any(ast.unparse(b) == "Protocol" for b in node.bases)


def test_module_level_state_is_constant():
    """No ``global``, and no list, dict or set under a lower-case public name."""
    for path in source_files():
        assert not [n for n in ast.walk(tree(path)) if isinstance(n, ast.Global | ast.Nonlocal)], (
            path
        )
        for node in tree(path).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.List | ast.Set):
                names = [t.id for t in node.targets if isinstance(t, ast.Name)]
                assert all(n == n.upper() for n in names), f"{path}: {names}"
