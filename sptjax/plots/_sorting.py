"""Particles among principal coordinates, and trees of merged particles."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .._errors import InputError
from ._style import OKABE_ITO, add_legend, class_names, empty_figure


def coordinates(
    coordinates: np.ndarray, classes: np.ndarray, names: Sequence[str] | None = None
) -> Figure:
    """Particles in the plane of the first two principal coordinates, coloured by class.

    With one coordinate, the second axis is the rank of a particle by it.

    Args:
        coordinates: ``[n, q]``.
        classes: ``[n]``, 0 to classes - 1.
        names: one per class; default ``class 0``...

    Raises:
        InputError: the two arrays differ in length, or a class has no name.
    """
    coordinates, classes = np.asarray(coordinates, float), np.asarray(classes)
    if coordinates.ndim != 2 or len(coordinates) != len(classes):
        raise InputError(f"Coordinates {coordinates.shape} and {len(classes)} classes differ.")
    total = int(classes.max(initial=-1)) + 1 if names is None else len(names)
    if classes.max(initial=-1) >= total:
        raise InputError(f"There are {total} names and a particle of class {classes.max()}.")
    x = coordinates[:, 0]
    y = coordinates[:, 1] if coordinates.shape[1] > 1 else np.argsort(np.argsort(x))
    figure = empty_figure(6.6, 4.6)
    axes = figure.subplots()
    for index, name in enumerate(class_names(names, total)):
        own, colour = classes == index, OKABE_ITO[index % len(OKABE_ITO)]
        marker = "os^D"[index // len(OKABE_ITO) % 4]
        axes.scatter(x[own], y[own], s=14, color=colour, marker=marker, alpha=0.7, label=name)
    second = "coordinate 2" if coordinates.shape[1] > 1 else "rank"
    axes.set(xlabel="coordinate 1", ylabel=second)
    add_legend(figure)
    return figure


def dendrogram(count: int, links: Sequence[tuple[int, tuple[int, int], float]]) -> Figure:
    """Tree of a classification: which objects merged, and in what order.

    Args:
        count: particles, objects 0 ... count - 1.
        links: of every average in the order of merging: its number, those of its two parents,
            and the score of the pair, which is written at the joint.
    """
    parents = {number: pair for number, pair, _ in links}
    merged = {i for pair in parents.values() for i in pair}
    leaves: list[int] = []
    waiting = [i for i in sorted([*parents, *range(count)], reverse=True) if i not in merged]
    waiting.sort(key=lambda i: i in parents)  # averages first, from the end of the list
    while waiting:
        one = waiting.pop()
        waiting.extend(reversed(parents[one])) if one in parents else leaves.append(one)
    place = {leaf: (float(x), 0.0) for x, leaf in enumerate(leaves)}
    figure = empty_figure(max(5.0, min(0.22 * count + 1, 40.0)), 4.6)
    axes = figure.subplots()
    for number, (a, b), score in links:
        (xa, ya), (xb, yb) = place[a], place[b]
        top = max(ya, yb) + 1
        axes.plot([xa, xa, xb, xb], [ya, top, top, yb], color=OKABE_ITO[0], linewidth=1.2)
        place[number] = ((xa + xb) / 2, top)
        if len(links) <= 64:
            axes.annotate(f"{score:.3g}", place[number], fontsize=6, ha="center", va="bottom")
    axes.set_xticks(range(len(leaves)), [str(i) for i in leaves], rotation=90, fontsize=6)
    axes.set(xlabel="particle", ylabel="merges below")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
