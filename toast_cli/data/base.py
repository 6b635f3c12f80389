"""Interfaces of data sources: samples, splits, batch loaders and data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from toast_cli.backbones.image_options import ImageOptions, PixelOptions
from toast_cli.utils.config import NamedOptions
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from PIL.Image import Image


Label: TypeAlias = "int | tuple[int, ...] | tuple[float, ...]"
"""The label of an image: the index of its class, the indices of its labels in increasing order, or its numbers."""


@dataclass(frozen=True)
class LabelVector:
    """The vector that stands for the label of an image in a batch, where images have no single class.

    Attributes:
        target: several labels, which become zeros and ones, or numbers.
        size: number of labels or numbers.
    """

    target: Literal["labels", "number"]
    size: int

    def encode(self, label: Label) -> np.ndarray:
        """Return the vector `[size]`; NaN for `IGNORE_INDEX`, the label of an image that is left out."""
        import numpy as np

        if isinstance(label, int):
            return np.full(self.size, np.nan, dtype=np.float32)
        if self.target == "number":
            return np.array(label, dtype=np.float32)
        vector = np.zeros(self.size, dtype=np.float32)
        vector[list(list_label_indices(label))] = 1
        return vector


@dataclass(frozen=True)
class Sample:
    """A labelled image as stored, before any transform.

    Attributes:
        image: the image at its original size.
        label: class index, label indices or numbers; -1 if the labels belong to pixels.
        name: name of the image in messages and tables.
        mask: `[H, W]` bool at the image's size, True on the labelled object. A bounding box becomes a filled
            rectangle. None if the source has neither masks nor boxes.
        classes: `[H, W]` uint8, the class of every pixel, 255 for none. None if the label belongs to the image.
    """

    image: Image
    label: Label
    name: str
    mask: np.ndarray | None = None
    classes: np.ndarray | None = None


SplitKind = Literal["images", "pixels", "stream", "conversations", "documents"]
"""Contents of a split, which decide its loader: labelled images, images with a label for every pixel, images that can
only be read in sequence, conversations, or running text."""

TEXT_KINDS: frozenset[SplitKind] = frozenset(("conversations", "documents"))
"""The kinds of splits of texts."""


class Split(Protocol):
    """An ordered set of samples. A split of anything except labelled images has an attribute `kind`.

    A split may have a method `stamp(index)`, a number that changes with the content of a sample and costs no decoding
    of images, and an attribute `digest`, a hash of content that its names do not cover.
    """

    @property
    def has_masks(self) -> bool:
        """Whether every sample has a mask."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> Any:
        """Read one sample.

        Raises:
            ToastError: the sample cannot be read; the message names it.
        """


class ImageSplit(Split, Protocol):
    """An ordered set of images whose labels are known without opening them.

    A split of images with several labels or with numbers has a `label_vector`.
    """

    @property
    def labels(self) -> Sequence[Label]:
        """Class index, label indices or numbers of every sample."""

    @property
    def names(self) -> Sequence[str]:
        """Name of every sample in messages and tables."""

    def load(self, index: int) -> Sample:
        """Read one image.

        Raises:
            ToastError: the image cannot be read; the message names it.
        """


def get_split_kind(split: Split) -> SplitKind:
    """Return the `kind` of a split; `images` if it has none."""
    return getattr(split, "kind", "images")


def get_label_vector(split: Split) -> LabelVector | None:
    """Return the `label_vector` of a split; None if every image has one class, or labels belong to pixels."""
    return getattr(split, "label_vector", None)


def list_label_indices(label: Label) -> tuple[int, ...]:
    """Return the indices of the classes that a label names; none for numbers."""
    return (label,) if isinstance(label, int) else tuple(each for each in label if isinstance(each, int))


def describe_masks(split: Split) -> str | None:
    """Return a description of a split's masks (its `marks`), or None if it has no masks.

    Shares of attention are comparable only between masks of the same kind: a box covers more than an outline.
    """
    return getattr(split, "marks", "masks") if split.has_masks else None


def get_image_folders(split: Split) -> frozenset[Path]:
    """Return the folders that a split reads images from (its `folders`); empty if it reads from something else."""
    return getattr(split, "folders", frozenset())


def set_white(split: Any, white: int) -> Any:
    """Return a split that reads its images with this value of white; a split of drawn images has none."""
    return split.with_white(white) if hasattr(split, "with_white") else split


