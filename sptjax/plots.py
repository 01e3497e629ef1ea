"""Figures of a run. Each function takes NumPy arrays and returns a ``matplotlib`` Figure.

Figures are made without pyplot, so nothing needs a display and nothing stays in memory. Colours
are those of Okabe and Ito (distinct to colour-blind readers); past eight the line style changes.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator

from ._errors import InputError
from .io._atomic import atomic_path

# Okabe & Ito (2008), the yellow last because it is weak on white.
OKABE_ITO = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7"),
    *("#E69F00", "#56B4E9", "#000000", "#F0E442"),
)
DPI = 150

_DASHES = ("-", "--", ":", "-.")
_GREY = "0.4"
# Ticks of the resolution axis in angstrom, the ones to prefer first.
_RESOLUTIONS = (
    *(100, 50, 20, 10, 5, 4, 3, 2, 1),
    *(200, 30, 15, 8, 6, 2.5, 1.5, 40, 25, 12, 7, 3.5, 1.8, 1.2),
    *(70, 60, 17, 13, 9, 4.5, 2.2, 1.3, 1.1),
)


def central_slices(volumes: np.ndarray, apix: float, names: Sequence[str] | None = None) -> Figure:
    """Central xy, xz and yz slices of every volume, three panels a class.

    Grey runs from mean - 3 sd (black) to mean + 3 sd (white) of the three slices of a class. In
    a panel named ``ab``, a points right and b up.

    Args:
        volumes: ``[c, n, n, n]``, indexed (z, y, x).
        apix: angstrom per voxel, for the scale bar.
        names: one per class; default ``class 0``...

    Raises:
        InputError: the array is not four-dimensional, the names do not match it, or the voxel
            size is not positive.
    """
    volumes = np.asarray(volumes)
    if volumes.ndim != 4:
        raise InputError(f"Slices need volumes [class, z, y, x], not an array {volumes.shape}.")
    if not apix > 0:
        raise InputError(f"The voxel size must be positive, not {apix} Å.")
    names = _names(names, len(volumes))
    blocks = max(1, round((len(volumes) / 3) ** 0.5))  # of classes side by side
    rows = max(1, -(-len(volumes) // blocks))
    figure = _figure(5.1 * blocks, 1.7 * rows + 0.3)
    grid = figure.subplots(rows, 3 * blocks, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, (volume, name) in enumerate(zip(volumes, names)):
        block, row = divmod(index, rows)
        panels = list(grid[row, 3 * block : 3 * block + 3])
        _slices(panels, volume, titles=row == 0)
        panels[0].set_ylabel(name)
        _scale_bar(panels[0], volume.shape[-1], apix)
    return figure


def fsc_curves(
    freq: np.ndarray,
    curves: Mapping[str, np.ndarray],
    resolutions: Mapping[str, float | None] | None = None,
) -> Figure:
    """Fourier shell correlation against spatial frequency, with the 0.143 and 0.5 lines.

    Args:
        freq: shell frequencies in 1/angstrom, rising.
        curves: name -> FSC per shell.
        resolutions: name -> resolution in angstrom, written into the legend and marked on the
            curve of that name; None or infinity where the curve never crosses.

    Raises:
        InputError: there is no shell, or a curve and the frequencies differ in length.
    """
    freq = np.asarray(freq, float)
    if freq.ndim != 1 or not freq.size:
        raise InputError(f"FSC curves need a list of frequencies, not an array {freq.shape}.")
    figure = _figure(6.6, 3.9)
    axes = figure.subplots()
    for threshold in (0.5, 0.143):
        axes.axhline(threshold, color=_GREY, linewidth=0.8, linestyle=(0, (6, 3)))
        place = {"xy": (1, threshold), "xycoords": axes.get_yaxis_transform()}
        offset = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(f"{threshold}", **place, **offset, color=_GREY, fontsize=8)
    low = 0.0
    for index, (name, values) in enumerate(curves.items()):
        values = np.asarray(values, float)
        if values.shape != freq.shape:
            raise InputError(f"FSC {name!r} has {values.size} shells, not {freq.size}.")
        resolution = (resolutions or {}).get(name) or np.inf
        label = f"{name}: {resolution:.1f} Å" if np.isfinite(resolution) else name
        style = _style(index)
        axes.plot(freq, values, label=label, **style)
        if np.isfinite(resolution):
            at = 1 / resolution
            height = np.interp(at, freq, values)
            axes.plot([at], [height], "o", color=style["color"], markersize=4.5)
            axes.plot([at, at], [-1, height], ":", color=style["color"], linewidth=1)
        low = min(low, float(np.nanmin(values, initial=0.0)))
    axes.set(xlabel="spatial frequency (1/Å)", ylabel="Fourier shell correlation")
    axes.set_xlim(0, freq[-1])
    axes.set_ylim(max(low, -0.4) - 0.03, 1.03)
    _resolution_axis(axes)
    _legend(figure)
    return figure


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
    together = np.concatenate([np.zeros(0), *finite])
    edges = np.histogram_bin_edges(together, bins=int(np.clip(together.size**0.5, 10, 60)))
    figure = _figure(6.6, 3.6)
    axes = figure.subplots()
    for index, (name, values) in enumerate(zip(_names(names, len(finite)), finite)):
        style = _style(index)
        counts, _ = np.histogram(values, edges)
        if len(finite) <= 4:
            axes.stairs(counts, edges, fill=True, color=style["color"], alpha=0.12)
        axes.stairs(counts, edges, label=f"{name} (n = {values.size})", **style)
        if values.size:
            axes.plot([np.median(values)], [0], "^", color=style["color"], clip_on=False, zorder=5)
    axes.set(xlabel="score (larger is better; triangle: median)", ylabel="particles")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    _legend(figure)
    return figure


def class_occupancy(
    counts: np.ndarray, changed_fraction: np.ndarray, names: Sequence[str] | None = None
) -> Figure:
    """Particles in each class after each round, and the share that changed class.

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
    figure = _figure(6.6, 4.6)
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(2.2, 1))
    for index, name in enumerate(_names(names, counts.shape[1])):
        upper.plot(rounds, counts[:, index], marker="o", markersize=4, label=name, **_style(index))
    upper.set(ylabel="particles")
    upper.set_ylim(0, max(1.0, 1.06 * counts.max(initial=0)))
    lower.plot(rounds, changed, marker="s", markersize=4, color="black", linewidth=1.5)
    lower.set(xlabel="round", ylabel="changed class")
    lower.set_ylim(0, max(0.01, 1.1 * np.nanmax(changed, initial=0.0)))
    lower.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    lower.set_xlim(-0.3, max(len(counts) - 1, 0) + 0.3)
    _legend(figure)
    return figure


