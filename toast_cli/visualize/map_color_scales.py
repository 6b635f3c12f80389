"""Colours of maps: one scale for all maps that are compared, robust to outliers, and a palette for class maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap, Normalize, to_hex
from PIL import Image

OVERLAY_ALPHA = 0.65
"""Opacity of a map over the grey image."""
SCALE_PERCENTILE = 95.0
"""Percentile at which a scale ends. In a trained ViT, single tokens (mostly in corners) get many times the attention
of all others, and so does the first token of a text. A scale up to their values would show nothing else."""


@dataclass(frozen=True)
class ColorScale:
    """A colour scale, shared by the panels or texts that have one colour bar.

    `clipped` is True if some numbers lie outside the scale; they get the colour of its end.
    """

    label: str
    colours: str
    low: float
    high: float
    clipped: bool = False

    def get_ticks(self, write: Callable[[float], str] = "{:.3g}".format) -> list[tuple[float, str]]:
        """Return the values and labels of both ends and the middle, with `≥` or `≤` at the ends of a clipped scale."""
        below, above = ("≤ " if self.clipped and self.low < 0 else ""), ("≥ " if self.clipped else "")
        middle = (self.low + self.high) / 2
        return [(self.low, below + write(self.low)), (middle, write(middle)), (self.high, above + write(self.high))]

    def to_hex(self, values: Sequence[float] | np.ndarray) -> list[str]:
        """Return the colour of each number as `#rrggbb`."""
        numbers = Normalize(self.low, self.high, clip=True)(np.asarray(values, dtype=np.float64))
        return [to_hex(colour) for colour in colormaps[self.colours](numbers)]


def build_sequential_scale(label: str, colours: str, maps: Sequence[np.ndarray]) -> ColorScale:
    """Return a scale from zero to `SCALE_PERCENTILE` of all numbers; the label notes if some are larger."""
    high, clipped, note = _compute_limit(np.concatenate([np.ravel(map) for map in maps]))
    return ColorScale(label + note, colours, 0.0, high, clipped)


def build_diverging_scale(label: str, colours: str, maps: Sequence[np.ndarray]) -> ColorScale:
    """Return a scale that is symmetric about zero and ends at `SCALE_PERCENTILE` of the absolute values."""
    high, clipped, note = _compute_limit(np.abs(np.concatenate([np.ravel(map) for map in maps])))
    return ColorScale(label + note, colours, -high, high, clipped)


def _compute_limit(sizes: np.ndarray) -> tuple[float, bool, str]:
    largest = float(sizes.max())
    if not largest > 0:
        return 1.0, False, " (zero everywhere)"
    end = float(np.percentile(sizes, SCALE_PERCENTILE))
    if not 0 < end < largest:
        return largest, False, ""
    return end, True, f" (≥: beyond the {SCALE_PERCENTILE:g}th percentile)"


def get_class_colormap(count: int) -> Colormap:
    """Return the colours of `count` classes, and a last one that no class has: hues are a circle."""
    return colormaps["hsv"].resampled(count + 1)


def compute_class_palette(count: int) -> np.ndarray:
    """Return the RGB colours of `count` classes, `[count, 3]` uint8."""
    colours = np.asarray(get_class_colormap(count)(np.arange(count)))
    return (255 * colours[:, :3]).round().astype(np.uint8)


def make_palette_image(classes: np.ndarray, palette: np.ndarray) -> Image.Image:
    """Return a class map `[H, W]` as an image whose pixel values are the classes, shown in their colours."""
    image = Image.fromarray(classes.astype(np.uint8))
    image.putpalette(np.ascontiguousarray(palette).tobytes())
    return image


def draw_overlay(image: Image.Image, classes: Image.Image) -> Image.Image:
    """Return a class map, a palette image, over its image in grey."""
    return Image.blend(image.convert("L").convert("RGB"), classes.convert("RGB"), OVERLAY_ALPHA)
