"""Maps in grey: central slices and projections."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .._errors import InputError
from ._style import class_names, empty_figure


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
    return _panels(np.asarray(volumes), apix, names, _slices, _three_sd)


def projections(volumes: np.ndarray, apix: float, names: Sequence[str] | None = None) -> Figure:
    """Every volume summed along z, y and x: what a map looks like from three sides.

    Grey runs from the least to the largest sum of a class; the rest is as in
    :func:`central_slices`.

    Args:
        volumes: ``[c, n, n, n]``.
        apix: angstrom per voxel.
        names: of the volumes.
    """
    return _panels(np.asarray(volumes), apix, names, _sums, _extremes)


def _slices(volume: np.ndarray) -> dict[str, np.ndarray]:
    z, y, x = (size // 2 for size in volume.shape)
    return {"xy": volume[z], "xz": volume[:, y], "yz": volume[:, :, x]}


def _sums(volume: np.ndarray) -> dict[str, np.ndarray]:
    titles = ("xy, along z", "xz, along y", "yz, along x")
    return {title: volume.sum(axis) for axis, title in enumerate(titles)}


def _three_sd(values: np.ndarray) -> tuple[float, float]:
    mean, sd = float(values.mean()), float(values.std()) or 1.0
    return mean - 3 * sd, mean + 3 * sd


def _extremes(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 1, low + 1)


def _panels(
    volumes: np.ndarray,
    apix: float,
    names: Sequence[str] | None,
    images: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    greys: Callable[[np.ndarray], tuple[float, float]],
) -> Figure:
    """Three images of every volume, with its name and a scale bar."""
    if volumes.ndim != 4:
        raise InputError(f"Slices need volumes [class, z, y, x], not an array {volumes.shape}.")
    if not apix > 0:
        raise InputError(f"The voxel size must be positive, not {apix} Å.")
    names = class_names(names, len(volumes))
    blocks = max(1, round((len(volumes) / 3) ** 0.5))  # of classes side by side
    rows = max(1, -(-len(volumes) // blocks))
    figure = empty_figure(5.1 * blocks, 1.7 * rows + 0.3)
    grid = figure.subplots(rows, 3 * blocks, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, (volume, name) in enumerate(zip(volumes, names)):
        block, row = divmod(index, rows)
        panels = list(grid[row, 3 * block : 3 * block + 3])
        _draw(panels, images(volume), greys, titles=row == 0)
        panels[0].set_ylabel(name)
        _scale_bar(panels[0], volume.shape[-1], apix)
    return figure


def _draw(
    panels: Sequence[Axes],
    images: Mapping[str, np.ndarray],
    greys: Callable[[np.ndarray], tuple[float, float]],
    *,
    titles: bool,
) -> None:
    """Draw the images of one volume with one contrast."""
    shown = np.concatenate([image[np.isfinite(image)] for image in images.values()])
    low, high = greys(shown) if shown.size else (0.0, 1.0)
    for axes, (title, image) in zip(panels, images.items()):
        axes.set_axis_on()
        axes.set(xticks=[], yticks=[], frame_on=False)
        axes.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower")
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
