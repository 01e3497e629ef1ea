"""Fourier shell correlation, over frequency and resolution."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from .._errors import InputError
from ._style import GREY, add_legend, empty_figure, line_style

# Ticks of the resolution axis in angstrom, the ones to prefer first.
_RESOLUTIONS = (
    *(100, 50, 20, 10, 5, 4, 3, 2, 1),
    *(200, 30, 15, 8, 6, 2.5, 1.5, 40, 25, 12, 7, 3.5, 1.8, 1.2),
    *(70, 60, 17, 13, 9, 4.5, 2.2, 1.3, 1.1),
)


def fsc_curves(
    freq: np.ndarray,
    curves: Mapping[str, np.ndarray],
    resolutions: Mapping[str, float | None] | None = None,
) -> Figure:
    """Fourier shell correlation against spatial frequency, with the 0.143 and 0.5 lines.

    Args:
        freq: ``[s]``, shell frequencies in 1/angstrom, rising.
        curves: name -> FSC ``[s]`` per shell.
        resolutions: name -> resolution in angstrom, written into the legend and marked on the
            curve of that name; None or infinity where the curve never crosses.

    Raises:
        InputError: there is no shell, or a curve and the frequencies differ in length.
    """
    freq = np.asarray(freq, float)
    if freq.ndim != 1 or not freq.size:
        raise InputError(f"FSC curves need a list of frequencies, not an array {freq.shape}.")
    figure = empty_figure(6.6, 3.9)
    axes = figure.subplots()
    for threshold in (0.5, 0.143):
        axes.axhline(threshold, color=GREY, linewidth=0.8, linestyle=(0, (6, 3)))
        place = {"xy": (1, threshold), "xycoords": axes.get_yaxis_transform()}
        offset = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(f"{threshold}", **place, **offset, color=GREY, fontsize=8)
    low = 0.0
    for index, (name, values) in enumerate(curves.items()):
        values = np.asarray(values, float)
        if values.shape != freq.shape:
            raise InputError(f"FSC {name!r} has {values.size} shells, not {freq.size}.")
        resolution = (resolutions or {}).get(name) or np.inf
        label = f"{name}: {resolution:.1f} Å" if np.isfinite(resolution) else name
        style = line_style(index)
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
    add_legend(figure)
    return figure


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
