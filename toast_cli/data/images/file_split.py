"""Labelled image files: the `Split` that most sources return. Opens nothing until asked for an image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from toast_cli.data.base import Sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toast_cli.data.images.files import FileRoot
    from toast_cli.data.images.object_masks import Region


@dataclass(frozen=True)
class FileSplit:
    """Image files with their labels and, where the source has them, what marks the labelled object in each.

    `names` are paths below `root` with forward slashes, so that they, and whatever is drawn from them, are the same
    on every machine.
    """

    root: FileRoot
    names: tuple[str, ...]
    labels: tuple[int, ...]
    regions: tuple[Region, ...] | None = None

    @property
    def has_masks(self) -> bool:
        """Whether every sample carries a mask."""
        return self.regions is not None

    @property
    def marks(self) -> str | None:
        """What the masks are: boxes, outlines, ..."""
        return self.regions[0].what if self.regions else None

    @property
    def folders(self) -> frozenset[Path]:
        """The folder that the images are read from, unless they lie in something else."""
        return frozenset({self.root} if isinstance(self.root, Path) else ())

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: Sequence[int]) -> FileSplit:
        """The samples at `indices`, in that order."""
        regions = None if self.regions is None else tuple(self.regions[i] for i in indices)
        return FileSplit(
            self.root, tuple(self.names[i] for i in indices), tuple(self.labels[i] for i in indices), regions
        )

    def without_masks(self) -> FileSplit:
        """The same images alone: a mask may be a file of its own, which takes time to read."""
        return replace(self, regions=None)

    def load(self, index: int) -> Sample:
        """Read one image, and its mask.

        Raises:
            ToastError: the file is not there or is not an image that can be read.
        """
        from toast_cli.data.images.decode import open_image

        image = open_image(self.root / self.names[index])
        mask = None if self.regions is None else self.regions[index].mask(image.height, image.width)
        return Sample(image, self.labels[index], self.names[index], mask)
