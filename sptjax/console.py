"""Lines and progress bars of a script."""

import sys
from collections.abc import Iterable

from tqdm import tqdm


def say(text: str) -> None:
    """Print one line at once, clear of any progress bar."""
    tqdm.write(text)
    sys.stdout.flush()


def progress(items: Iterable, title: str) -> Iterable:
    """A bar with the time left over batches; short work shows none."""
    return tqdm(items, desc=title, unit="batch", leave=False, delay=2.0, mininterval=0.5)


def silent(items: Iterable, title: str) -> Iterable:
    """No bar."""
    del title
    return items
