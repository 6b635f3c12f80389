"""A part of a split: the images of some indices, as a split of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toast_cli.data.base import describe_masks, get_image_folders, kind_of

if TYPE_CHECKING:
    from pathlib import Path

    from toast_cli.data.base import ImageSplit, Sample, SplitKind


@dataclass(frozen=True)
class SplitSubset:
    """The images at `indices` of a split, in that order."""

    split: ImageSplit
    indices: tuple[int, ...]

    @property
    def kind(self) -> SplitKind:
        """Return what the split holds."""
        return kind_of(self.split)

    @property
    def has_masks(self) -> bool:
        """Whether every sample brings a mask."""
        return self.split.has_masks

    @property
    def marks(self) -> str | None:
        """What the masks are."""
        return describe_masks(self.split)

    @property
    def labels(self) -> Sequence[int]:
        """Class index of every sample."""
        labels = self.split.labels
        return [labels[index] for index in self.indices]

    @property
    def names(self) -> Sequence[str]:
        """What an error or a table calls every sample."""
        names = self.split.names
        return [names[index] for index in self.indices]

    @property
    def folders(self) -> frozenset[Path]:
        """The folders that the images are read from."""
        return get_image_folders(self.split)

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int) -> Sample:
        """Read one image; raises a ToastError that names it when it cannot be read."""
        return self.split.load(self.indices[index])


def draw_subset(split: ImageSplit, count: int | None, seed: int = 0) -> ImageSplit:
    """So many images that the seed draws, in the split's order; None, or no more than there are: all of them."""
    import numpy as np

    if count is None or count >= len(split):
        return split
    chosen = np.random.default_rng(seed).choice(len(split), count, replace=False)
    return SplitSubset(split, tuple(sorted(chosen.tolist())))