def margins(margins: np.ndarray, classes: np.ndarray, names: Sequence[str] | None = None) -> Figure:
    """How clear the assignment is: share of a class's particles with at most a given margin.

    A curve that rises at once belongs to a class whose particles could as well be elsewhere.

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
    figure = _figure(6.6, 3.6)
    axes = figure.subplots()
    for index, name in enumerate(_names(names, total)):
        values = np.sort(margins[(classes == index) & np.isfinite(margins)])
        share = np.arange(values.size + 1) / max(values.size, 1)
        x = np.concatenate([values[:1], values])
        axes.plot(
            x, share[: x.size], drawstyle="steps-post",
            label=f"{name} (n = {values.size})", **_style(index),
        )  # fmt: skip
    axes.set(xlabel="score margin to the second-best class", ylabel="cumulative share of the class")
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    axes.set_ylim(0, 1.02)
    axes.set_xlim(left=float(np.min(margins, initial=0.0, where=np.isfinite(margins))))
    _legend(figure)
    return figure


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
    figure = _figure(6.6, 4.6)
    axes = figure.subplots()
    for index, name in enumerate(_names(names, total)):
        own, colour = classes == index, OKABE_ITO[index % len(OKABE_ITO)]
        marker = "os^D"[index // len(OKABE_ITO) % 4]
        axes.scatter(x[own], y[own], s=14, color=colour, marker=marker, alpha=0.7, label=name)
    second = "coordinate 2" if coordinates.shape[1] > 1 else "rank"
    axes.set(xlabel="coordinate 1", ylabel=second)
    _legend(figure)
    return figure


def compression(
    bits: Sequence[int],
    ratio: Sequence[float],
    errors_sigma: Mapping[str, Sequence[float]],
    fsc: np.ndarray,
    chosen: int,
) -> Figure:
    """Size and error of a compressed image by the number of bits, and its FSC at the bits chosen.

    Args:
        bits: kept of every value.
        ratio: how many times smaller than 32-bit floats, per number of bits.
        errors_sigma: name -> error in standard deviations of the image, likewise.
        fsc: correlation with the original in equal shells up to half a cycle per voxel.
        chosen: bits of the file, which are marked if they are among `bits`.
    """
    figure = _figure(10.5, 3.9)
    left, right = figure.subplots(1, 2)
    left.plot(bits, ratio, marker="o", markersize=4, label="times smaller", **_style(0))
    left.set(xlabel="bits", ylabel="times smaller than 32-bit floats", yscale="log")
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("")
    left.set_ylim(bottom=min(1, *ratio))
    error = left.twinx()
    for index, (name, values) in enumerate(errors_sigma.items(), 1):
        exact = [number for number, value in zip(bits, values) if value == 0]
        shown = np.where(np.asarray(values) > 0, values, np.nan)
        label = f"{name} (0 from {exact[0]} bits on)" if exact else name
        left.plot([], [], marker="o", markersize=4, label=label, **_style(index))
        error.plot(bits, shown, marker="o", markersize=4, **_style(index))
    error.set(ylabel="error (standard deviations of the image)", yscale="log")
    if chosen in bits:
        left.axvline(chosen, color="0.6", linestyle=":", label=f"this file: {chosen} bits")
    lost = 1 - np.asarray(fsc, float)
    right.plot((np.arange(len(lost)) + 0.5) / (2 * len(lost)), lost, **_style(4))
    right.set(xlabel="spatial frequency (1/voxel)", ylabel="1 - FSC of original and restored")
    right.set_xlim(0, 0.5)
    right.set_ylim(bottom=0)
    if not np.nanmax(lost, initial=0) > 1e-12:
        right.text(0.25, 0.5, "no difference", ha="center", transform=right.get_xaxis_transform())
    left.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
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
    figure = _figure(max(5.0, min(0.22 * count + 1, 40.0)), 4.6)
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


def ranked_scores(scores: np.ndarray) -> Figure:
    """Scores of pairs from the best to the worst.

    Args:
        scores: ``[p]``, larger is better.
    """
    figure = _figure(5.2, 3.6)
    axes = figure.subplots()
    axes.plot(np.sort(np.asarray(scores))[::-1], color=OKABE_ITO[0], linewidth=1.5)
    axes.set(xlabel="pair", ylabel="score")
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG at 150 dots per inch; the file appears whole or not at all.

    Raises:
        InputError: the folder is missing or not writable.
    """
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})


