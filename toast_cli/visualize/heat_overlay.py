"""Maps as coloured, partly transparent pictures over a photograph, for pages and for pictures without axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps, get_data_path
from PIL import Image, ImageDraw, ImageEnhance, ImageFont
from torch import Tensor

from toast_cli.data.images.transforms import CropWindow
from toast_cli.visualize.map_color_scales import SCALE_PERCENTILE

CELL_PIXELS = 16
"""Height and width of a cell of a map in its picture."""
LEAST_OPACITY, MOST_OPACITY = 0.35, 0.9
"""Opacity of the lowest and the highest number of a map: what is not attended to is dimmed, not hidden."""
LEAST_CONTRAST = 2.5
ATTENTION_COLOURS, SIMILARITY_COLOURS = "inferno", "viridis"


@dataclass(frozen=True)
class CaptionedMap:
    """A map over a photograph with a caption; without a map, the photograph alone."""

    caption: str
    map: Tensor | None = None
    window: CropWindow | None = None
    colours: str = ATTENTION_COLOURS
    high: float = 1.0


def compute_heat_limit(maps: Sequence[Tensor]) -> float:
    """Return the number at which the common scale of several maps, each with sum 1, ends.

    Single tokens may lie far above it. It is at least `LEAST_CONTRAST` times an even map, so that a map that is almost
    even looks even.
    """
    numbers = np.concatenate([map.double().numpy().ravel() for map in maps])
    return max(float(np.percentile(numbers, SCALE_PERCENTILE)), LEAST_CONTRAST / maps[0].numel())


def draw_heat(map: Tensor, high: float, colours: str = ATTENTION_COLOURS) -> Image.Image:
    """Return a map `[rows, columns]` as a smooth RGBA picture; numbers from 0 to `high` use all colours."""
    rows, columns = map.shape
    shares = np.clip(map.float().numpy() / high, 0, 1).astype(np.float32)
    size = (columns * CELL_PIXELS, rows * CELL_PIXELS)
    smooth = np.clip(np.asarray(Image.fromarray(shares, "F").resize(size, Image.Resampling.BICUBIC)), 0, 1)
    painted = np.asarray(colormaps[colours](smooth))
    painted[..., 3] = LEAST_OPACITY + (MOST_OPACITY - LEAST_OPACITY) * smooth
    return Image.fromarray((255 * painted).round().astype(np.uint8))


def compose_heat(photo: Image.Image, heat: Image.Image, window: CropWindow, opacity: float = 1.0) -> Image.Image:
    """Return a photograph under the picture of a map, which covers `window` in pixels of the photograph."""
    left, top = round(window.left), round(window.top)
    sized = heat.resize((max(round(window.width), 1), max(round(window.height), 1)), Image.Resampling.BILINEAR)
    sized.putalpha(sized.getchannel("A").point(lambda value: round(value * opacity)))
    layer = Image.new("RGBA", photo.size)
    layer.paste(sized, (left, top))
    return Image.alpha_composite(photo.convert("RGBA"), layer).convert("RGB")


def draw_captioned_maps(
    photo: Image.Image, rows: Sequence[Sequence[CaptionedMap]], opacity: float, side: int = 480
) -> Image.Image:
    """Return one picture with a row of captioned maps per model; `side` is the longer side of each in pixels."""
    scale = side / max(photo.size)
    width, height = (max(round(length * scale), 1) for length in photo.size)
    small, gap = photo.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), 14
    pale = ImageEnhance.Color(small).enhance(1 - 0.7 * opacity)  # as on the page
    font = ImageFont.truetype(str(Path(get_data_path(), "fonts/ttf/DejaVuSans.ttf")), 16)  # it has ξ and ✓
    captions = [["\n".join(filter(None, each.caption.split("\n"))) for each in row] for row in rows]
    band = 24 * max(caption.count("\n") + 1 for row in captions for caption in row) + 10
    columns = max(map(len, rows))
    sheet = Image.new("RGB", (columns * (width + gap) + gap, len(rows) * (height + band + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, each in enumerate(row):
            left, top = gap + x * (width + gap), gap + y * (height + band + gap)
            picture = small
            if each.map is not None and each.window is not None:
                window = CropWindow(*(number * scale for number in vars(each.window).values()))
                picture = compose_heat(pale, draw_heat(each.map, each.high, each.colours), window, opacity)
            sheet.paste(picture, (left, top))
            draw.multiline_text((left, top + height + 6), captions[y][x], fill="#222222", font=font, spacing=6)
    return sheet
