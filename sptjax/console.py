"""Lines and progress bars of a script, and what becomes of the lines."""

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from ._messages import logged


class Transcript:
    """Lines that were said, in memory until they have a file.

    A file that is there already goes on: that of a run that is resumed.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._path: pathlib.Path | None = None

    def add(self, text: str) -> None:
        """One more line."""
        if self._path is None or not self._path.parent.is_dir():
            self._lines.append(text)
            return
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(logged(text))

    def keep(self, path: str | os.PathLike[str]) -> None:
        """Write the lines so far to a file, and all later ones at once."""
        self._path = pathlib.Path(path)
        so_far, self._lines = self._lines, []
        for text in so_far:
            self.add(text)


_silenced: set[str] = set()  # holds "all" where another process of the run speaks
_transcripts: list[Transcript] = []  # of the runs under way, the outermost first


def mute() -> None:
    """Print nothing any more: another process of the run speaks."""
    _silenced.add("all")


def say(text: str) -> None:
    """Print one line at once, clear of any progress bar.

    Args:
        text: the line; a :class:`sptjax._messages.Message` where it is more or less than a note.
    """
    if not _silenced:
        tqdm.write(text)
        sys.stdout.flush()
        for transcript in _transcripts:
            transcript.add(text)


@contextlib.contextmanager
def transcript() -> Iterator[Transcript]:
    """Take down the lines said inside the block, or inside the function that this decorates."""
    own = Transcript()
    _transcripts.append(own)
    try:
        yield own
    finally:
        _transcripts.remove(own)


def keep(path: str | os.PathLike[str]) -> None:
    """Give the innermost transcript, if there is one, its file (see :class:`Transcript`).

    Args:
        path: of the file, which goes on if it exists.
    """
    if _transcripts and not _silenced:
        _transcripts[-1].keep(path)


def progress(items: Iterable, title: str) -> Iterable:
    """A bar with the time left over batches; short work shows none.

    Args:
        items: what is worked off.
        title: of the bar.
    """
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
    """No bar.

    Args:
        items: what is worked off, returned as they are.
        title: of the bar that is not shown.
    """
    del title
    return items
