"""Figures checked by what they hold: data, units, colours, and boxes that do not overlap."""

import itertools
import pathlib
from typing import Any

import matplotlib.colors
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from matplotlib.patches import Rectangle

from sptjax import plots
from sptjax._errors import InputError

N = 12


@pytest.fixture
def volumes(rng):
    return rng.normal(3.0, 2.0, (2, N, N, N)).astype(np.float32)


def colours(artists):
    return [matplotlib.colors.to_hex(artist.get_color()) for artist in artists]


def labelled(axes) -> Any:
    """The curves of the legend, without threshold lines and marks."""
    return [line for line in axes.get_lines() if not line.get_label().startswith("_")]


def boxes(figure, artists):
    """Extents in pixels of what is drawn, after layout."""
    figure.draw_without_rendering()
    return [artist.get_window_extent() for artist in artists]


def legend_is_outside(figure):
    legend, *axes = boxes(figure, [figure.legends[0], *figure.axes])
    inside = figure.bbox.containsx(legend.x1) and figure.bbox.containsy(legend.y0)
    return inside and not any(legend.overlaps(box) for box in axes)


# ---------------------------------------------------------------- slices


def test_the_drawn_images_are_the_central_slices(volumes):
    figure = plots.central_slices(volumes, 4.0, ["80S", "40S"])
    assert len(figure.axes) == 6
    for c, v in enumerate(volumes):
        expected = [v[N // 2], v[:, N // 2], v[:, :, N // 2]]
        for axes, image in zip(figure.axes[3 * c : 3 * c + 3], expected):
            drawn: Any = axes.get_images()[0]
            assert np.array_equal(drawn.get_array(), image)
            assert drawn.origin == "lower"
            assert drawn.get_cmap().name == "gray"
            stack = np.stack(expected)
            wanted = stack.mean() - 3 * stack.std(), stack.mean() + 3 * stack.std()
            assert drawn.get_clim() == pytest.approx(wanted, rel=1e-5)
    assert [a.get_title() for a in figure.axes] == ["xy", "xz", "yz", "", "", ""]
    assert [figure.axes[i].get_ylabel() for i in (0, 3)] == ["80S", "40S"]


def test_x_points_right_and_z_up_in_the_pixels():
    volume = np.zeros((1, N, N, N), np.float32)
    volume[0, -2:, N // 2, -4:] = 1.0  # high z, high x: the upper right of xz
    figure = plots.central_slices(volume, 1.0)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.array(canvas.buffer_rgba())[..., 0]  # row 0 on top
    box = boxes(figure, [figure.axes[1]])[0]
    top, left = int(figure.bbox.height - box.y1), int(box.x0)
    size = int(box.width)
    panel = pixels[top : top + size, left : left + size]
    row, column = np.argwhere(panel > 200).mean(0) / size
    assert row < 0.25
    assert column > 0.75


@pytest.mark.parametrize(
    ("apix", "angstrom"), [(4.0, 10), (1.0, 2), (5.3, 10), (20.0, 50), (3.4, 10), (0.03, 0.05)]
)
def test_scale_bar_has_a_round_length_and_says_it(volumes, apix, angstrom):
    axes = plots.central_slices(volumes[:1], apix).axes[0]
    (bar,) = (p for p in axes.patches if isinstance(p, Rectangle))
    assert bar.get_width() * apix == pytest.approx(angstrom)
    assert [text.get_text() for text in axes.texts] == [f"{angstrom} Å"]


@pytest.mark.parametrize("count", [1, 3, 7, 20])
def test_every_class_has_its_row_and_nothing_else_is_drawn(rng, count):
    figure = plots.central_slices(rng.normal(size=(count, 4, 4, 4)), 4.0)
    shown = [axes for axes in figure.axes if axes.get_images()]
    assert len(shown) == 3 * count
    names = {axes.get_ylabel() for axes in shown} - {""}
    assert names == {f"class {i}" for i in range(count)}
    assert all(not axes.axison for axes in figure.axes if axes not in shown)
    width, height = figure.get_size_inches()
    assert max(width, height) < 16


def test_projections_are_sums_along_the_axes(volumes):
    figure = plots.projections(volumes, 4.0)
    for c, v in enumerate(volumes):
        expected = [v.sum(0), v.sum(1), v.sum(2)]
        for axes, image in zip(figure.axes[3 * c : 3 * c + 3], expected):
            drawn: Any = axes.get_images()[0]
            np.testing.assert_allclose(drawn.get_array(), image, rtol=1e-6)
            stack = np.stack(expected)
            assert drawn.get_clim() == pytest.approx((stack.min(), stack.max()), rel=1e-5)
    assert [a.get_title() for a in figure.axes[:3]] == ["xy, along z", "xz, along y", "yz, along x"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["10 Å"]


def test_flat_and_broken_volumes_still_draw():
    volumes = np.stack([np.full((4, 4, 4), 2.0), np.full((4, 4, 4), np.nan)])
    figure = plots.central_slices(volumes, 4.0)
    figure.canvas.draw()
    assert figure.axes[0].get_images()[0].get_clim() == (-1.0, 5.0)
    plots.projections(volumes, 4.0).canvas.draw()


# ---------------------------------------------------------------- FSC

FREQ = np.arange(1, 24) / (48 * 5.3)


def fsc(resolution):
    return 1 / (1 + np.exp((FREQ - 1 / resolution) / 0.004))


def test_fsc_figure_holds_the_curves_thresholds_and_resolutions():
    curves = {"unmasked": fsc(30), "masked": fsc(22), "corrected": fsc(24)}
    resolutions = {"unmasked": 28.25, "masked": 20.0, "corrected": None}
    figure = plots.fsc_curves(FREQ, curves, resolutions)
    axes: Any = figure.axes[0]
    lines = labelled(axes)
    for line, values in zip(lines, curves.values()):
        assert np.array_equal(line.get_xydata(), np.stack([FREQ, values], 1))
    labels = [line.get_label() for line in lines]
    assert labels == ["unmasked: 28.2 Å", "masked: 20.0 Å", "corrected"]
    assert len(set(colours(lines))) == 3
    flat = [set(line.get_ydata()) for line in axes.get_lines()]
    assert {0.143} in flat
    assert {0.5} in flat
    assert {text.get_text() for text in axes.texts} == {"0.143", "0.5"}
    assert axes.get_xlabel() == "spatial frequency (1/Å)"
    assert axes.get_ylabel() == "Fourier shell correlation"
    assert axes.get_xlim() == (0, FREQ[-1])
    low, high = axes.get_ylim()
    assert low < 0 < 1 < high
    dots = [line.get_xydata()[0] for line in axes.get_lines() if line.get_marker() == "o"]
    wanted = [[1 / r, np.interp(1 / r, FREQ, curves[n])] for n, r in resolutions.items() if r]
    assert np.allclose(dots, wanted)
    assert legend_is_outside(figure)


@pytest.mark.parametrize("apix", [0.6, 1.35, 5.3, 12.0, 20.0])
def test_resolution_axis_agrees_with_the_frequency_and_its_labels_do_not_touch(apix):
    freq = np.arange(1, 32) / (64 * apix)
    figure = plots.fsc_curves(freq, {"map": np.exp(-freq)})
    (top,) = figure.axes[0].child_axes
    assert top.get_xlabel() == "resolution (Å)"
    ticks, labels = top.get_xticks(), top.get_xticklabels()
    assert len(ticks) >= 4
    for place, label in zip(ticks, labels):
        assert 1 / float(label.get_text()) == pytest.approx(place)
    for one, other in itertools.combinations(boxes(figure, labels), 2):
        assert not one.overlaps(other)


def test_deep_negative_fsc_stays_in_view():
    figure = plots.fsc_curves(FREQ, {"bad": np.linspace(1, -0.3, FREQ.size)})
    assert figure.axes[0].get_ylim()[0] < -0.3


# ---------------------------------------------------------------- scores, classes


def test_histogram_counts_every_finite_score_once(rng):
    scores = [rng.normal(9, 1, 300), np.append(rng.normal(5, 1, 40), [np.nan, -np.inf]), []]
    figure = plots.score_histogram([np.asarray(s) for s in scores], ["a", "b", "c"])
    axes: Any = figure.axes[0]
    outlines = [patch for patch in axes.patches if patch.get_label()]
    assert [patch.get_label() for patch in outlines] == ["a (n = 300)", "b (n = 40)", "c (n = 0)"]
    assert [patch.get_data().values.sum() for patch in outlines] == [300, 40, 0]
    values, edges, _ = outlines[0].get_data()
    assert np.array_equal(np.histogram(scores[0], edges)[0], values)
    medians = [line.get_xdata()[0] for line in axes.get_lines()]
    assert medians == [np.median(scores[0]), np.median(scores[1][:40])]
    assert len({patch.get_edgecolor() for patch in outlines}) == 3
    assert axes.get_xlabel().startswith("score")
    assert axes.get_ylabel() == "particles"
    assert axes.get_ylim()[0] == 0
    assert legend_is_outside(figure)


def test_occupancy_shows_counts_and_percent_changed():
    counts = np.array([[50, 50], [80, 20], [90, 10]])
    changed = np.array([np.nan, 0.3, 0.025])
    figure = plots.class_occupancy(counts, changed)
    upper, lower = figure.axes
    for index, line in enumerate(labelled(upper)):
        assert np.array_equal(line.get_xdata(), [0, 1, 2])
        assert np.array_equal(line.get_ydata(), counts[:, index])
    assert len(set(colours(labelled(upper)))) == 2
    assert upper.get_ylim()[0] == 0
    assert upper.get_ylim()[1] > 90
    (line,) = lower.get_lines()
    assert np.array_equal(line.get_ydata(), changed, equal_nan=True)
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("particles", "changed class")
    assert lower.get_xlabel() == "round"
    assert lower.yaxis.get_major_formatter()(0.3, 0) == "30%"
    assert legend_is_outside(figure)
    low, high = lower.get_xlim()
    shown = [tick for tick in lower.get_xticks() if low <= tick <= high]
    assert shown == [0, 1, 2]


@pytest.mark.parametrize("classes", [2, 3, 32])
def test_classes_of_equal_size_are_all_seen(classes):
    """Their lines are drawn one below the other, about where they belong."""
    figure = plots.class_occupancy(np.full((4, classes), 24), np.zeros(4))
    figure.draw_without_rendering()
    heights = [line.get_transform().transform((1, 24))[1] for line in labelled(figure.axes[0])]
    points = -np.diff(heights) * 72 / figure.dpi
    assert (points > 0.3).all()
    assert np.ptp(heights) * 72 / figure.dpi <= 12
    middle = figure.axes[0].transData.transform((1, 24))[1]
    assert abs(np.mean(heights) - middle) < 1e-6


def test_occupancy_of_a_single_round_has_one_tick():
    lower = plots.class_occupancy(np.array([[3, 4]]), np.array([np.nan])).axes[1]
    low, high = lower.get_xlim()
    assert [tick for tick in lower.get_xticks() if low <= tick <= high] == [0]


def test_margin_curves_are_the_cumulative_distribution(rng):
    margins, classes = rng.exponential(size=200), rng.integers(-1, 3, 200)
    margins[:4] = np.inf, np.nan, -np.inf, np.inf
    figure = plots.margins(margins, classes)
    upper, lower = figure.axes
    outlines: Any = [patch for patch in upper.patches if patch.get_label()]
    lines = lower.get_lines()
    assert len(lines) == len(outlines) == 3
    for index, (line, outline) in enumerate(zip(lines, outlines)):
        own = margins[(classes == index) & np.isfinite(margins)]
        assert outline.get_label() == f"class {index} (n = {own.size})"
        counts, edges, _ = outline.get_data()
        assert np.array_equal(np.histogram(own, edges)[0], counts)
        assert counts.sum() == own.size
        x, share = line.get_data()
        for at in (0.1, 0.7, 1.5):
            drawn = share[np.searchsorted(x, at, side="right") - 1] if at >= x[0] else 0
            assert drawn == pytest.approx((own <= at).mean())
    assert len(set(colours(lines))) == 3
    assert "margin" in lower.get_xlabel()
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("particles", "share with at most this")
    assert lower.get_xlim()[0] == 0
    assert legend_is_outside(figure)


def ribbons(axes):
    """Width, start and end of every ribbon of a flow, by its colour and corners."""
    found = []
    for patch in axes.patches:
        corners = patch.get_path().vertices
        if len(corners) == 8:
            (x0, a), (x1, b) = corners[0], corners[3]
            colour = matplotlib.colors.to_hex(patch.get_facecolor()[:3])
            found.append((round(x0), round(x1), a, b, corners[7, 1] - a, colour))
    return found


def test_ribbons_are_as_wide_as_the_particles_that_move():
    classes = np.array([[0, 0, 0, 1, 1, -1], [0, 0, 1, 1, 1, 2], [2, 0, 1, 1, 0, 2]])
    figure = plots.class_flow(classes)
    axes = figure.axes[0]
    drawn = {(x, colour, width) for x, _, _, _, width, colour in ribbons(axes)}
    blue, red, green = (c.lower() for c in plots.OKABE_ITO[:3])
    assert drawn == {
        *((0, blue, 2), (0, blue, 1), (0, red, 2)),  # 0 to 0, 0 to 1, 1 to 1
        *((1, blue, 1), (1, red, 2), (1, red, 1), (1, green, 1)),
    }
    first = [r for r in ribbons(axes) if r[0] == 0]
    assert sum(r[4] for r in first) == 5  # the sixth particle had no class
    assert {text.get_text() for text in axes.texts} == {"3", "2", "1"}
    assert axes.get_xlabel() == "round"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "2"]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["class 0", "class 1", "class 2"]
    low, high = axes.get_ylim()
    assert low > high  # class 0 on top
    assert legend_is_outside(figure)


def test_ribbons_leave_and_reach_their_columns_without_overlap(rng):
    classes = rng.integers(0, 4, (3, 60))
    axes = plots.class_flow(classes).axes[0]
    for column in (0, 1):
        for end in (2, 3):
            spans = sorted((r[end], r[end] + r[4]) for r in ribbons(axes) if r[0] == column)
            assert all(a[1] <= b[0] + 1e-9 for a, b in itertools.pairwise(spans))


def test_of_many_rounds_the_first_and_the_last_are_drawn():
    axes = plots.class_flow(np.zeros((50, 3), int)).axes[0]
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert len(shown) == 12
    assert (shown[0], shown[-1]) == ("0", "49")


def test_past_eight_classes_the_line_style_tells_them_apart():
    counts = np.arange(40)[None, :] + np.zeros((2, 1))
    lines = labelled(plots.class_occupancy(counts, np.array([np.nan, 0.0])).axes[0])[:32]
    assert len({(c, line.get_linestyle()) for c, line in zip(colours(lines), lines)}) == 32


def nearest(palette):
    """Smallest sRGB distance of two colours, also as seen with red-green blindness.

    Deuteranopia and protanopia of Viénot, Brettel & Mollon (1999), on linear RGB.
    """
    deutan = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    protan = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])
    rgb = np.array([matplotlib.colors.to_rgb(colour) for colour in palette])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = [np.clip(linear @ m.T, 0, 1) ** (1 / 2.4) for m in (np.eye(3), deutan, protan)]
    return min(np.linalg.norm(a - b) for s in seen for a, b in itertools.combinations(s, 2))


def test_colours_differ_also_for_the_red_green_blind():
    usual = [f"C{index}" for index in range(8)]
    assert nearest(plots.OKABE_ITO) > 2 * nearest(usual)


def test_empty_input_still_gives_a_figure():
    plots.score_histogram([]).canvas.draw()
    plots.margins(np.zeros(0), np.zeros(0, int)).canvas.draw()
    plots.central_slices(np.zeros((0, 4, 4, 4)), 1.0).canvas.draw()
    plots.class_flow(np.zeros((0, 5), int)).canvas.draw()
    plots.class_flow(np.full((2, 5), -1)).canvas.draw()
    plots.viewing_directions([]).canvas.draw()
    plots.viewing_directions([np.zeros((0, 3))]).canvas.draw()
    plots.fourier_coverage(np.zeros((0, 8, 8, 8)), 1.0).canvas.draw()


# ---------------------------------------------------------------- what was seen


def test_directions_say_what_is_unseen(rng):
    poles = np.array([[0, 0, 1.0]] * 7)
    spread = rng.normal(size=(2000, 3))
    figure = plots.viewing_directions([poles, spread], ["side", "all"])
    side, everywhere = (a for a in figure.axes if a.get_title())
    assert [a.get_title() for a in (side, everywhere)] == ["side: 7 views", "all: 2000 views"]
    assert side.get_xlabel().startswith("98.3% farther than 15° from any view")
    gap = float(side.get_xlabel().split("largest gap: ")[1].removesuffix("°"))
    assert 177 < gap <= 180
    assert everywhere.get_xlabel().startswith("0% farther")
    (mesh,) = side.collections[:1]
    density = np.asarray(mesh.get_array()).reshape(37, 73)  # latitude, longitude
    assert density[-1].min() > 10  # towards the pole
    assert density[:18].max() < 1e-6
    (bar,) = (a for a in figure.axes if a.get_ylabel())
    assert bar.get_ylabel() == "density of views (even: 1)"
    figure.canvas.draw()


def test_coverage_figure_shows_slices_shells_and_the_missing_share():
    grid = np.zeros((2, 16, 16, 16), np.float32)
    grid[0] = 1
    grid[1, :, :, 8:] = 0.5  # half of Fourier space, half of the particles
    figure: Any = plots.fourier_coverage(grid, 5.0, ["whole", "half"])
    figure.canvas.draw()
    panels = [axes for axes in figure.axes if axes.get_images()]
    for c, own in enumerate(grid):
        for axes, plane in zip(panels[3 * c :], (own[8], own[:, 8], own[:, :, 8])):
            drawn = axes.get_images()[0].get_array()
            np.testing.assert_array_equal(drawn[~drawn.mask], plane[~drawn.mask])
            assert 0.5 < (~drawn.mask).mean() < 0.7  # a circle in its square
            assert axes.get_images()[0].get_clim() == (0, 1)
    assert [panels[i].get_title() for i in range(3)] == ["kx, ky", "kx, kz", "ky, kz"]
    assert panels[0].get_ylabel() == "whole\n0% unsampled"
    assert panels[3].get_ylabel().startswith("half\n4")  # the plane x = 0 is sampled
    assert "0.1 1/Å" in panels[3].get_xlabel()
    (curves,) = (a for a in figure.axes if a.get_xlabel() == "spatial frequency (1/Å)")
    mean, least, other, bottom, *_ = curves.get_lines()
    np.testing.assert_allclose(mean.get_xdata(), np.arange(1, 8) / 80)
    np.testing.assert_array_equal(mean.get_ydata(), 1)
    np.testing.assert_array_equal(least.get_ydata(), 1)
    axis = np.arange(16) - 8
    shell = np.rint(np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2))
    wanted = [grid[1][shell == s].mean() for s in range(1, 7)]
    np.testing.assert_allclose(other.get_ydata()[:6], wanted, rtol=1e-6)
    np.testing.assert_array_equal(bottom.get_ydata(), 0)


