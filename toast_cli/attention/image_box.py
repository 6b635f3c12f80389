"""Tokens that a user points at in an image, and their direction, which can serve as xi (an experiment)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from toast_cli.backbones.base import Backbone, Readout
from toast_cli.data.images.transforms import CropWindow
from toast_cli.model.model import Model
from toast_cli.steering.emphasis import compute_token_direction, replace_xi
from toast_cli.steering.steering import run_first_pass
from toast_cli.utils.errors import UsageError


@dataclass(frozen=True)
class ImageBox:
    """A rectangle in an image: left and upper edge, width and height, in pixels of the image; a point has no size."""

    left: float
    top: float
    width: float = 0.0
    height: float = 0.0

    @property
    def is_point(self) -> bool:
        """Return whether the rectangle is a point."""
        return self.width == 0 and self.height == 0

    def format(self) -> str:
        """Return the numbers as the command line takes them: `X,Y` or `X,Y,WIDTH,HEIGHT`."""
        numbers = (self.left, self.top) if self.is_point else (self.left, self.top, self.width, self.height)
        return ",".join(f"{number:.10g}" for number in numbers)


def select_box_cells(box: ImageBox, window: CropWindow, grid: tuple[int, int]) -> Tensor:
    """Return the cells of a grid over `window` that a box selects, `[rows, columns]` bool.

    These are the cells whose centre lies in the box, or the one that holds the centre of a box without any.

    Raises:
        UsageError: The centre of the box lies outside of the window.
    """
    rows, columns = grid
    x = (box.left + box.width / 2 - window.left) / window.width * columns
    y = (box.top + box.height / 2 - window.top) / window.height * rows
    if not (0 <= x < columns and 0 <= y < rows):
        raise UsageError(
            "This place lies outside of what the model sees.",
            f"The model sees {window.width:.0f} × {window.height:.0f} pixels of the image, from "
            f"({max(window.left, 0):.0f}, {max(window.top, 0):.0f}).",
            "Choose a place inside of the frame.",
            code="attention.outside-crop",
        )
    centres_x = window.left + (torch.arange(columns) + 0.5) * window.width / columns
    centres_y = window.top + (torch.arange(rows) + 0.5) * window.height / rows
    across = (centres_x >= box.left) & (centres_x <= box.left + box.width)
    down = (centres_y >= box.top) & (centres_y <= box.top + box.height)
    cells = down[:, None] & across
    if not cells.any():
        cells[int(y), int(x)] = True
    return cells


def compute_box_direction(
    backbone: Backbone, inputs: Tensor, first: Readout, window: CropWindow, box: ImageBox
) -> tuple[Tensor, Tensor]:
    """Return the direction `[1, d]` of the tokens that a box selects in the first pass, and their cells.

    Args:
        backbone: The backbone.
        inputs: One image, `[1, 3, H, W]`.
        first: The readout of its first pass that selection uses.
        window: The part of the image that the model sees.
        box: The selection, in pixels of the image.

    Raises:
        UsageError: The box lies outside of the window.
    """
    if backbone.channel_dim == 1:  # early feedback may end at another resolution than the last level
        rows, columns = first.compared.shape[-2:]
        cells = select_box_cells(box, window, (rows, columns))
        return compute_token_direction(first, cells[None], backbone.channel_dim), cells
    cells = select_box_cells(box, window, backbone.grid(inputs))
    prefix = torch.zeros(backbone.prefix_tokens, dtype=torch.bool)
    return compute_token_direction(first, torch.cat([prefix, cells.flatten()])[None]), cells


@contextmanager
def point_at_box(model: Model, inputs: Tensor, window: CropWindow, box: ImageBox | None) -> Iterator[None]:
    """Set xi to the direction of the tokens that a box selects within the context; None leaves it as trained.

    Raises:
        UsageError: The box lies outside of the window, or the model has no feedback path or token selection.
    """
    steering = model.adapted.steering
    if box is None:
        with nullcontext():
            yield
        return
    if steering is None:
        raise make_single_pass_error()
    with torch.no_grad():
        _, first, _ = run_first_pass(model.backbone, steering.levels, inputs)
        direction, _ = compute_box_direction(model.backbone, inputs, first, window, box)
    with replace_xi(steering, direction):
        yield


def make_single_pass_error() -> UsageError:
    """Return the error of pointing at something with a model that has one pass."""
    return UsageError(
        "This model looks once, so it cannot be pointed at something.",
        "Only the methods toast and toast-lite have the second pass that xi steers.",
        "Choose a run that was tuned with one of them.",
        code="method.no-feedback-path",
    )
