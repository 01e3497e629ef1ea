"""Size and error of a compressed image."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ._style import empty_figure, line_style


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
        fsc: ``[s]``, correlation with the original in equal shells up to half a cycle per voxel.
        chosen: bits of the file, which are marked if they are among `bits`.
    """
    figure = empty_figure(10.5, 3.9)
    left, right = figure.subplots(1, 2)
    left.plot(bits, ratio, marker="o", markersize=4, label="times smaller", **line_style(0))
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
        left.plot([], [], marker="o", markersize=4, label=label, **line_style(index))
        error.plot(bits, shown, marker="o", markersize=4, **line_style(index))
    error.set(ylabel="error (standard deviations of the image)", yscale="log")
    if chosen in bits:
        left.axvline(chosen, color="0.6", linestyle=":", label=f"this file: {chosen} bits")
    lost = 1 - np.asarray(fsc, float)
    right.plot((np.arange(len(lost)) + 0.5) / (2 * len(lost)), lost, **line_style(4))
    right.set(xlabel="spatial frequency (1/voxel)", ylabel="1 - FSC of original and restored")
    right.set_xlim(0, 0.5)
    right.set_ylim(bottom=0)
    if not np.nanmax(lost, initial=0) > 1e-12:
        right.text(0.25, 0.5, "no difference", ha="center", transform=right.get_xaxis_transform())
    left.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return figure
