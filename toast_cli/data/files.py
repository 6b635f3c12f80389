"""Labelled image files: the `Split` that most sources hand out. Opens nothing until asked for an image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from toast_cli.data.source import Sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

Box = tuple[float, float, float, float]
"""x, y of the upper left corner, width, height: pixels of the image, fractions allowed."""


class Root(Protocol):
    """What image files lie below: a `Path`, an archive, the rows of a table."""

    def __truediv__(self, name: str, /) -> Any:
        """The file of a name, as `open_image` takes it."""


@dataclass(frozen=True)
class FileSplit:
    """Image files with their labels and, where the source has them, one bounding box each.

    `names` are paths below `root` with forward slashes, so that they, and whatever is drawn from them, are the same
    on every machine.
    """

    root: Root
    names: tuple[str, ...]
    labels: tuple[int, ...]
    boxes: tuple[Box, ...] | None = None

    @property
    def has_masks(self) -> bool:
        """Whether every sample carries a mask."""
        return self.boxes is not None

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: Sequence[int]) -> FileSplit:
        """The samples at `indices`, in that order."""
        boxes = None if self.boxes is None else tuple(self.boxes[i] for i in indices)
        return FileSplit(
            self.root, tuple(self.names[i] for i in indices), tuple(self.labels[i] for i in indices), boxes
        )

    def load(self, index: int) -> Sample:
        """Read one image.

        Raises:
            ToastError: the file is not there or is not an image that can be read.
        """
        from toast_cli.data.images import open_image

        image = open_image(self.root / self.names[index])
        mask = None if self.boxes is None else box_mask(self.boxes[index], image.height, image.width)
        return Sample(image, self.labels[index], self.names[index], mask)


def box_mask(box: Box, height: int, width: int) -> np.ndarray:
    """The box as a filled rectangle: `[height, width]` bool, True on every pixel that the box touches."""
    import numpy as np

    x, y, box_width, box_height = box
    rows = slice(max(math.floor(y), 0), max(math.ceil(y + box_height), 0))
    columns = slice(max(math.floor(x), 0), max(math.ceil(x + box_width), 0))
    mask = np.zeros((height, width), dtype=bool)
    mask[rows, columns] = True
    return mask
