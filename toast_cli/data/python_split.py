"""A split given in Python: a list of (image, label), or a `torch.utils.data.Dataset` of such items.

An image is a path, a PIL image, an array `[H, W]` or `[H, W, C]`, or a tensor `[H, W]` or `[C, H, W]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from toast_cli.data.base import Label, LabelVector, Sample
from toast_cli.data.images.decode import open_image, to_upright_rgb
from toast_cli.data.images.files import compute_file_stamp
from toast_cli.data.python_labels import GivenLabel, read_given_label
from toast_cli.utils.errors import ToastError, UsageError, describe_object

CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class PythonSplit:
    """Some items of a list or a `Dataset`.

    Attributes:
        items: the list or the `Dataset`.
        indices: the index of every sample in `items`.
        given: the label of every sample as it is given.
        labels: the class index, the label indices or the numbers of every sample.
        names: the path of every sample, or its number if it has none.
        paths: the file of every sample; None for an image.
        white: value of white in 16-bit images (`images.white`).
        label_vector: what the labels become in a batch; None if every image has one class.
    """

    items: Any
    indices: tuple[int, ...]
    given: tuple[GivenLabel, ...]
    labels: tuple[Label, ...]
    names: tuple[str, ...]
    paths: tuple[str | None, ...]
    white: int | None = None
    has_masks: bool = False
    label_vector: LabelVector | None = None

    @classmethod
    def from_items(cls, items: Any, where: str) -> PythonSplit:
        """Return the split of all items, whose labels are read but not yet indices of classes.

        Raises:
            UsageError: there are no items, or one is not an image with a label.
        """
        from torch.utils.data import IterableDataset

        indexable = hasattr(items, "__len__") and hasattr(items, "__getitem__")
        if not indexable or isinstance(items, str | bytes | IterableDataset):
            raise UsageError(
                f"Expected a list of (image, label) or a Dataset as {where}, got {describe_object(items)}.",
                "An iterable without a length cannot be shuffled, divided or resumed."
                if hasattr(items, "__iter__") and not isinstance(items, str | bytes)
                else "",
                "Pass a list, or a torch.utils.data.Dataset with __len__ and __getitem__.",
                code="data.not-indexable",
            )
        count = len(items)
        given = tuple(_read_labels(items, where))
        paths = _find_paths(items)
        names = tuple(path or f"{index:07d}" for index, path in enumerate(paths))
        return cls(items, tuple(range(count)), given, (-1,) * count, names, paths)

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, indices: Sequence[int]) -> PythonSplit:
        """Return the split of the samples at `indices`, in that order."""
        picked: dict[str, Any] = {
            field: tuple(getattr(self, field)[index] for index in indices)
            for field in ("indices", "given", "labels", "names", "paths")
        }
        return replace(self, **picked)

    def stamp(self, index: int) -> int | None:
        """Return a number that changes with the content of an image; None if that needs decoding."""
        if (path := self.paths[index]) is not None:
            return compute_file_stamp(Path(path))
        if not isinstance(self.items, list | tuple):
            return None
        image = self.items[self.indices[index]][0]
        pixels = np.ascontiguousarray(image.detach().cpu() if hasattr(image, "detach") else image)
        content = f"{pixels.dtype} {pixels.shape}".encode() + pixels.tobytes()
        return int.from_bytes(blake2b(content, digest_size=6).digest(), "little")

    def with_white(self, white: int) -> PythonSplit:
        """Return the same split with another value of white."""
        return replace(self, white=white)

    def load(self, index: int) -> Sample:
        """Read one image.

        Raises:
            ToastError: the item cannot be read, is not an image, or has another label than the data set records.
        """
        number, name = self.indices[index], self.names[index]
        try:
            image, label = _unpack(self.items[number], f"item {number}")
            image = _to_image(image, self.white)
        except ToastError:
            raise
        except Exception as error:  # a user's data set may raise anything
            raise ToastError(
                f"Cannot read the image {name}.",
                f"Item {number} of the data: {type(error).__name__}: {error}",
                "Correct the data; images.on_error=skip leaves such images out and lists them.",
                code="image.unreadable",
            ) from error
        if (found := read_given_label(label, f"item {number}")) != self.given[index]:
            raise ToastError(
                f"Item {number} of the data has the label {found!r}, and was recorded with the label "
                f"{self.given[index]!r}.",
                "A data set must give the same label at every call, and its targets or labels must be those of its "
                "items.",
                "Correct the data set, or pass a list of (image, label).",
                code="data.unequal-labels",
            )
        return Sample(image, self.labels[index], name)


def _unpack(item: Any, where: str) -> tuple[Any, Any]:
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise UsageError(
            f"Expected (image, label) as {where}, got {describe_object(item)}.",
            what_to_do="Give every item as a tuple of two: an image or its path, and a label.",
            code="data.not-a-pair",
        )
    return item[0], item[1]


def _read_labels(items: Any, where: str) -> Iterator[GivenLabel]:
    """Yield the label of every item; without reading images if the data set has a list of its labels."""
    recorded = None if isinstance(items, list | tuple) else _find_recorded_labels(items)
    for index in range(len(items)):
        place = f"item {index} of {where}"
        yield read_given_label(recorded[index] if recorded else _unpack(items[index], place)[1], place)


def _find_recorded_labels(dataset: Any) -> list[Any] | None:
    """Return `targets` or `labels` of a data set, as torchvision's have them, if they are those of its items."""
    if _is_subset(dataset):
        inner = _find_recorded_labels(dataset.dataset)
        return None if inner is None else [inner[index] for index in dataset.indices]
    found = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if found is None or getattr(dataset, "target_transform", None) is not None or not len(dataset):
        return None
    if hasattr(found, "tolist") and getattr(found, "ndim", 1) == 1:
        found = found.tolist()
    if isinstance(found, str | Mapping) or not hasattr(found, "__getitem__") or len(found) != len(dataset):
        return None
    own = _unpack(dataset[0], "item 0")[1]
    try:
        same = read_given_label(own, "item 0") == read_given_label(found[0], "item 0")
    except UsageError:  # they are something else, such as boxes
        return None
    if not same:
        return None
    return list(found)


