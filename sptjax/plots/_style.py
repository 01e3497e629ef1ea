"""What all figures share: sizes, colours, names of classes, legends, and how they are saved."""

import os
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from .._errors import InputError
from ..io._atomic import atomic_path

# Okabe & Ito (2008), the yellow last because it is weak on white.
OKABE_ITO = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7"),
    *("#E69F00", "#56B4E9", "#000000", "#F0E442"),
)
DPI = 150
GREY = "0.4"  # of lines and words that are no data

_DASHES = ("-", "--", ":", "-.")


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG at 150 dots per inch; the file appears whole or not at all.

    Args:
        figure: to write.
        path: of the file.

    Raises:
        InputError: the folder is missing or not writable.
    """
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})


def empty_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def class_names(names: Sequence[str] | None, count: int) -> Sequence[str]:
    """The names given, or ``class 0``...; as many as there are classes."""
    names = [f"class {index}" for index in range(count)] if names is None else names
    if len(names) != count:
        raise InputError(f"There are {len(names)} names for {count} classes.")
    return names


def line_style(index: int) -> dict[str, Any]:
    """Colour, dash and width of the curve of a class."""
    cycle, colour = divmod(index, len(OKABE_ITO))
    dash = _DASHES[cycle % len(_DASHES)]
    return {"color": OKABE_ITO[colour], "linestyle": dash, "linewidth": 1.7}


def add_legend(figure: Figure) -> None:
    """One legend, right of everything that is drawn."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        columns = 1 + (len(handles) - 1) // 16
        figure.set_figwidth(figure.get_figwidth() + 1.6 * (columns - 1))
        place = "outside right upper"
        figure.legend(handles, labels, loc=place, frameon=False, fontsize=9, ncols=columns)


def percent(share: float, _: object = None) -> str:
    """A share of an axis in words."""
    return f"{100 * share:g}%"
