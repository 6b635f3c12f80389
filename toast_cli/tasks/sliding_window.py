"""Sliding-window prediction of images larger than the backbone's input. Overlapping scores are averaged."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def compute_window_starts(length: int, window: int, step: int) -> list[int]:
    """Return the start of each window along a side: every `step` pixels, with the last window at the end of the side.

    Raises:
        ValueError: The side is shorter than a window.
    """
    if length < window:
        raise ValueError(f"a window of {window} does not fit into {length} pixels")
    return [*range(0, length - window, step), length - window]


def predict_sliding_window(
    scores: Callable[[Tensor], Tensor], image: Tensor, window: tuple[int, int], step: tuple[int, int], at_once: int
) -> Tensor:
    """Predict scores for every pixel of one image.

    Args:
        scores: Function from windows `[n, 3, h, w]` to scores `[n, classes, h, w]`.
        image: `[3, H, W]`, no side shorter than the window's.
        window: (height, width) of a window in pixels.
        step: (vertical, horizontal) distance between windows in pixels.
        at_once: Number of windows per forward pass.

    Returns:
        Scores `[classes, H, W]`: at every pixel the mean over the windows that cover it.
    """
    height, width = window
    rows = compute_window_starts(image.shape[-2], height, step[0])
    columns = compute_window_starts(image.shape[-1], width, step[1])
    corners = [(y, x) for y in rows for x in columns]
    total: Tensor | None = None
    cover = image.new_zeros(image.shape[-2:])
    for first in range(0, len(corners), at_once):
        part = corners[first : first + at_once]
        # Sum in float32, whatever the data type of the model.
        windows = scores(torch.stack([image[:, y : y + height, x : x + width] for y, x in part])).float()
        if total is None:
            total = windows.new_zeros(windows.shape[1], *image.shape[-2:])
        for (y, x), scored in zip(part, windows, strict=True):
            total[:, y : y + height, x : x + width] += scored
            cover[y : y + height, x : x + width] += 1
    assert total is not None
    return total / cover
