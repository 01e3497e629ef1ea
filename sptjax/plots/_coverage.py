"""What an average has seen: of the sphere of viewing directions, and of Fourier space."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Circle

from .._errors import InputError
from ..coverage import REACH_DEG, UNSAMPLED, Views, shell_statistics, unsampled_share, views
from ._style import GREY, class_names, empty_figure, line_style, percent

_COLOURS = "cividis"
_MOST_DENSE = 5.0  # times the even density; brighter than this nothing gets


def viewing_directions(
    directions: Sequence[np.ndarray], names: Sequence[str] | None = None
) -> Figure:
    """Density of the directions from which the particles of every class were seen.

    The sphere in Mollweide's projection, which keeps areas; the z axis of the map points up,
    its x axis to the reader. Hatched is what lies far from every view; the words below say how
    much that is, and how much it would be if as many views were spread at random.

    Args:
        directions: per class ``[n, 3]``, the beam as seen from the map: the third column of the
            rotation of a particle; with symmetry, also its copies.
        names: one per class; default ``class 0``...

    Raises:
        InputError: the names do not match, or directions are no vectors.
    """
    names = class_names(names, len(directions))
    columns = min(max(len(names), 1), 2)
    rows = max(1, -(-len(names) // columns))
    figure = empty_figure(4.6 * columns + 0.9, 3.0 * rows)
    if not len(names):
        return figure
    found = [views(np.asarray(own, float)) for own in directions]
    densest = max(float(one.density.max()) for one in found)
    top = float(np.clip(densest, 2.0, _MOST_DENSE))
    mesh = None
    for index, (name, one) in enumerate(zip(names, found)):
        axes = figure.add_subplot(rows, columns, index + 1, projection="mollweide")
        mesh = _sphere(axes, one, top)
        axes.set_title(f"{name}: {one.count} views", fontsize=9)
        axes.set_xlabel(_in_words(one), fontsize=8)
    assert mesh is not None, "there is a class"
    extend = "max" if densest > top else "neither"
    bar = figure.colorbar(mesh, ax=figure.axes, shrink=0.7, pad=0.02, extend=extend)
    bar.set_label("density of views (even: 1)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def _sphere(axes: Axes, one: Views, top: float) -> QuadMesh:
    """Density and gaps on the axes of a map of the sphere."""
    longitude, latitude = np.radians(one.longitude_deg), np.radians(one.latitude_deg)
    shape = {"cmap": _COLOURS, "vmin": 0, "vmax": top, "shading": "gouraud", "rasterized": True}
    mesh = axes.pcolormesh(longitude, latitude, one.density, **shape)
    if one.unseen > 0:
        levels = [REACH_DEG, 181.0]
        far = axes.contourf(
            longitude, latitude, one.distance_deg, levels, colors="none", hatches=["////"]
        )
        far.set(edgecolor="0.6", linewidth=0)
        axes.contour(
            longitude, latitude, one.distance_deg, levels[:1], colors="white", linewidths=0.8
        )
    axes.set_xticks(np.radians([-120, -60, 0, 60, 120]))
    axes.set_yticks(np.radians([-60, -30, 0, 30, 60]))
    axes.tick_params(labelsize=6, labelcolor=GREY)
    axes.tick_params(axis="x", labelcolor="white")
    axes.grid(color="white", linewidth=0.3, alpha=0.5)
    return mesh


def _in_words(one: Views) -> str:
    if not one.count:
        return "no views"
    return (
        f"{100 * one.unseen:.3g}% farther than {REACH_DEG:g}° from any view (hatched;"
        f" at random {100 * one.unseen_at_random:.2g}%)\nlargest gap: {one.largest_gap_deg:.0f}°"
    )


def fourier_coverage(
    weights: np.ndarray, apix: float, names: Sequence[str] | None = None
) -> Figure:
    """How well every frequency of the averages was sampled: central slices, and by shell.

    1 is a frequency that all particles of the class have seen. Below the slices, the mean of
    every shell and its least sampled frequency; names say which share of Fourier space inside
    the Nyquist sphere was seen by less than one particle in a hundred.

    Args:
        weights: ``[c, m, m, m]``, zero frequency at voxel ``m // 2``, as from
            :func:`sptjax.coverage.sampled`.
        apix: angstrom per voxel of the maps, which sets the Nyquist frequency.
        names: one per class; default ``class 0``...

    Raises:
        InputError: the array is not four-dimensional, the names do not match it, or the voxel
            size is not positive.
    """
    weights = np.asarray(weights)
    if weights.ndim != 4:
        raise InputError(f"Coverage needs grids [class, z, y, x], not an array {weights.shape}.")
    if not apix > 0:
        raise InputError(f"The voxel size must be positive, not {apix} Å.")
    names, count = class_names(names, len(weights)), len(weights)
    figure = empty_figure(7.4, 2.0 * max(count, 1) + 3.0)
    heights = (2.0 * max(count, 1), 3.0)
    upper, lower = figure.subfigures(2, 1, height_ratios=heights, squeeze=False)[:, 0]
    panels = upper.subplots(max(count, 1), 3, squeeze=False)
    nyquist = 1 / (2 * apix)
    top = max(1.0, float(weights.max(initial=0)))
    for row, (own, name) in enumerate(zip(weights, names)):
        missing = f"{100 * unsampled_share(own):.2g}% unsampled"
        image = _fourier_slices(list(panels[row]), own, top, titles=row == 0)
        panels[row, 0].set_ylabel(f"{name}\n{missing}", fontsize=8)
        if row == 0:
            bar = upper.colorbar(image, ax=panels, shrink=0.8, pad=0.02)
            bar.set_label("share of the particles", fontsize=8)
            bar.ax.tick_params(labelsize=7)
    panels[-1, 0].set_xlabel(f"circle: {nyquist:.3g} 1/Å (Nyquist)", fontsize=8)
    axes = lower.subplots()
    for index, (own, name) in enumerate(zip(weights, names)):
        mean, least = shell_statistics(own)
        frequency = np.arange(len(mean)) / (len(own) // 2) * nyquist
        style = line_style(index)
        axes.plot(frequency[1:], mean[1:], label=name, **style)
        axes.plot(frequency[1:], least[1:], **style | {"linewidth": 0.8})
    axes.plot([], [], color=GREY, linewidth=0.8, label="thin: least of a shell")
    axes.axhline(UNSAMPLED, color=GREY, linewidth=0.8, linestyle=(0, (6, 3)))
    axes.set(xlabel="spatial frequency (1/Å)", ylabel="share of the particles")
    axes.set_xlim(0, nyquist)
    axes.set_ylim(0, top * 1.03)
    axes.yaxis.set_major_formatter(percent)
    if count:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    return figure


def _fourier_slices(
    panels: Sequence[Axes], grid: np.ndarray, top: float, *, titles: bool
) -> AxesImage | None:
    """Three central slices inside the Nyquist circle; returns the last image."""
    middle = grid.shape[0] // 2
    axis = np.arange(len(grid)) - middle
    outside = np.hypot(axis[:, None], axis[None, :]) > middle - 1
    slices = {
        "kx, ky": grid[middle], "kx, kz": grid[:, middle], "ky, kz": grid[:, :, middle]
    }  # fmt: skip
    image = None
    for axes, (title, plane) in zip(panels, slices.items()):
        shown = np.ma.masked_array(plane, outside)
        image = axes.imshow(shown, cmap=_COLOURS, vmin=0, vmax=top, origin="lower")
        edge = Circle((middle, middle), middle - 0.3, fill=False, edgecolor=GREY, linewidth=0.8)
        axes.add_patch(edge)
        axes.set(xticks=[], yticks=[], frame_on=False)
        axes.set_xlim(-0.5, len(grid))
        axes.set_ylim(-0.5, len(grid))
        if titles:
            axes.set_title(title, fontsize=9)
    return image
