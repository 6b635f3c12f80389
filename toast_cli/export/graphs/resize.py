"""Resizing and cropping inside a graph, by the formulas of Pillow, so that the graph takes images of any size.

A resize is two products with matrices of filter weights, one for each axis, which are computed from the size of the
image. The rows that the crop leaves out are not computed. Pillow rounds to 8 bits after each axis; so does this.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toast_cli.backbones.base import Preprocessing
from toast_cli.data.images.resize import Resize
from toast_cli.utils.errors import UsageError

FILTERS = {"bilinear": 1.0, "bicubic": 2.0}
"""Reach of a filter of Pillow, in pixels of the smaller of the two images, by the name of the interpolation."""

BICUBIC_A = -0.5
"""The parameter of Pillow's cubic filter (Keys, 1981)."""

LEVELS = 255


class GraphResize(nn.Module):
    """Resize images of any size as a run does, crop the centre, and pad with the mean color where the crop exceeds.

    Args:
        resize: How the run resizes.
        preprocessing: The input of the backbone.

    Raises:
        UsageError: There is no such filter.
    """

    fill: Tensor

    def __init__(self, resize: Resize, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.rule, self.rule_size, self.size = resize.rule, resize.size, preprocessing.image_size
        self.interpolation = preprocessing.interpolation
        if self.interpolation not in FILTERS:
            raise UsageError(
                f"--resize is not available for the interpolation '{self.interpolation}'.",
                what_to_do=f"It supports {' and '.join(FILTERS)}. Leave --resize out.",
                code="export.cannot-resize",
            )
        mean = torch.tensor([round(LEVELS * value) for value in preprocessing.mean], dtype=torch.float32)
        self.register_buffer("fill", mean[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        """Return images `[B, 3, h, w]` of images `[B, 3, H, W]`, both with pixels in [0, 1]."""
        places = [torch.arange(image.shape[dim], device=image.device) for dim in (2, 3)]
        old = [place[-1] + 1 for place in places]
        weights, inside = [], []
        for place, length, new, part in zip(places, old, self._compute_new_size(*old), self.size, strict=True):
            row, valid = self._compute_weights(place, length, new, part)
            weights.append(row)
            inside.append(valid)
        down, across = weights
        levels = _round_to_levels(image * LEVELS)
        levels = _round_to_levels(torch.matmul(levels, across.T))  # Pillow resizes the width first
        levels = _round_to_levels(torch.matmul(down, levels))
        kept = inside[0][:, None] * inside[1][None, :]
        return (levels * kept + self.fill * (1 - kept)) / LEVELS

    def _compute_new_size(self, height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """Return the size of the resized image, as `compute_new_size` does, from and to int64 scalars."""
        first, second = self.rule_size
        if self.rule == "squash":
            return torch.full_like(height, first), torch.full_like(width, second)
        if self.rule == "shorter-side":
            taller = height > width
            longer = first * torch.maximum(height, width) // torch.minimum(height, width)
            shorter = torch.full_like(height, first)
            return torch.where(taller, longer, shorter), torch.where(taller, shorter, longer)
        ratios = height.double() / first, width.double() / second
        shrink = torch.minimum(*ratios) if self.rule == "cover" else torch.maximum(*ratios)
        sides = (torch.round(side.double() / shrink).long() for side in (height, width))
        return next(sides).clamp(min=1), next(sides).clamp(min=1)

    def _compute_weights(self, place: Tensor, old: Tensor, new: Tensor, part: int) -> tuple[Tensor, Tensor]:
        """Return the weights `[part, old]` of one axis, and 1 or 0 `[part]` for rows inside or outside of the image.

        Args:
            place: The indices of the pixels, `[old]`.
            old: Their number.
            new: Number of pixels of the resized axis.
            part: Number of pixels of the crop.
        """
        spare = new - part
        start = torch.where(spare >= 0, torch.round(spare.double() / 2).long(), -((-spare) // 2))
        index = start + torch.arange(part, device=place.device)
        valid = (index >= 0) & (index < new)
        index = torch.minimum(index.clamp(min=0), new - 1)
        scale = old.double() / new.double()
        reach = scale.clamp(min=1.0)
        center = (index.double() + 0.5) * scale
        distance = ((place.double()[None, :] + 0.5 - center[:, None]) / reach).abs()
        weights = self._filter(distance)
        return (weights / weights.sum(1, keepdim=True)).float(), valid.float()

    def _filter(self, x: Tensor) -> Tensor:
        """Return Pillow's filter at distances of at least 0."""
        if self.interpolation == "bilinear":
            return (1 - x).clamp(min=0)
        a = BICUBIC_A
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = (((x - 5) * x + 8) * x - 4) * a
        return torch.where(x < 1, near, torch.where(x < FILTERS["bicubic"], far, torch.zeros_like(x)))


def _round_to_levels(levels: Tensor) -> Tensor:
    """Return values rounded to 8 bits, half up as Pillow does."""
    return torch.floor(levels + 0.5).clamp(0, LEVELS)
