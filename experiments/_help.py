"""``--help`` by groups of options, in place of absl's alphabetical list.

A flag belongs to the group inside which it is defined::

    with _help.group("alignment"):
        flags.DEFINE_integer("search", 8, "largest shift")
"""

import contextlib
import sys
import textwrap
from collections.abc import Collection, Iterator, Sequence

from absl import flags

# Every group with its heading, in the order of the page.
GROUPS = {
    "input": "Input",
    "references": "References and symmetry",
    "preprocessing": "Preprocessing (of what is aligned; averages are made of raw particles)",
    "alignment": "Alignment",
    "classification": "Classification",
    "averaging": "Averaging",
    "simulation": "Simulation",
    "boxes": "Boxes",
    "compression": "Compression",
    "output": "Output",
    "compute": "Computing",
}
WIDTH = 100
_ASKED = {"-h", "--h", "-help", "--help", "-?", "--?", "-helpshort", "--helpshort"}
_group_of: dict[str, str] = {}


@contextlib.contextmanager
def group(name: str, values: flags.FlagValues = flags.FLAGS) -> Iterator[None]:
    """Put the flags that are defined inside into a group.

    Args:
        name: a key of ``GROUPS``.
        values: where they are defined.
    """
    before = set(values)
    yield
    _group_of.update(dict.fromkeys(set(values) - before, name))


def grouped(values: flags.FlagValues = flags.FLAGS) -> dict[str, list[flags.Flag]]:
    """The flags of a script by group, as they were defined; those of absl are left out."""
    found: dict[str, list[flags.Flag]] = {name: [] for name in GROUPS}
    for module, own in values.flags_by_module_dict().items():
        for flag in own if "absl" not in module else ():
            found[_group_of[flag.name]].append(flag)
    return found


def text(doc: str, values: flags.FlagValues = flags.FLAGS, only: Collection[str] = ()) -> str:
    """The page that ``--help`` prints.

    Args:
        doc: what the script does.
        values: its flags.
        only: names of the flags to show; all if empty.
    """
    groups = {
        name: [flag for flag in own if not only or flag.name in only]
        for name, own in grouped(values).items()
    }
    column = 4 + max(len(_spelling(flag)) for own in groups.values() for flag in own)
    lines = [doc.strip(), "", "Options are --name=value; switches are --name, or --noname for off."]
    for name, own in groups.items():
        if own:
            lines += ["", GROUPS[name]]
            lines += [line for flag in own for line in _entry(flag, column)]
    return "\n".join(lines)


def _spelling(flag: flags.Flag) -> str:
    """A switch that is on by default shows how it is switched off."""
    return f"--[no]{flag.name}" if flag.default is True else f"--{flag.name}"


def _entry(flag: flags.Flag, column: int) -> list[str]:
    """One flag: its name, what it does, its default."""
    words = str(flag.help)
    if isinstance(flag, flags.EnumFlag):  # absl begins with <one|other>:
        words = f"{'|'.join(filter(None, flag.parser.enum_values))}: {words.partition(': ')[2]}"
    default = "on" if flag.default is True else flag.default
    if default is not False and default not in (None, "", []):  # 0 is a default that is shown
        shown = ",".join(default) if isinstance(default, list) else default
        words += f" (default: {shown})"
    return textwrap.wrap(
        words,
        WIDTH,
        initial_indent=f"  {_spelling(flag)}".ljust(column),
        subsequent_indent=" " * column,
        break_on_hyphens=False,
        break_long_words=False,
    )


def answered(argv: Sequence[str], only: Collection[str] = ()) -> list[str]:
    """The command line; if it asks for help, that is printed and the script ends.

    Args:
        argv: the command line, the script's name first.
        only: names of the flags to show; all if empty.
    """
    if _ASKED & set(argv[1:]):
        print(text(sys.modules["__main__"].__doc__ or "", only=only))
        sys.exit(0)
    return list(argv)
