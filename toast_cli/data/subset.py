"""A subset of a split, by indices, and several splits as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toast_cli.data.base import describe_masks, get_image_folders, get_label_vector, get_split_kind

if TYPE_CHECKING:
    from pathlib import Path

    from toast_cli.data.base import ImageSplit, Label, LabelVector, Sample, Split, SplitKind


@dataclass(frozen=True)
class SplitSubset:
    """The images at `indices` of a split, in that order."""

    split: ImageSplit
    indices: tuple[int, ...]

    @property
    def kind(self) -> SplitKind:
        """The kind of the split."""
        return get_split_kind(self.split)

    @property
    def has_masks(self) -> bool:
        """Whether every sample has a mask."""
        return self.split.has_masks

    @property
    def marks(self) -> str | None:
        """Description of the masks."""
        return describe_masks(self.split)

    @property
    def label_vector(self) -> LabelVector | None:
        """What the labels become in a batch."""
        return get_label_vector(self.split)

    @property
    def labels(self) -> Sequence[Label]:
        """Class index, label indices or numbers of every sample."""
        labels = self.split.labels
        return [labels[index] for index in self.indices]

    @property
    def names(self) -> Sequence[str]:
        """Name of every sample in messages and tables."""
        names = self.split.names
        return [names[index] for index in self.indices]

    @property
    def folders(self) -> frozenset[Path]:
        """The folders that the images are read from."""
        return get_image_folders(self.split)

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int) -> Sample:
        """Read one image.

        Raises:
            ToastError: the image cannot be read; the message names it.
        """
        return self.split.load(self.indices[index])


@dataclass(frozen=True)
class ChainedSplit:
    """The samples of several splits, one split after the other."""

    splits: tuple[Split, ...]

    @property
    def kind(self) -> SplitKind:
        """The kind of the splits."""
        return get_split_kind(self.splits[0])

    @property
    def has_masks(self) -> bool:
        """Whether every sample has a mask."""
        return all(split.has_masks for split in self.splits)

    @property
    def names(self) -> Sequence[str]:
        """Name of every sample in messages and tables.

        Raises:
            AttributeError: the samples of a split have no names.
        """
        return [name for split in self.splits for name in split.names]  # type: ignore[attr-defined]

    @property
    def folders(self) -> frozenset[Path]:
        """The folders that the images are read from."""
        return frozenset().union(*map(get_image_folders, self.splits))

    def __len__(self) -> int:
        return sum(map(len, self.splits))

    def load(self, index: int) -> Any:
        """Read one sample.

        Raises:
            ToastError: the sample cannot be read; the message names it.
        """
        for split in self.splits:
            if index < len(split):
                return split.load(index)
            index -= len(split)
        raise IndexError(index)


def draw_subset(split: ImageSplit, count: int | None, seed: int = 0) -> ImageSplit:
    """Return `count` randomly drawn images, in the split's order; the whole split if `count` is None or too large."""
    import numpy as np

    if count is None or count >= len(split):
        return split
    chosen = np.random.default_rng(seed).choice(len(split), count, replace=False)
    return SplitSubset(split, tuple(sorted(chosen.tolist())))
