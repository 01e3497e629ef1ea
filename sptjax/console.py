"""Lines and progress bars of a script."""

import sys
from collections.abc import Iterable

from tqdm import tqdm

_silenced: set[str] = set()  # holds "all" where another process of the run speaks


def mute() -> None:
    """Print nothing any more: another process of the run speaks."""
    _silenced.add("all")


def say(text: str) -> None:
    """Print one line at once, clear of any progress bar."""
    if not _silenced:
        tqdm.write(text)
        sys.stdout.flush()


def progress(items: Iterable, title: str) -> Iterable:
    """A bar with the time left over batches; short work shows none."""
    return tqdm(
        items,
        desc=title,
        unit="batch",
        leave=False,
        delay=2.0,
        mininterval=0.5,
        disable=bool(_silenced),
    )


def silent(items: Iterable, title: str) -> Iterable:
    """No bar."""
    del title
    return items
