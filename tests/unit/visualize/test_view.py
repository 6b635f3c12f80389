"""What is drawn, pixel by pixel: outlines, colours that are those of their bar, cells that are not smoothed away."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from toast_cli.data.images.transforms import CropWindow
from toast_cli.visualize.figure import FigurePanel, FigureRow, draw_figure
from toast_cli.visualize.map_color_scales import build_diverging_scale, build_sequential_scale

WHOLE = CropWindow(0, 0, 120, 80)
GREY = Image.new("RGB", (120, 80), (128, 128, 128))


def pixels_of(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def at(pixels: np.ndarray, axis: Axes, x: float, y: float) -> np.ndarray:
    """The pixels around a place in an axis' own numbers."""
    column, up = axis.transData.transform((x, y))
    row = len(pixels) - int(up) - 1
    return pixels[row - 1 : row + 2, int(column) - 1 : int(column) + 2].reshape(-1, 3)


@pytest.mark.parametrize("marked", [True, False])
def test_the_object_is_outlined_in_white_on_every_panel(marked: bool) -> None:
    mask = np.zeros((80, 120), dtype=bool)
    mask[20:60, 30:90] = True
    map = np.eye(8)
    panels = (FigurePanel("image", WHOLE), FigurePanel("map", WHOLE, map, build_sequential_scale("", "inferno", [map])))
    figure = draw_figure([FigureRow(GREY, panels, mask if marked else None)], "")
    pixels = pixels_of(figure)
    for axis in figure.axes[:2]:
        for x, y in ((29.5, 30), (89.5, 30), (50, 19.5), (70, 59.5)):
            assert (at(pixels, axis, x, y).min(axis=1).max() > 180) == marked


def test_over_mid_grey_a_map_has_the_colours_of_its_bar() -> None:
    map = np.eye(8)
    for value, place in ((0.0, 0.01), (0.5, 0.5), (1.0, 0.99)):
        panel = FigurePanel("", WHOLE, np.full((8, 8), value), build_sequential_scale("", "viridis", [map]))
        figure = draw_figure([FigureRow(GREY, (panel,))], "")
        pixels = pixels_of(figure)
        shown, bar = at(pixels, figure.axes[0], 60, 40)[4], at(pixels, figure.axes[1], place, 0.5)[4]
        assert np.abs(shown - bar).max() <= 6


def test_a_few_cells_are_drawn_as_cells_and_many_smoothly() -> None:
    for cells, one_colour in ((2, True), (8, False)):
        map = np.indices((cells, cells))[1] / (cells - 1)
        figure = draw_figure(
            [FigureRow(GREY, (FigurePanel("", WHOLE, map, build_sequential_scale("", "inferno", [map])),))], ""
        )
        pixels, width = pixels_of(figure), 120 / cells
        places = [at(pixels, figure.axes[0], width * part, 40)[4] for part in (0.7, 0.9)]
        assert (np.abs(places[0] - places[1]).max() == 0) == one_colour


def test_numbers_at_the_ends_of_neighbouring_bars_do_not_run_together() -> None:
    map = np.append(np.linspace(0, 0.0329, 60), [2.0, 3.0])
    scales = (build_sequential_scale("a", "inferno", [map]), build_diverging_scale("b", "RdBu_r", [map]))
    figure = draw_figure([FigureRow(GREY, tuple(FigurePanel("", WHOLE, np.eye(8), scale) for scale in scales))], "")
    pixels_of(figure)
    ends = [axis.get_xticklabels() for axis in figure.axes[2:]]
    assert ends[0][-1].get_text().startswith("≥") and ends[1][0].get_text().startswith("≤")
    for axis, words in zip(figure.axes[2:], ends, strict=True):
        bar = axis.get_window_extent()
        assert words[0].get_window_extent().x0 >= bar.x0 - 1 and words[-1].get_window_extent().x1 <= bar.x1 + 1