def _figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _names(names: Sequence[str] | None, count: int) -> Sequence[str]:
    names = [f"class {index}" for index in range(count)] if names is None else names
    if len(names) != count:
        raise InputError(f"There are {len(names)} names for {count} classes.")
    return names


def _style(index: int) -> dict[str, Any]:
    cycle, colour = divmod(index, len(OKABE_ITO))
    dash = _DASHES[cycle % len(_DASHES)]
    return {"color": OKABE_ITO[colour], "linestyle": dash, "linewidth": 1.7}


def _legend(figure: Figure) -> None:
    """One legend, right of everything that is drawn."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        columns = 1 + (len(handles) - 1) // 16
        figure.set_figwidth(figure.get_figwidth() + 1.6 * (columns - 1))
        place = "outside right upper"
        figure.legend(handles, labels, loc=place, frameon=False, fontsize=9, ncols=columns)


def _slices(panels: Sequence[Axes], volume: np.ndarray, titles: bool) -> None:
    """Draw the three central slices of one volume with one contrast."""
    z, y, x = (size // 2 for size in volume.shape)
    slices = {"xy": volume[z], "xz": volume[:, y], "yz": volume[:, :, x]}
    shown = np.concatenate([image[np.isfinite(image)] for image in slices.values()])
    mean, sd = (float(shown.mean()), float(shown.std()) or 1.0) if shown.size else (0.0, 1.0)
    for axes, (title, image) in zip(panels, slices.items()):
        axes.set_axis_on()
        axes.set(xticks=[], yticks=[], frame_on=False)
        axes.imshow(image, cmap="gray", vmin=mean - 3 * sd, vmax=mean + 3 * sd, origin="lower")
        if titles:
            axes.set_title(title, fontsize=9)


def _scale_bar(axes: Axes, box: int, apix: float) -> None:
    """A bar of a round length, about a quarter of the box, in the lower left corner."""
    quarter = box * apix / 4
    decade = 10.0 ** np.floor(np.log10(quarter))
    length = decade * max(step for step in (1, 2, 5) if step * decade <= quarter * 1.0001)
    margin, height = 0.05 * box - 0.5, 0.025 * box
    bar = Rectangle((margin, margin), length / apix, height, facecolor="w", edgecolor="k", lw=0.5)
    axes.add_patch(bar)
    outline = [patheffects.withStroke(linewidth=1.8, foreground="black")]
    place = {"x": margin, "y": margin + 1.8 * height, "path_effects": outline}
    axes.text(s=f"{length:g} Å", **place, color="white", fontsize=8, va="bottom", ha="left")


def _resolution_axis(axes: Axes) -> None:
    """A second axis on top with the same positions in angstrom, as many as fit."""
    right = axes.get_xlim()[1]
    chosen: list[float] = []
    for place in (1 / resolution for resolution in _RESOLUTIONS):
        room = min((abs(place - other) for other in chosen), default=right)
        if 0.03 * right < place <= right and room > 0.07 * right:
            chosen.append(place)
    top = axes.secondary_xaxis("top")
    top.xaxis.set_major_locator(FixedLocator(chosen))
    top.set_xticklabels([f"{1 / place:.4g}" for place in chosen])
    top.set_xlabel("resolution (Å)")
