"""Images larger than what a backbone takes at once: a window slides over them, and overlapping scores are averaged."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def compute_window_starts(length: int, window: int, step: int) -> list[int]:
    """Where windows begin along a side: every `step` pixels, the last one ending where the side does.

    Raises:
        ValueError: the side is shorter than a window.
    """
    if length < window:
        raise ValueError(f"a window of {window} does not fit into {length} pixels")
    return [*range(0, length - window, step), length - window]


def predict_sliding_window(
    scores: Callable[[Tensor], Tensor], image: Tensor, window: tuple[int, int], step: tuple[int, int], at_once: int
) -> Tensor:
    """Scores for every pixel of one image.

    Args:
        scores: from windows `[n, 3, h, w]` to scores `[n, classes, h, w]`.
        image: `[3, H, W]`, no side of it shorter than the window's.
        window: (height, width) of what is looked at at once, in pixels.
        step: (down, across) between windows, in pixels.
        at_once: windows that go through the model together.

    Returns:
        `[classes, H, W]`: at every pixel the mean over the windows that cover it.
    """
    height, width = window
    rows = compute_window_starts(image.shape[-2], height, step[0])
    columns = compute_window_starts(image.shape[-1], width, step[1])
    corners = [(y, x) for y in rows for x in columns]
    total: Tensor | None = None
    cover = image.new_zeros(image.shape[-2:])
    for first in range(0, len(corners), at_once):
        part = corners[first : first + at_once]
        # Summed in single precision, whatever the model computes in.
        found = scores(torch.stack([image[:, y : y + height, x : x + width] for y, x in part])).float()
        if total is None:
            total = found.new_zeros(found.shape[1], *image.shape[-2:])
        for (y, x), scored in zip(part, found, strict=True):
            total[:, y : y + height, x : x + width] += scored
            cover[y : y + height, x : x + width] += 1
    assert total is not None
    return total / cover