# ---------------------------------------------------------------- errors, files


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.central_slices(np.zeros((4, 4, 4)), 1.0),
        lambda: plots.central_slices(np.zeros((2, 4, 4, 4)), 1.0, ["one"]),
        lambda: plots.central_slices(np.zeros((2, 4, 4, 4)), 0.0),
        lambda: plots.score_histogram([FREQ, FREQ], ["one"]),
        lambda: plots.fsc_curves(FREQ, {"x": FREQ[1:]}),
        lambda: plots.fsc_curves(FREQ[:0], {}),
        lambda: plots.class_occupancy(np.zeros((3, 2)), np.zeros(2)),
        lambda: plots.margins(np.zeros(3), np.zeros(2, int)),
        lambda: plots.margins(np.zeros(3), np.arange(3), ["a", "b"]),
        lambda: plots.class_flow(np.zeros(3, int)),
        lambda: plots.class_flow(np.array([[0, 1, 2]]), ["a", "b"]),
        lambda: plots.viewing_directions([np.zeros((2, 3))]),
        lambda: plots.viewing_directions([np.ones((2, 2))]),
        lambda: plots.fourier_coverage(np.zeros((4, 4, 4)), 1.0),
        lambda: plots.fourier_coverage(np.zeros((1, 4, 4, 4)), 0.0),
    ],
)
def test_arrays_that_do_not_match_are_refused(draw):
    with pytest.raises(InputError):
        draw()


def test_save_writes_a_png_of_150_dots_per_inch_and_only_that(tmp_path):
    figure = plots.fsc_curves(FREQ, {"map": fsc(20)})
    path = tmp_path / "fsc.png"
    plots.save(figure, path)
    height, width = imread(path).shape[:2]
    assert [width, height] == pytest.approx(figure.get_size_inches() * 150, abs=1)
    first = path.read_bytes()
    plots.save(figure, path)
    assert path.read_bytes() == first  # replaced, and the same picture gives the same file
    assert [p.name for p in tmp_path.iterdir()] == ["fsc.png"]
    with pytest.raises(InputError):
        plots.save(figure, tmp_path / "missing" / "fsc.png")


def test_figures_need_no_pyplot():
    for path in pathlib.Path(plots.__file__).parent.glob("*.py"):
        assert "matplotlib.pyplot" not in path.read_text()
