"""Classes by round: their sizes, and the particles that move between them."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from .._errors import InputError
from ._style import OKABE_ITO, add_legend, class_names, empty_figure, line_style, percent

_SPREAD = 12.0  # points that the lines of all classes may be moved apart
_MOST_COLUMNS = 12  # rounds of a flow that are drawn
_BAR = 0.06  # half the width of a column, in rounds
_GAP = 0.04  # between the classes of a column, of all particles


def class_occupancy(
    counts: np.ndarray, changed_fraction: np.ndarray, names: Sequence[str] | None = None
) -> Figure:
    """Particles in each class after each round, and the share that changed class.

    Every line is drawn a little below the one before it, by points on the page, so that classes
    of equal size do not hide each other.

    Args:
        counts: ``[rounds, classes]``.
        changed_fraction: ``[rounds]``, 0 to 1; NaN where there is none (the first round).
        names: one per class; default ``class 0``...

    Raises:
        InputError: the two arrays differ in rounds.
    """
    counts, changed = np.asarray(counts), np.asarray(changed_fraction, float)
    if counts.ndim != 2 or changed.shape != counts.shape[:1]:
        raise InputError(f"Occupancy {counts.shape} and changes {changed.shape} do not match.")
    rounds = np.arange(len(counts))
    figure = empty_figure(6.6, 4.6)
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(2.2, 1))
    apart = _apart(figure, counts.shape[1])
    for index, name in enumerate(class_names(names, counts.shape[1])):
        style = {"marker": "o", "markersize": 4, **line_style(index)}
        style["transform"] = upper.transData + apart[index]
        upper.plot(rounds, counts[:, index], label=name, **style)
    upper.set(ylabel="particles")
    upper.set_ylim(0, max(1.0, 1.06 * counts.max(initial=0)))
    lower.plot(rounds, changed, marker="s", markersize=4, color="black", linewidth=1.5)
    lower.set(xlabel="round", ylabel="changed class")
    lower.set_ylim(0, max(0.01, 1.1 * np.nanmax(changed, initial=0.0)))
    lower.yaxis.set_major_formatter(percent)
    lower.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    lower.set_xlim(-0.3, max(len(counts) - 1, 0) + 0.3)
    add_legend(figure)
    return figure


def _apart(figure: Figure, count: int) -> list[ScaledTranslation]:
    """Steps downwards on the page, one per class, about their middle."""
    points = min(2.0, _SPREAD / max(count, 1))
    middle = (count - 1) / 2
    inches = figure.dpi_scale_trans
    return [ScaledTranslation(0, (middle - i) * points / 72, inches) for i in range(count)]


def class_flow(classes: np.ndarray, names: Sequence[str] | None = None) -> Figure:
    """Where the particles of every class go from round to round.

    A column is a round; heights are numbers of particles; a ribbon has the colour of the class
    that it leaves. Of more than twelve rounds, twelve evenly chosen ones are drawn.

    Args:
        classes: ``[rounds, n]``, class of every particle after every round, 0 to classes - 1;
            negative for none (left out).
        names: one per class; default ``class 0``...

    Raises:
        InputError: the array is not two-dimensional, or a class has no name.
    """
    classes = np.asarray(classes)
    if classes.ndim != 2:
        raise InputError(f"A flow needs classes [round, particle], not an array {classes.shape}.")
    total = int(classes.max(initial=-1)) + 1 if names is None else len(names)
    if classes.max(initial=-1) >= total:
        raise InputError(f"There are {total} names and a particle of class {classes.max()}.")
    last = max(len(classes) - 1, 0)
    rounds = np.unique(np.linspace(0, last, min(last + 1, _MOST_COLUMNS)).round().astype(int))
    columns = [classes[i] for i in rounds[: len(classes)]]
    counts = [np.bincount(column[column >= 0], minlength=total) for column in columns]
    gap = _GAP * max((int(c.sum()) for c in counts), default=1)
    tops = [np.concatenate([[0], np.cumsum(c + gap)[:-1]])[:total] for c in counts]
    figure = empty_figure(min(2.6 + 1.2 * len(columns), 12.0), 4.4)
    axes = figure.subplots()
    for index, name in enumerate(class_names(names, total)):
        axes.fill_between([], [], color=OKABE_ITO[index % len(OKABE_ITO)], label=name)
    for x, (size, top) in enumerate(zip(counts, tops)):
        _column(axes, x, size, top)
    for x in range(len(columns) - 1):
        _ribbons(axes, x, columns[x : x + 2], tops[x : x + 2], total)
    height = max((float(t[-1] + c[-1]) for t, c in zip(tops, counts) if total), default=1.0)
    axes.set_xlim(-0.4, max(len(columns) - 1, 0) + 0.4)
    axes.set_ylim(max(height, 1.0) * 1.01, -0.01 * max(height, 1.0))  # class 0 on top
    axes.set_xticks(range(len(columns)), [str(i) for i in rounds[: len(columns)]])
    axes.set(xlabel="round", ylabel="particles of each class", yticks=[])
    axes.spines[["top", "right", "left"]].set_visible(False)
    add_legend(figure)
    return figure


def _column(axes: Axes, x: int, size: np.ndarray, top: np.ndarray) -> None:
    """The classes of a round as blocks, with their numbers."""
    for index, (count, start) in enumerate(zip(size, top)):
        if count:
            colour = OKABE_ITO[index % len(OKABE_ITO)]
            axes.add_patch(Rectangle((x - _BAR, start), 2 * _BAR, count, facecolor=colour))
            place = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(str(count), (x + _BAR, start + count / 2), fontsize=7, **place)


def _ribbons(
    axes: Axes, x: int, columns: list[np.ndarray], tops: list[np.ndarray], total: int
) -> None:
    """Between two rounds, one ribbon for every pair of classes that particles link."""
    before, after = columns
    member = (before >= 0) & (after >= 0)
    flow = np.zeros((total, total), int)
    np.add.at(flow, (before[member], after[member]), 1)
    leave, arrive = tops[0].astype(float), tops[1].astype(float)
    left, right, middle = x + _BAR, x + 1 - _BAR, x + 0.5
    for i, j in np.argwhere(flow):
        a, b, width = float(leave[i]), float(arrive[j]), int(flow[i, j])
        leave[i] += width
        arrive[j] += width
        corners = [
            *((left, a), (middle, a), (middle, b), (right, b)),
            *((right, b + width), (middle, b + width), (middle, a + width), (left, a + width)),
        ]
        codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3]
        colour = OKABE_ITO[i % len(OKABE_ITO)]
        path = Path(np.array(corners), codes)
        axes.add_patch(PathPatch(path, facecolor=colour, alpha=0.35, linewidth=0))
