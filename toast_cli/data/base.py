"""What every data source owes the rest of the house: splits of samples, their classes, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from toast_cli.utils.config import Named
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from PIL.Image import Image

    from toast_cli.backbones.base import Backbone
    from toast_cli.recipe.schema import Recipe


@dataclass(frozen=True)
class Sample:
    """One labelled image as it lies on disk, before any transform.

    `mask` is `[H, W]` bool at the image's own size, True on the labelled object (a bounding box becomes
    a filled rectangle), None where the source has neither. `name` is what an error or a table calls the image.
    Where pixels are labelled and not images, `label` is -1 and `classes` `[H, W]` uint8 has a class for every pixel,
    255 where there is none.
    """

    image: Image
    label: int
    name: str
    mask: np.ndarray | None = None
    classes: np.ndarray | None = None


class Split(Protocol):
    """An ordered set of samples, of images or of texts."""

    @property
    def has_masks(self) -> bool:
        """Whether every sample brings a mask."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> Any:
        """Read one sample; raises a ToastError that names it when it cannot be read."""


class ImageSplit(Split, Protocol):
    """An ordered set of images whose labels are known without opening a single one."""

    @property
    def labels(self) -> Sequence[int]:
        """Class index of every sample."""

    @property
    def names(self) -> Sequence[str]:
        """What an error or a table calls every sample."""

    def load(self, index: int) -> Sample:
        """Read one image; raises a ToastError that names it when it cannot be read."""


def marks_of(split: Split) -> str | None:
    """What a split's masks are, in words (its `marks`, where it says so); None where it has none.

    A share inside a box and one inside an outline are different numbers.
    """
    return getattr(split, "marks", "masks") if split.has_masks else None


def folders_of(split: Split) -> frozenset[Path]:
    """The folders that a split's images are read from (its `folders`); none where it reads from something else."""
    return getattr(split, "folders", frozenset())


class Batches(Protocol):
    """Batches of a split, over and over: mappings of tensors whose first dimension is the batch."""

    notes: tuple[str, ...]

    @property
    def skipped(self) -> Mapping[str, str]:
        """Samples that could not be read and were left out so far: why, by name."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[dict[str, Any]]: ...

    def set_epoch(self, epoch: int, begin: int = 0) -> None:
        """Shuffle and augment as in this epoch, from the next iteration on, which leaves `begin` batches out."""


KNOWN = "known"
"""Is in a batch whose inputs were left out, being known already."""


@dataclass(frozen=True)
class Asked:
    """What batches are wanted for: how many at once, shuffled, changed as in training, with masks.

    `batch_size` is what all `processes` see together; each gets its part. With `views`, samples are changed in so many
    fixed ways, taken in turns from epoch to epoch.
    """

    batch_size: int
    shuffle: bool = False
    augment: bool = False
    with_masks: bool = False
    process: int = 0
    processes: int = 1
    views: int | None = None


def _image_batches(split: Any, recipe: Recipe, backbone: Backbone, asked: Asked) -> Batches:
    from toast_cli.data.images.loader import image_batches

    return image_batches(split, recipe, backbone, asked)


@dataclass(frozen=True)
class DataSet:
    """Splits that share one class map (empty for texts).

    `batches(split, recipe, backbone, asked)` turns one of them into what the backbone takes.
    `splits` maps `train`, `val` and `test` to their samples; a source that has no `val` or `test` leaves it out.
    `notes` are sentences a user should read before trusting a number (a split we made, a count that differs).
    """

    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    notes: tuple[str, ...] = field(default=())
    batches: Callable[[Any, Recipe, Backbone, Asked], Batches] = _image_batches


@dataclass(frozen=True)
class Source:
    """A registered data source: its settings, how it is opened, what it needs on disk and where that is published.

    `open(options, data_dir)` returns the `DataSet`; `data_dir` is what the user gave as `--data-dir`, or None. `task`
    is what its data are for where a recipe does not say. `home` is the address of the data set's own site, where there
    is one.
    """

    options: type[Named]
    open: Callable[[Any, Path | None], DataSet]
    needs: str
    task: str = "classification"
    home: str = ""


def require_images(data: DataSet, where: str) -> None:
    """Check that a data set is made of images.

    Raises:
        UsageError: it is made of texts.
    """
    if not data.classes:
        raise UsageError(f"{where} holds texts.", what_to_do="This is for images: 'toast data ls' tells which are.")


def image_splits(data: DataSet, where: str) -> dict[str, ImageSplit]:
    """The splits of a data set that is made of images.

    Raises:
        UsageError: it is made of texts, or is streamed.
    """
    require_images(data, where)
    if any(not hasattr(split, "names") for split in data.splits.values()):
        raise UsageError(
            f"{where} is read from front to end.",
            "This looks images up, some of them or all against each other.",
            "Give the data unpacked, or in one archive (archive:FILE).",
        )
    return dict(data.splits)  # type: ignore[arg-type]