def _find_paths(items: Any) -> tuple[str | None, ...]:
    """Return the file of every item: of a list with paths, or of a data set with `samples`, as torchvision's have it.

    None stands for an item whose file is unknown.
    """
    if _is_subset(items):
        inner = _find_paths(items.dataset)
        return tuple(inner[index] for index in items.indices)
    listed = items if isinstance(items, list | tuple) else getattr(items, "samples", None)
    if not isinstance(listed, list | tuple) or len(listed) != len(items):
        return (None,) * len(items)
    files = (item[0] if isinstance(item, tuple | list) and item else None for item in listed)
    return tuple(str(file) if isinstance(file, str | Path) else None for file in files)


def _is_subset(dataset: Any) -> bool:
    from torch.utils.data import Subset

    return isinstance(dataset, Subset)


def _to_image(image: Any, white: int | None) -> Image.Image:
    """Return an image as upright RGB.

    Raises:
        ToastError: a file cannot be read.
        ValueError: it is not an image, or its values have no known range.
    """
    if isinstance(image, str | Path):
        return open_image(Path(image), white)
    if isinstance(image, Image.Image):
        return to_upright_rgb(image, white)
    is_tensor = hasattr(image, "detach")
    array = np.asarray(image.detach().cpu() if is_tensor else image)
    if is_tensor and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in CHANNELS) or not array.size:
        shape = "[H, W] or [C, H, W] as a tensor" if is_tensor else "[H, W] or [H, W, C] as an array"
        raise ValueError(f"expected a path, a PIL image or {shape}, got {type(image).__name__} {list(array.shape)}")
    array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):
            raise ValueError(
                "its values are not between 0 and 1; give images before they are normalized, which toast does as the "
                "backbone needs it"
            )
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"expected 8-bit values, or floats between 0 and 1, got {array.dtype}")
    return to_upright_rgb(Image.fromarray(np.ascontiguousarray(array)), white)
