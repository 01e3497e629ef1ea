"""STAR files through :mod:`starfile`, every value as the text that stands in the file."""

import pathlib
import re
from collections.abc import Mapping, Sequence

from sptjax._errors import InputError
from sptjax.io._atomic import atomic_path

Columns = dict[str, list[str]]  # of a loop
Items = dict[str, str]  # of a block without loop
Blocks = dict[str, Columns | Items]

_NAME = re.compile(r"^_(\S+)", re.MULTILINE)


def read_star(path: pathlib.Path) -> Blocks:
    """Every block by its name (what follows ``data_``).

    Raises:
        InputError: the file cannot be read as STAR.
    """
    import starfile  # with pandas, slow to load

    try:
        text = path.read_text(encoding="utf-8")
        known = sorted(set(_NAME.findall(text)))
        found = starfile.read(path, always_dict=True, parse_as_string=known)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"The file {path} cannot be read as STAR ({error}).") from error
    blocks: Blocks = {}
    for name, block in dict(found).items():
        if isinstance(block, Mapping):
            blocks[name] = {str(key): str(value) for key, value in block.items()}
        elif block is not None:
            blocks[name] = {str(key): [str(x) for x in block[key]] for key in block.columns}
    return blocks


def write_star(path: pathlib.Path, blocks: Mapping[str, Mapping[str, Sequence[str] | str]]) -> None:
    """Write blocks of text, atomically and with reproducible bytes.

    Args:
        path: the file to create or replace.
        blocks: columns of equal length (a loop), or single values.

    Raises:
        InputError: a value holds a line break, a tab or a quotation mark.
    """
    import pandas
    import starfile

    tables = {}
    for name, block in blocks.items():
        for text in (x for value in block.values() for x in _texts(value)):
            if set(text) & set('\n\r\t"'):
                raise InputError(f"{text!r} cannot stand in a STAR file")
        if all(isinstance(value, str) for value in block.values()):
            tables[name] = dict(block)
        else:
            columns = {key: [_quoted(x) for x in values] for key, values in block.items()}
            tables[name] = pandas.DataFrame(columns, dtype=object)
    text = starfile.to_string(tables)
    with atomic_path(path) as temporary:
        temporary.write_text(text.split("\n", 1)[1].lstrip(), encoding="utf-8")  # no time stamp


def _quoted(text: str) -> str:
    """Quotes around what readers would take for a comment; blanks are quoted by starfile."""
    return f'"{text}"' if "#" in text and " " not in text else text


def _texts(value: Sequence[str] | str) -> Sequence[str]:
    return [value] if isinstance(value, str) else value


def column(block: Mapping[str, Sequence[str] | str], name: str) -> list[str] | None:
    """One column of a block, or None."""
    values = block.get(name)
    return None if values is None else list(_texts(values))
