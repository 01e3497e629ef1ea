"""What the public modules offer says what it takes: every argument, shapes, errors."""

import ast
import functools
import importlib
import inspect
import pkgutil
import re
import textwrap

import sptjax


def public_modules():
    """Names of all modules without an underscore on their path."""
    found = [m.name for m in pkgutil.walk_packages(sptjax.__path__, "sptjax.")]
    return [name for name in found if not re.search(r"\._", name)]


@functools.cache
def offered():
    """Functions and classes by dotted name: defined there, or lifted out of a private module."""
    found = {}
    for name in public_modules():
        for key, value in vars(importlib.import_module(name)).items():
            home = getattr(value, "__module__", None) or ""
            lifted = home.startswith(f"{name}._")
            if not key.startswith("_") and callable(value) and (home == name or lifted):
                found[f"{name}.{key}"] = value
    return found


@functools.cache
def functions():
    """Functions by dotted name, compiled ones too, as they were written."""
    found = {name: inspect.unwrap(value) for name, value in offered().items()}
    return {name: value for name, value in found.items() if inspect.isfunction(value)}


@functools.cache
def written(thing):
    """The definition of a function or a class, as a tree."""
    return ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]


def says(text, name):
    """Whether a name stands in a text as a word."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def shapeless(annotation):
    """Whether an annotation has an array and no shape; a shape of one alternative will do."""
    text = ast.unparse(annotation)
    shaped = re.search(r"\[(Array|np\.ndarray), |\b(Volumes?|Matrices|Vectors|Curve)\b", text)
    return not shaped and re.search(r"(?<![\w\[])(np\.ndarray|Array)\b", text) is not None


def explanation(doc, name):
    """What the docstring says of an argument; all of it, where it has no entry."""
    found = re.search(rf"^ *{name}: (.*(?:\n {{6,}}.*)*)", doc, re.MULTILINE)
    return found.group(1) if found else doc


SHAPE = re.compile(r"\[[^\]]*\]")


def test_the_library_is_found():
    assert {"sptjax.align.align", "sptjax.score.score", "sptjax.average.add"} <= set(functions())
    assert len(functions()) > 300


def test_arguments_are_explained():
    """Each is named in the docstring and has a type."""
    bare = []
    for name, function in functions().items():
        for p in inspect.signature(function).parameters.values():
            if not says(inspect.getdoc(function) or "", p.name) or p.annotation is p.empty:
                bare.append(f"{name}: {p.name}")
    assert not bare, "\n".join(bare)


def test_refusals_are_announced():
    silent = [
        name
        for name, function in functions().items()
        if "raise InputError" in inspect.getsource(function)
        and "Raises:\n" not in (inspect.getdoc(function) or "")
    ]
    assert not silent


def test_arrays_have_shapes():
    """In the annotation, or where the docstring explains the argument."""
    bare = []
    for name, function in functions().items():
        arguments = written(function).args
        for a in [*arguments.args, *arguments.kwonlyargs]:
            said = explanation(inspect.getdoc(function) or "", a.arg)
            if a.arg == "key":  # of random numbers
                continue
            if a.annotation and shapeless(a.annotation) and not SHAPE.search(said):
                bare.append(f"{name}: {a.arg}")
    assert not bare, "\n".join(bare)


def test_fields_have_shapes():
    """In the annotation, in the docstring of the class, or in a comment behind the field."""
    bare = []
    for name, cls in offered().items():
        if not inspect.isclass(cls):
            continue
        lines = inspect.getsource(cls).splitlines()
        for node in written(cls).body:
            if isinstance(node, ast.AnnAssign) and shapeless(node.annotation):
                behind = lines[node.end_lineno - 1].partition("  # ")[2]
                key = ast.unparse(node.target)
                entry = re.search(rf"^ *{key}: (.*(?:\n {{6,}}.*)*)", inspect.getdoc(cls), re.M)
                if not SHAPE.search(behind + (entry.group(1) if entry else "")):
                    bare.append(f"{name}: {key}")
    assert not bare, "\n".join(bare)
