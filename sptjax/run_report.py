"""``report.html`` of a run folder: what every program has in common, and how commands go on.

Command, options, messages and files are read from the folder; what was done, the table of
classes and the ways to go on are the program's to say.
"""

import os
import pathlib
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from . import report, workdir
from ._messages import Level, Message, read
from ._run_files import describe

MESSAGES = "messages.log"  # what the run printed (see :func:`sptjax.console.keep`)
NAME = "report.html"

_MOST_LINES = 2000  # messages in a report
_LINE = 92  # characters of a command before it goes on in the next line
# Options that say what the particles are, and their defaults; they go on with the particles.
_OF_PARTICLES = {"apix": 0.0, "subset": 0, "wedge": "auto", "premultiplied": False}


class Shown(NamedTuple):
    """A picture among the files of the run, and what to say about it."""

    name: str
    title: str
    caption: str


def write(
    folder: str | os.PathLike[str],
    *,
    done: Sequence[str],
    table: report.Table | None = None,
    steps: Sequence[report.Step] = (),
    shown: Sequence[Shown] = (),
    named: Mapping[str, str] | None = None,
) -> None:
    """Write the report of a run that has its manifest.

    Args:
        folder: of the run.
        done: sentences about what was done.
        table: of the classes.
        steps: ways to go on.
        shown: pictures; those that do not exist are left out.
        named: what files are whose names an option decided.
    """
    root = pathlib.Path(folder)
    manifest = workdir.read_manifest(root)
    messages = _messages(root)
    said = list(dict.fromkeys(messages))
    versions = ", ".join(f"{name} {number}" for name, number in manifest.versions.items())
    page = report.Report(
        title=f"{manifest.program}: {root.resolve().name}",
        facts=(
            ("Started", f"{manifest.started[:16].replace('T', ' ')} UTC"),
            ("Device", manifest.device),
            ("Seed", str(manifest.seed)),
            ("Versions", versions),
            ("Folder", str(root.resolve())),
        ),
        command=_in_lines(_spoken(manifest.command)),
        done=done,
        warnings=[line for line in said if line.level is Level.WARNING],
        notes=[line for line in said if line.level is Level.NOTE],
        table=table,
        pictures=[
            report.Picture(one.title, one.caption, (root / one.name).read_bytes())
            for one in shown
            if (root / one.name).is_file()
        ],
        steps=steps,
        files=_files(root, named or {}),
        options=[(name, _shown(value)) for name, value in manifest.options.items()],
        messages=messages[-_MOST_LINES:],
    )
    report.write(root / NAME, page)


def particle_options(manifest: workdir.Manifest) -> dict[str, Any]:
    """The options of a run that say what its particles are.

    Args:
        manifest: of the run.
    """
    options = manifest.options
    stated = {k: options[k] for k, v in _OF_PARTICLES.items() if options.get(k, v) != v}
    return {"input": options["input"]} | stated


def call(manifest: workdir.Manifest, program: str, options: Mapping[str, Any]) -> str:
    """A command line for a program, started as that of the run was.

    Args:
        manifest: of the run.
        program: such as ``classaverage``.
        options: by name; a true value is a bare flag.
    """
    first = pathlib.Path((shlex.split(manifest.command) or [""])[0])
    words = ["sptjax", program]
    if first.suffix == ".py" and first.parent.name != "_scripts":
        words = ["python", str(first.with_name(f"{program}.py"))]
    words += [f"--{k}" if v is True else f"--{k}={v}" for k, v in options.items()]
    return _in_lines(words)


def resume(manifest: workdir.Manifest, folder: pathlib.Path, rounds: int) -> report.Step | None:
    """How to add rounds to a finished run; None where the names of its files leave no room.

    Args:
        manifest: of the run.
        folder: of the run.
        rounds: that it was to have.
    """
    more = min(rounds + 5, 10 ** len(str(rounds)) - 1)
    if more == rounds:
        return None
    stated = [w for w in _spoken(manifest.command) if not re.match("--(path|iter)=|--resume$", w)]
    words = [*stated, f"--path={folder}", f"--iter={more}", "--resume"]
    return report.Step(f"Go on to {more} rounds, from the last one:", _in_lines(words))


def inside_another(folder: pathlib.Path) -> bool:
    """Whether a run is one of those that a run in the folder above consists of."""
    return (folder.resolve().parent / "manifest.json").is_file()


def chimerax(paths: Sequence[pathlib.Path], apix: float) -> report.Step:
    """How to look at maps; the voxel size is stated, whatever the viewer makes of the header.

    Args:
        paths: of the maps.
        apix: angstrom per voxel.
    """
    opened = "; ".join(f'open "{path}" format emanhdf' for path in paths)
    command = shlex.join(["chimerax", "--cmd", f"{opened}; volume all voxelSize {apix:.6g}"])
    return report.Step(f"Look at the averages in ChimeraX ({apix:.4g} Å per voxel):", command)


def _spoken(command: str) -> list[str]:
    """The words of a recorded command line as one types it."""
    first, *rest = shlex.split(command) or [""]
    path = pathlib.Path(first)
    if path.suffix != ".py":
        return [first, *rest]
    own = ["sptjax", path.stem] if path.parent.name == "_scripts" else ["python", first]
    return [*own, *rest]


def _in_lines(words: Sequence[str]) -> str:
    """A command line for a shell, in lines of several words where it is long."""
    lines = [""]
    for word in map(shlex.quote, words):
        if lines[-1] and len(lines[-1]) + len(word) > _LINE:
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n".join(lines)


def _messages(root: pathlib.Path) -> list[Message]:
    path = root / MESSAGES
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [read(line) for line in text.splitlines()]


def _files(root: pathlib.Path, named: Mapping[str, str]) -> list[report.File]:
    """Everything in the folder; of a run inside it, its report alone."""
    found = []
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        inner = [p for p in name.parents if p.name and (root / p / "manifest.json").is_file()]
        hidden = any(part.startswith(".") for part in name.parts)
        if not path.is_file() or hidden or (inner and path.name != NAME) or str(name) == NAME:
            continue
        what = f"report of the run in {name.parent}" if inner else ""
        what = what or named.get(path.name) or describe(path.name)
        found.append(report.File(name.as_posix(), what, path.stat().st_size))
    return found


def _shown(value: Any) -> str:
    return "" if value is None else str(value)
