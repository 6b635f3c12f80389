"""Images kept on disk as they are after their first step, the resize, so that a large photograph is decoded once.

What is kept goes by what is in the image's file, not by its name or its date: a file that changes is another image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torchvision import tv_tensors

from toast_cli.data.base import Label, LabelVector, Sample, describe_masks, get_label_vector
from toast_cli.data.images.files import open_file
from toast_cli.data.images.labelled_files import FileSplit
from toast_cli.data.images.resize import ResizeAndCrop
from toast_cli.data.images.transforms import ImageTransform
from toast_cli.utils.errors import UsageError
from toast_cli.utils.formatting import format_bytes
from toast_cli.utils.hashing import hash_bytes
from toast_cli.utils.tensor_cache import TensorCache

RESIZED_FOLDER = "resized"


@dataclass(frozen=True)
class ResizedSplit:
    """The images of `split` after the resize of `step`, and their masks likewise, kept in `cache`."""

    split: FileSplit
    step: ResizeAndCrop
    cache: TensorCache

    @property
    def labels(self) -> Sequence[Label]:
        """Class, labels or numbers of every image."""
        return self.split.labels

    @property
    def label_vector(self) -> LabelVector | None:
        """What the labels become in a batch."""
        return get_label_vector(self.split)

    @property
    def names(self) -> Sequence[str]:
        """What an error or a table calls every image."""
        return self.split.names

    @property
    def has_masks(self) -> bool:
        """Whether every sample carries a mask."""
        return self.split.has_masks

    @property
    def marks(self) -> str | None:
        """What the masks are."""
        return describe_masks(self.split)

    def __len__(self) -> int:
        return len(self.split)

    def load(self, index: int) -> Sample:
        """One image as it was kept, or as it is kept now.

        Raises:
            ToastError: the file cannot be read, or what it came to cannot be kept.
        """
        name = self.split.names[index]
        try:
            with open_file(self.split.root / name) as file:
                digest = hash_bytes(file.read()).hex()
        except OSError:
            return self.split.load(index)  # says what is wrong with it
        kept = self.cache.read(digest)
        if kept is None:
            whole = self.split.without_masks().load(index).image
            if self.step.is_excessive(whole.height, whole.width):
                return self.split.load(index)  # too large to keep: its transform computes only the crop
            resized = torch.from_numpy(np.array(self.step.resize(whole)))
            kept = {"image": resized, "original_size": torch.tensor([whole.height, whole.width])}
            self.cache.write(digest, kept)
        image = Image.fromarray(kept["image"].numpy())
        mask = None
        if self.split.regions is not None:
            height, width = kept["original_size"].tolist()
            original = torch.from_numpy(self.split.regions[index].rasterize(height, width).astype(np.uint8))
            mask = self.step.resize(tv_tensors.Mask(original)).numpy().astype(bool)
        return Sample(image, self.split.labels[index], name, mask)


def cache_resized(split: Any, transform: ImageTransform) -> tuple[ResizedSplit, str]:
    """The same images, kept resized, and a sentence on where and how much that is.

    Raises:
        UsageError: they are not files, or their first step is none to keep.
        ToastError: there is not enough room.
    """
    step = transform.steps.transforms[0]
    if not isinstance(split, FileSplit):
        raise UsageError(
            "images.cache needs image files, and this data set is not read from files.",
            what_to_do="Leave it out.",
            code="cache.not-image-files",
        )
    if not isinstance(step, ResizeAndCrop):
        raise UsageError(
            "images.cache stores resized images, and images.augment=random-resized-crop crops the original image.",
            what_to_do="Leave images.cache out, or use images.augment=crop-flip.",
            code="cache.no-resize-step",
        )
    versions = f"{PIL.__version__} {torchvision.__version__}"  # whose resizing it is
    first = split.without_masks().load(0).image
    size = first.height, first.width
    pixels = math.prod(step.size if step.is_excessive(*size) else step.resize.compute_size(*size))
    key, entry_bytes = {"step": str(step.resize), "versions": versions, "white": split.white}, 3 * pixels
    cache = TensorCache(RESIZED_FOLDER, key, len(split), entry_bytes, "images.cache")
    needed = format_bytes(len(split) * entry_bytes)
    note = f"Resized images are kept in {cache.path}: about {needed} for {len(split):,} of one size."
    return ResizedSplit(split, step, cache), note
