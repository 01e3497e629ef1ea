"""What mkdocs does not do by itself: a page of reference per module, links, comments of fields.

Named in mkdocs.yml twice: its functions are hooks of mkdocs, its class reads the source with
griffe. Every public module gets a page; what a package lifts out of private modules stands on
the page of the package. README.md is the first page, benchmarks/README.md another.
"""

import ast
import functools
import pathlib
import re

from griffe import Docstring, Extension
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[1]
README, BENCHMARKS = ROOT / "README.md", ROOT / "benchmarks" / "README.md"
# Links of the pages as they lie in the repository, and where they lead in the site.
MOVED = {
    "../README.md": "index.md",
    "../benchmarks/README.md": "benchmarks.md",
    "benchmarks/README.md": "benchmarks.md",
}
HIDDEN = ("sptjax", "sptjax.__main__")  # nothing in them
INDEX = "# Reference\n\nThe public modules; conventions stand on the [first page](../index.md).\n\n"


def modules() -> dict[str, pathlib.Path]:
    """Source of every public module by its dotted name."""
    found = {}
    for path in sorted((ROOT / "sptjax").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(p for p in parts if p != "__init__")
        if "._" not in name:
            found[name] = path
    return found


@functools.cache
def lifted() -> dict[str, str]:
    """Where a name stands that a module imports for others (``x as x``): full name to full name."""
    found = {}
    for module, path in modules().items():
        package = module if path.stem == "__init__" else module.rpartition(".")[0]
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
                for name in (alias.name for alias in node.names if alias.asname == alias.name):
                    inner, outer = f"{package}.{node.module}.{name}", f"{module}.{name}"
                    found |= {inner: outer} if node.module.startswith("_") else {outer: inner}
    return found


def reference_page(name: str) -> str:
    """The page of a module: its own words, then everything that it offers."""
    parts = [f"---\ntitle: {name.removeprefix('sptjax.')}\n---\n\n::: {name}\n"]
    for inner, outer in lifted().items():
        module, _, own = outer.rpartition(".")
        if module == name and "._" in inner and not own.isupper():
            parts.append(f"\n::: {outer}\n    options:\n      heading_level: 2\n")
    return "".join(parts)


def on_config(config):
    """Put the pages of the reference into the navigation."""
    pages = [f"reference/{name}.md" for name in modules() if name not in HIDDEN]
    config.nav.append({"Reference": ["reference/index.md", *pages]})
    return config


def on_files(files, config):
    """Add the pages that are made from the sources."""
    names = [name for name in modules() if name not in HIDDEN]
    made = {f"reference/{name}.md": reference_page(name) for name in names}
    lines = [f"- [{name}]({name}.md)" for name in names]
    made["reference/index.md"] = INDEX + "\n".join(lines) + "\n"
    made["index.md"] = README.read_text()
    made["benchmarks.md"] = BENCHMARKS.read_text()
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown, page, **_):
    """Let links lead to pages; those to what is no page become plain words."""

    def link(match):
        words, target = match.groups()
        name, hash_, anchor = target.partition("#")
        name = MOVED.get(name, name.removeprefix("docs/"))
        page_or_picture = not name or name.endswith((".md", ".png")) or "://" in name
        return f"[{words}]({name}{hash_}{anchor})" if page_or_picture else words

    if page.file.src_uri.startswith("reference/"):
        return markdown
    return re.sub(r"\[([^\]]*)\]\(([^)]+)\)", link, markdown)


class Source(Extension):
    """Roles of docstrings become links; a comment behind a field becomes its description."""

    def on_instance(self, *, obj, **_):
        """Rewrite the docstring of any object."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(
                r":(\w+):`([^`]+)`", lambda m: self._linked(obj, *m.groups()), obj.docstring.value
            )

    def on_attribute_instance(self, *, attr, **_):
        """Give a field its comment."""
        if attr.docstring is None and attr.parent.is_class and attr.endlineno:
            line = attr.lines_collection[attr.filepath][attr.endlineno - 1]
            behind = line.partition("  # ")[2]
            if behind:
                attr.docstring = Docstring(behind, parent=attr, lineno=attr.lineno)

    @staticmethod
    def _linked(obj, role: str, name: str) -> str:
        name = name.lstrip("~")
        scope = obj.parent if role == "meth" and "." not in name else obj.module
        first, dot, rest = name.partition(".")
        if name.startswith("sptjax."):
            full = name
        elif first in obj.module.imports:
            full = obj.module.imports[first] + dot + rest
        else:
            full = f"{scope.path}.{name}"
        owner, _, method = full.rpartition(".")
        full = lifted().get(full) or f"{lifted().get(owner, owner)}.{method}"
        if (role in ("math", "mod") and full not in modules()) or "._" in full:
            return f"`{name}`"
        return f"[`{name}`][{full}]"
