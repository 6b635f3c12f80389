"""The share of an image that is cropped, as timm defines it."""

from __future__ import annotations

import math


def compute_crop_pct(crop: int, resized: int) -> float:
    """Return the share of the resized side that is cropped, such that the side follows from it by rounding down."""
    pct = crop / resized
    return pct if math.floor(crop / pct) == resized else crop / (resized + 0.5)
