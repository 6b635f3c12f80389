"""`FileSplit`: labelled image files, the split of most sources. Files are opened on demand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from toast_cli.data.base import Label, LabelVector, Sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toast_cli.data.images.files import FileRoot
    from toast_cli.data.images.object_masks import Region


@dataclass(frozen=True)
class FileSplit:
    """Image files with their labels.

    Attributes:
        root: container of the files.
        names: paths below `root`, with forward slashes on every platform.
        labels: class index, label indices or numbers of every image.
        regions: region of the labelled object in every image, or None.
        white: value of white in 16-bit images (`images.white`).
        label_vector: what the labels become in a batch; None if every image has one class.
    """

    root: FileRoot
    names: tuple[str, ...]
    labels: tuple[Label, ...]
    regions: tuple[Region, ...] | None = None
    white: int | None = None
    label_vector: LabelVector | None = None

    @property
    def has_masks(self) -> bool:
        """Whether every sample has a mask."""
        return self.regions is not None

    @property
    def marks(self) -> str | None:
        """Description of the masks, or None."""
        return self.regions[0].what if self.regions else None

    @property
    def folders(self) -> frozenset[Path]:
        """The folder of the images; empty if they are not stored in a folder."""
        return frozenset({self.root} if isinstance(self.root, Path) else ())

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: Sequence[int]) -> FileSplit:
        """Return the split of the samples at `indices`, in that order."""
        regions = None if self.regions is None else tuple(self.regions[i] for i in indices)
        names, labels = tuple(self.names[i] for i in indices), tuple(self.labels[i] for i in indices)
        return replace(self, names=names, labels=labels, regions=regions)

    def without_masks(self) -> FileSplit:
        """Return the same split without masks, which take time to read if they are separate files."""
        return replace(self, regions=None)

    def stamp(self, index: int) -> int | None:
        """Return a number that changes with the content of an image's file; None if it is unknown."""
        from toast_cli.data.images.files import compute_file_stamp

        return compute_file_stamp(self.root / self.names[index])

    def with_white(self, white: int) -> FileSplit:
        """Return the same split with another value of white."""
        return replace(self, white=white)

    def load(self, index: int) -> Sample:
        """Read one image and its mask.

        Raises:
            ToastError: the image or the mask does not exist or cannot be read.
        """
        from toast_cli.data.images.decode import open_image

        image = open_image(self.root / self.names[index], self.white)
        mask = None if self.regions is None else self.regions[index].rasterize(image.height, image.width)
        return Sample(image, self.labels[index], self.names[index], mask)
