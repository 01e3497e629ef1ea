"""One page of HTML about a run: everything inside, nothing loaded, no script.

:func:`render` is a pure function of a :class:`Report`; :func:`write` makes the file. Pictures
are part of the page; the files of the run are linked by their names, relative to it.
"""

import base64
import dataclasses
import os
import pathlib
from collections.abc import Iterable, Sequence
from html import escape

from .io._atomic import atomic_path

_SCREEN_DPI, _PICTURE_DPI = 96, 150  # of the style sheet, and of the pictures of a run


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose first column names the rows."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""  # a sentence below it


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture and what it shows."""

    title: str
    caption: str
    png: bytes


@dataclasses.dataclass(frozen=True)
class Step:
    """A way to go on: a sentence, and what to type."""

    words: str
    command: str


@dataclasses.dataclass(frozen=True)
class File:
    """A file of the run."""

    name: str  # relative to the report
    what: str
    size: int  # bytes


@dataclasses.dataclass(frozen=True)
class Report:
    """What is said about a run.

    Attributes:
        title: its name.
        facts: name and value of what there is to know at once.
        command: that started it.
        done: sentences, in the order of what happened.
        warnings: lines that ask for attention.
        notes: other lines about what the run chose.
        table: of the classes.
        pictures: in the order to look at them.
        steps: ways to go on.
        files: all of them.
        options: name and value of every option.
        messages: everything that the run printed.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    command: str
    done: Sequence[str]
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()
    table: Table | None = None
    pictures: Sequence[Picture] = ()
    steps: Sequence[Step] = ()
    files: Sequence[File] = ()
    options: Sequence[tuple[str, str]] = ()
    messages: Sequence[str] = ()


def write(path: str | os.PathLike[str], report: Report) -> None:
    """Write a report; the file appears whole or not at all.

    Args:
        path: of the file.
        report: what it says.

    Raises:
        InputError: the folder is missing or not writable.
    """
    with atomic_path(path) as temporary:
        pathlib.Path(temporary).write_text(render(report), encoding="utf-8")


def render(report: Report) -> str:
    """The page, HTML 5.

    Args:
        report: what the page says.
    """
    parts = [
        _header(report),
        _section("What was done", _paragraphs(report.done)),
        _section("Warnings", _list(report.warnings, "warnings")) if report.warnings else "",
        _section("Notes", _list(report.notes, "notes")) if report.notes else "",
        _section("Classes", _table(report.table)) if report.table else "",
        _section("Pictures", "".join(map(_picture, report.pictures))) if report.pictures else "",
        _section("How to go on", "".join(map(_step, report.steps))) if report.steps else "",
        _section("Files", _files(report.files)) if report.files else "",
        _section("All options", _options(report.options)) if report.options else "",
        _section("All messages", _messages(report.messages)) if report.messages else "",
    ]
    head = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
    )
    return head + "\n".join(part for part in parts if part) + "\n</main>\n</body>\n</html>\n"


def _header(report: Report) -> str:
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in report.facts
    )
    return (
        f"<header><h1>{escape(report.title)}</h1>\n<dl>{facts}</dl>\n"
        f"{_command(report.command)}</header>"
    )


def _command(text: str) -> str:
    return f'<pre class="command">{escape(text)}</pre>'


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>"


def _paragraphs(sentences: Iterable[str]) -> str:
    return "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)


def _list(lines: Iterable[str], kind: str) -> str:
    return f'<ul class="{kind}">' + "".join(f"<li>{escape(x)}</li>" for x in lines) + "</ul>"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.head)
    rows = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in table.rows
    )
    note = f'<p class="small">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<div class="wide"><table class="classes"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{note}"
    )


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    width = round(int.from_bytes(picture.png[16:20], "big") * _SCREEN_DPI / _PICTURE_DPI)
    return (
        f'<figure><img alt="{escape(picture.title)}" width="{width}"'
        f' src="data:image/png;base64,{data}">'
        f"<figcaption><b>{escape(picture.title)}.</b> {escape(picture.caption)}</figcaption>"
        "</figure>\n"
    )


