"""What every data source owes the rest of the house: splits of samples, their classes, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from toast_cli.backbones.image_options import ImageOptions, PixelOptions
from toast_cli.utils.config import NamedOptions
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from PIL.Image import Image


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


SplitKind = Literal["images", "pixels", "stream", "conversations", "documents"]
"""What a split holds, which decides its loader: images with a label, or with one for every pixel; images that can only
be read from front to end; conversations; running text."""


class Split(Protocol):
    """An ordered set of samples. A split of anything but labelled images says so by an attribute `kind`."""

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


def kind_of(split: Split) -> SplitKind:
    """Return what a split holds; labelled images, where it does not say."""
    return getattr(split, "kind", "images")


def describe_masks(split: Split) -> str | None:
    """What a split's masks are, in words (its `marks`, where it says so); None where it has none.

    A share inside a box and one inside an outline are different numbers.
    """
    return getattr(split, "marks", "masks") if split.has_masks else None


def get_image_folders(split: Split) -> frozenset[Path]:
    """The folders that a split's images are read from (its `folders`); none where it reads from something else."""
    return getattr(split, "folders", frozenset())


class BatchLoader(Protocol):
    """Batches of a split, over and over: mappings of tensors whose first dimension is the batch."""

    notes: tuple[str, ...]

    @property
    def skipped(self) -> Mapping[str, str]:
        """Samples that could not be read and were left out so far: why, by name."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[dict[str, Any]]: ...

    def set_epoch(self, epoch: int, begin: int = 0) -> None:
        """Shuffle and augment as in this epoch, from the next iteration on, which leaves `begin` batches out."""


CACHED_KEY = "known"
"""Is in a batch whose inputs were left out, being known already."""


@dataclass(frozen=True)
class BatchOptions:
    """Which batches are wanted.

    Attributes:
        batch_size: samples that all `processes` see together; each process gets its share.
        shuffle: draw samples in a random order that the seed and the epoch decide.
        augment: apply the random transforms of training.
        with_masks: include the mask of the labelled object.
        process: index of this process.
        processes: number of processes that share the batches.
        views: number of fixed augmentations, which take turns from epoch to epoch; None for a new one each time.
    """

    batch_size: int
    shuffle: bool = False
    augment: bool = False
    with_masks: bool = False
    process: int = 0
    processes: int = 1
    views: int | None = None


@dataclass(frozen=True)
class LoaderOptions:
    """How every loader of a run works, whatever its batches.

    Attributes:
        seed: seed of order and augmentation.
        workers: worker processes that decode images; 0 decodes in the main process.
        pin_memory: put batches into page-locked memory, which a GPU can copy from while it computes.
        images: how an image becomes the backbone's input.
        pixels: the same for tasks with a label for every pixel; None for other tasks.
    """

    seed: int = 0
    workers: int = 0
    pin_memory: bool = False
    images: ImageOptions = field(default_factory=ImageOptions)
    pixels: PixelOptions | None = None


@dataclass(frozen=True)
class DataSet:
    """Splits that share one class map (empty for texts).

    `splits` maps `train`, `val` and `test` to their samples; a source that has no `val` or `test` leaves it out.
    `notes` are sentences a user should read before trusting a number (a split we made, a count that differs).
    """

    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class DataSource:
    """A registered data source: its settings, how it is opened, what it needs on disk and where that is published.

    `open(options, data_dir)` returns the `DataSet`; `data_dir` is what the user gave as `--data-dir`, or None. `task`
    is what its data are for where a recipe does not say. `home` is the address of the data set's own site, where there
    is one.
    """

    options: type[NamedOptions]
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
        raise UsageError(
            f"{where} holds texts.",
            what_to_do="This is for images: 'toast data ls' tells which are.",
            code="data.not-images",
        )


def get_image_splits(data: DataSet, where: str) -> dict[str, ImageSplit]:
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
            code="data.streamed",
        )
    return dict(data.splits)  # type: ignore[arg-type]
