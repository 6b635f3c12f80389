"""Predicted classes of every pixel, for a panel of a figure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SegmentationMap:
    """Classes for a panel: `classes` [H, W] with one for every pixel of its window, and what they are called."""

    classes: np.ndarray
    names: tuple[str, ...]