def _step(step: Step) -> str:
    return f"<p>{escape(step.words)}</p>{_command(step.command)}\n"


def _files(files: Iterable[File]) -> str:
    rows = "".join(
        f'<tr><td><a href="{escape(_link(one.name))}">{escape(one.name)}</a></td>'
        f"<td>{escape(one.what)}</td><td>{_size(one.size)}</td></tr>"
        for one in files
    )
    return (
        '<div class="wide"><table class="files"><thead><tr><th scope="col">File</th>'
        f'<th scope="col">Content</th><th scope="col">Size</th></tr></thead><tbody>{rows}</tbody>'
        "</table></div>"
    )


def _link(name: str) -> str:
    """A relative address: what a browser would read otherwise is escaped."""
    return "./" + "".join(f"%{ord(c):02X}" if c in '%?#" ' else c for c in name)


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.3g} {unit}" if unit != "B" else f"{count} B"


def _options(options: Iterable[tuple[str, str]]) -> str:
    lines = "\n".join(f"--{name}={value}" for name, value in options)
    return _folded("Every option with its value", lines)


def _messages(lines: Sequence[str]) -> str:
    return _folded(f"{len(lines)} lines", "\n".join(lines))


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


_CSS = """
:root { color-scheme: light dark; --ink: #1d1f23; --paper: #ffffff; --soft: #f3f4f6;
  --line: #d4d7dd; --quiet: #5a6069; --link: #0b5cad; --alarm: #fff4e5; --edge: #c8690a; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --paper: #17191d; --soft: #22252b; --line: #3a3f47;
    --quiet: #a3a9b3; --link: #7db7f2; --alarm: #33260f; --edge: #e09a45; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .8rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; padding-bottom: .2rem;
  border-bottom: 1px solid var(--line); }
p { margin: .5rem 0; max-width: 48rem; overflow-wrap: anywhere; }
a { color: var(--link); }
dl { display: flex; flex-wrap: wrap; gap: .4rem 2rem; margin: 0 0 1rem; }
dt { font-size: .8rem; color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: .4rem;
  padding: .6rem .8rem; margin: .4rem 0 1rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .85rem/1.5 ui-monospace, "DejaVu Sans Mono", Consolas, monospace; }
pre.command { white-space: pre; overflow-wrap: normal; overflow-x: auto; }
ul { margin: .5rem 0; padding: .5rem .8rem .5rem 1.8rem; overflow-wrap: anywhere; }
ul.warnings { background: var(--alarm); border-left: .3rem solid var(--edge); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; }
thead th { color: var(--quiet); font-weight: 600; vertical-align: bottom; }
tbody tr { border-top: 1px solid var(--line); }
tbody th { white-space: nowrap; }
.classes td, .classes thead th + th { text-align: right; font-variant-numeric: tabular-nums; }
.files td:first-child { overflow-wrap: anywhere; min-width: 9rem; }
.files td:last-child { white-space: nowrap; text-align: right; }
.small, figcaption { font-size: .88rem; color: var(--quiet); }
figure { margin: 1rem 0 2rem; }
img { display: block; max-width: 100%; height: auto; background: #ffffff; padding: .5rem;
  border: 1px solid var(--line); border-radius: .4rem; }
figcaption { margin-top: .4rem; max-width: 48rem; }
summary { cursor: pointer; color: var(--quiet); }
@media print {
  :root { --ink: #000000; --paper: #ffffff; --soft: #ffffff; --line: #999999; --quiet: #333333;
    --link: #000000; --alarm: #ffffff; --edge: #000000; }
  main { max-width: none; padding: 0; }
  figure, tr, li { break-inside: avoid; }
  h2 { break-after: avoid; }
  img { border: 0; padding: 0; max-height: 22cm; }
  .wide { overflow: visible; }
  pre.command { white-space: pre-wrap; }
}
"""