class BatchLoader(Protocol):
    """An iterable of the batches of a split. A batch maps names to tensors whose first dimension is the batch."""

    notes: tuple[str, ...]

    @property
    def skipped(self) -> Mapping[str, str]:
        """Samples left out so far because they could not be read: the reason, by name."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[dict[str, Any]]: ...

    def set_epoch(self, epoch: int, begin: int = 0) -> None:
        """Set the epoch for shuffling and augmentation. The next iteration skips the first `begin` batches."""


CACHED_KEY = "known"
"""Key of a batch that has no inputs because their first pass is already cached."""


@dataclass(frozen=True)
class BatchOptions:
    """Size, order and contents of the batches of a loader.

    Attributes:
        batch_size: samples per batch, over all `processes` together.
        shuffle: draw samples in a random order given by the seed and the epoch.
        augment: apply the random transforms of training.
        with_masks: include the mask of the labelled object.
        process: index of this process.
        processes: number of processes that share every batch.
        views: number of fixed augmentations of each image, one per epoch in turn; None for new ones in every epoch.
        balance: with `shuffle`, draw every class equally often.
    """

    batch_size: int
    shuffle: bool = False
    augment: bool = False
    with_masks: bool = False
    process: int = 0
    processes: int = 1
    views: int | None = None
    balance: bool = False


@dataclass(frozen=True)
class LoaderOptions:
    """Settings shared by all loaders of a run.

    Attributes:
        seed: seed of order and augmentation.
        workers: worker processes that decode images; 0 decodes in the main process.
        pin_memory: put batches into page-locked memory, which a GPU can copy from while it computes.
        images: transforms from an image to the backbone's input.
        pixels: options of tasks with a label for every pixel; None for other tasks.
    """

    seed: int = 0
    workers: int = 0
    pin_memory: bool = False
    images: ImageOptions = field(default_factory=ImageOptions)
    pixels: PixelOptions | None = None


@dataclass(frozen=True)
class DataSet:
    """Splits that share one class map.

    Attributes:
        classes: class names in the order of the labels; empty for texts.
        splits: samples of `train` and, if the source has them, `val` and `test`.
        notes: sentences to read before trusting a result, for example about a split made here or an unexpected count.
        warnings: sentences about what is probably a mistake in the data, for example two spellings of one class.
        left_out: entries of texts that cannot be used: the reason, by name.
        target: what the labels are: a class for each sample, several labels, or numbers, with `classes` as their names.
    """

    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    notes: tuple[str, ...] = field(default=())
    warnings: tuple[str, ...] = field(default=())
    left_out: Mapping[str, str] = field(default_factory=dict)
    target: Literal["class", "labels", "number"] = "class"

    @property
    def messages(self) -> tuple[str, ...]:
        """All sentences for the user: notes and warnings."""
        return (*self.notes, *self.warnings)


@dataclass(frozen=True)
class DataSource:
    """A registered data source.

    Attributes:
        options: its settings, a section of a recipe.
        open: a function of (options, data_dir) that returns the `DataSet`; `data_dir` is `--data-dir`, or None.
        needs: what the source needs on disk, for listings.
        task: the task of a recipe that names none.
        tasks: the task by `path`, in lower case, for a source of several data sets whose tasks differ.
        task_by_option: the task of such a recipe if one of these options is set.
        list_columns: a function of (options, data_dir) that returns the names of a table's columns without reading its
            rows; None if the source has no table, or must open the data to know them.
        home: address of the data set's own site; may be empty.
        layout: tree of the files that it reads, for the documentation; may be empty.
    """

    options: type[NamedOptions]
    open: Callable[[Any, Path | None], DataSet]
    needs: str
    task: str = "classification"
    home: str = ""
    layout: str = ""
    tasks: Mapping[str, str] = field(default_factory=dict)
    task_by_option: Mapping[str, str] = field(default_factory=dict)
    list_columns: Callable[[Any, Path | None], Sequence[str]] | None = None

    def get_task(self, options: Mapping[str, Any]) -> str:
        """Return the task of a recipe that names none, given the options of the source."""
        chosen = (task for name, task in self.task_by_option.items() if options.get(name) is not None)
        return next(chosen, self.tasks.get(str(options.get("path")).lower(), self.task))


def get_class_labels(data: DataSet, part: str) -> Sequence[int] | None:
    """Return the class of every sample of a split; None if samples have no single class that is known in advance."""
    split = data.splits[part]
    if data.target != "class" or get_split_kind(split) != "images":
        return None
    return getattr(split, "labels", None)


def explain_missing_class_labels(data: DataSet, part: str) -> str:
    """Return the reason why samples of a split have no single class that is known in advance."""
    if data.target != "class":
        return "The images of this data set have several labels, or numbers, instead of one class."
    reasons: dict[SplitKind, str] = {
        "stream": "The images are streamed, so their classes are only known once they have been read.",
        "pixels": "The classes belong to pixels, not to images.",
    }
    return reasons.get(get_split_kind(data.splits[part]), "Texts have no classes.")


def require_images(data: DataSet, where: str) -> None:
    """Check that a data set contains images.

    Raises:
        UsageError: it contains texts.
    """
    if not data.classes:
        raise UsageError(
            f"{where} contains texts, not images.",
            what_to_do="Give a data set of images; 'toast data ls' lists all sources.",
            code="data.not-images",
        )


def get_image_splits(data: DataSet, where: str) -> dict[str, ImageSplit]:
    """Return the splits of a data set of images.

    Raises:
        UsageError: the data set contains texts, or is streamed.
    """
    require_images(data, where)
    if any(not hasattr(split, "names") for split in data.splits.values()):
        raise UsageError(
            f"{where} is streamed.",
            "This command needs random access to images; a stream can only be read in sequence.",
            "Unpack the data, or pack it in one archive (archive:FILE).",
            code="data.streamed",
        )
    return dict(data.splits)  # type: ignore[arg-type]
