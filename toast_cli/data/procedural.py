"""Splits of procedurally generated images: an image is drawn when it is asked for, and nothing is stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toast_cli.data.base import Sample, SplitKind


@dataclass(frozen=True)
class ProceduralSplit:
    """A fixed number of drawn images.

    Args:
        prefix: what every image's name begins with.
        length: how many images there are.
        draw: draws the image of `first + index`; must not depend on anything but the index.
        classes: labels are `(first + index) % classes`, so they are balanced and known without drawing; None: labels
            belong to pixels, and every image has label -1.
        first: where the split begins in a longer list that `draw` counts from.
        has_masks: whether samples bring the mask of the object.
        marks: what the masks are of.
    """

    prefix: str
    length: int
    draw: Callable[[int], Sample]
    classes: int | None = None
    first: int = 0
    has_masks: bool = False
    marks: str = "its exact pixels"

    def __len__(self) -> int:
        return self.length

    @property
    def kind(self) -> SplitKind:
        """Return whether images or pixels are labelled."""
        return "pixels" if self.classes is None else "images"

    @property
    def labels(self) -> list[int]:
        """Return the class of every image."""
        return [-1 if self.classes is None else (self.first + index) % self.classes for index in range(self.length)]

    @property
    def names(self) -> list[str]:
        """Return the name of every image."""
        return [self.name(index) for index in range(self.length)]

    def name(self, index: int) -> str:
        """Return the name of one image."""
        return f"{self.prefix}/{self.first + index:07d}"

    def load(self, index: int) -> Sample:
        """Draw the image at `index`."""
        if not 0 <= index < self.length:
            raise IndexError(f"{self.prefix} has {self.length} images, there is no image {index}")
        return self.draw(self.first + index)
