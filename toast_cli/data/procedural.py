"""Splits of procedurally generated images, drawn on demand and never stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toast_cli.data.base import Sample, SplitKind


@dataclass(frozen=True)
class ProceduralSplit:
    """A split of a fixed number of drawn images.

    Args:
        prefix: prefix of every image's name.
        length: number of images.
        draw: function that draws the image of `first + index`; it must depend only on its argument.
        classes: number of classes; labels are `(first + index) % classes`, balanced and known without drawing. None if
            labels belong to pixels; every image then has the label -1.
        first: offset of the split in the sequence of `draw`.
        has_masks: whether samples have the mask of the object.
        marks: description of the masks.
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
            raise IndexError(f"index {index} is out of range: {self.prefix} has {self.length} images")
        return self.draw(self.first + index)
