"""What colours mean: one scale for all that is to be compared, from numbers that hardly depend on a few outliers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize, to_hex

SCALE_PERCENTILE = 95.0
"""Where a scale ends. Of a trained ViT, single tokens (in corners, mostly) draw many times what all others do, as the
first token of a text does; a scale that reached up to them would show nothing else."""


@dataclass(frozen=True)
class ColorScale:
    """Numbers as colours: the panels, or texts, of one scale have the same numbers in the same colours, and one bar.

    `clipped`: there are numbers beyond the ends, which have the colour of the end.
    """

    label: str
    colours: str
    low: float
    high: float
    clipped: bool = False

    def ticks(self, write: Callable[[float], str] = "{:.3g}".format) -> list[tuple[float, str]]:
        """Return both ends and the middle with what is written there; `≥` where larger numbers have the same colour."""
        least, most = ("≤ " if self.clipped and self.low < 0 else ""), ("≥ " if self.clipped else "")
        middle = (self.low + self.high) / 2
        return [(self.low, least + write(self.low)), (middle, write(middle)), (self.high, most + write(self.high))]

    def hex(self, values: Sequence[float] | np.ndarray) -> list[str]:
        """Return a colour for each number, `#rrggbb`."""
        numbers = Normalize(self.low, self.high, clip=True)(np.asarray(values, dtype=np.float64))
        return [to_hex(colour) for colour in colormaps[self.colours](numbers)]


def build_sequential_scale(label: str, colours: str, maps: Sequence[np.ndarray]) -> ColorScale:
    """Return a scale from zero to the percentile of all maps' numbers; the label says so if any lie above it."""
    high, clipped, note = _compute_limit(np.concatenate([np.ravel(map) for map in maps]))
    return ColorScale(label + note, colours, 0.0, high, clipped)


def build_diverging_scale(label: str, colours: str, maps: Sequence[np.ndarray]) -> ColorScale:
    """Return a scale that reaches the percentile of the numbers' sizes on either side of zero."""
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
