"""Scores of particles, their margins, and scores of pairs."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .._errors import InputError
from ._style import OKABE_ITO, add_legend, class_names, empty_figure, line_style, percent


def score_histogram(scores: Sequence[np.ndarray], names: Sequence[str] | None = None) -> Figure:
    """Distribution of the scores of each class, with a triangle at its median.

    Args:
        scores: per class, the scores of its particles (larger is better); others than finite
            ones are left out.
        names: one per class; default ``class 0``...

    Raises:
        InputError: the names do not match.
    """
    finite = [np.asarray(s, float)[np.isfinite(s)] for s in scores]
    figure = empty_figure(6.6, 3.6)
    axes = figure.subplots()
    _histogram(axes, finite, class_names(names, len(finite)))
    axes.set(xlabel="score (larger is better; triangle: median)", ylabel="particles")
    add_legend(figure)
    return figure


def margins(margins: np.ndarray, classes: np.ndarray, names: Sequence[str] | None = None) -> Figure:
    """How clear the assignment is: margins by class, and their cumulative distribution.

    A lower curve that rises at once belongs to a class whose particles could as well be elsewhere.

    Args:
        margins: ``[n]``, best score minus second best; others than finite ones are left out.
        classes: ``[n]`` assigned class, 0 to classes - 1; negative for none (left out).
        names: one per class; default ``class 0``...

    Raises:
        InputError: the two arrays differ in length, or a class has no name.
    """
    margins, classes = np.asarray(margins, float), np.asarray(classes)
    if margins.ndim != 1 or margins.shape != classes.shape:
        raise InputError(f"Margins {margins.shape} and classes {classes.shape} do not match.")
    total = int(classes.max(initial=-1)) + 1 if names is None else len(names)
    if classes.max(initial=-1) >= total:
        raise InputError(f"There are {total} names and a particle of class {classes.max()}.")
    groups = [margins[(classes == index) & np.isfinite(margins)] for index in range(total)]
    figure = empty_figure(6.6, 4.8)
    upper, lower = figure.subplots(2, sharex=True)
    _histogram(upper, groups, class_names(names, total))
    upper.set(ylabel="particles")
    for index, values in enumerate(groups):
        share = np.arange(values.size + 1) / max(values.size, 1)
        x = np.sort(np.concatenate([values.min(keepdims=True) if values.size else values, values]))
        lower.plot(x, share[: x.size], drawstyle="steps-post", **line_style(index))
    lower.set(
        xlabel="score margin to the second-best class (triangle: median)",
        ylabel="share with at most this",
    )
    lower.yaxis.set_major_formatter(percent)
    lower.set_ylim(0, 1.02)
    lower.set_xlim(left=float(np.min(margins, initial=0.0, where=np.isfinite(margins))))
    add_legend(figure)
    return figure


def _histogram(axes: Axes, groups: Sequence[np.ndarray], names: Sequence[str]) -> None:
    """Outlines over common bins, with the median of every group."""
    together = np.concatenate([np.zeros(0), *groups])
    edges = np.histogram_bin_edges(together, bins=int(np.clip(together.size**0.5, 10, 60)))
    for index, (name, values) in enumerate(zip(names, groups)):
        style = line_style(index)
        counts, _ = np.histogram(values, edges)
        if len(groups) <= 4:
            axes.stairs(counts, edges, fill=True, color=style["color"], alpha=0.12)
        axes.stairs(counts, edges, label=f"{name} (n = {values.size})", **style)
        if values.size:
            axes.plot([np.median(values)], [0], "^", color=style["color"], clip_on=False, zorder=5)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def ranked_scores(scores: np.ndarray) -> Figure:
    """Scores of pairs from the best to the worst.

    Args:
        scores: ``[p]``, larger is better.
    """
    figure = empty_figure(5.2, 3.6)
    axes = figure.subplots()
    axes.plot(np.sort(np.asarray(scores))[::-1], color=OKABE_ITO[0], linewidth=1.5)
    axes.set(xlabel="pair", ylabel="score")
    return figure
