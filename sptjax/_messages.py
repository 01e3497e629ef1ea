"""Lines that a run prints, and what they are to the reader of its report.

Plain text is a note. Where a line is written it is known whether it asks for attention, so it is
said there: ``say(warning("..."))``. A message is text everywhere else.
"""

import enum


class Level(enum.StrEnum):
    """What a line is."""

    STEP = "step"  # what every run says: kept with the messages alone
    NOTE = "note"  # what the run chose or found
    WARNING = "warning"  # asks for attention


class Message(str):
    """Text with its level."""

    level: Level

    def __new__(cls, text: str, level: Level) -> "Message":
        """One line.

        Args:
            text: what is printed.
            level: what it is.
        """
        made = super().__new__(cls, text)
        made.level = level
        return made


def step(text: str) -> Message:
    """A line about the course of a run, ``text``, of a kind that every run has."""
    return Message(text, Level.STEP)


def warning(text: str) -> Message:
    """A line, ``text``, that asks for attention."""
    return Message(text, Level.WARNING)


def about(subject: object, text: str) -> Message:
    """The ``text`` behind what it is about, the ``subject``; its level is kept."""
    return Message(f"{subject}: {text}", level_of(text))


def level_of(text: str) -> Level:
    """The level of a message; any other ``text`` is a note."""
    return text.level if isinstance(text, Message) else Level.NOTE


def logged(text: str) -> str:
    """The ``text`` as a log keeps it: every line behind its level."""
    return "".join(f"{level_of(text):7s} {line}\n" for line in text.split("\n"))


def read(line: str) -> Message:
    """A ``line`` of a log; one without a level is a note."""
    head = line[:8].rstrip()
    known = head in list(Level)
    return Message(line[8:] if known else line, Level(head) if known else Level.NOTE)
