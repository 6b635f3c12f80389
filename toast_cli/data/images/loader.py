"""Batches of images, independent of the number of worker processes.

The order of an epoch depends on (seed, epoch), and the augmentation of an image on (seed, epoch, index). Neither
depends on a worker's random state. Nothing here draws from the generators of the model's own randomness.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler, default_collate

from toast_cli.data.base import CACHED_KEY, Sample, get_label_vector
from toast_cli.data.images.decode import guess_white
from toast_cli.data.images.labelled_files import FileSplit
from toast_cli.data.images.transforms import build_transform
from toast_cli.data.sampler import BalancedSampler, SeededShuffleSampler, ShardedBatchSampler, derive_seed
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from toast_cli.backbones.base import Preprocessing
    from toast_cli.data.base import BatchOptions, ImageSplit, Label, LoaderOptions

    SampleTransform = Callable[[Image.Image, np.ndarray | None], tuple[Tensor, Tensor | None]]


DEPTH_SAMPLES = 8
"""Number of 16-bit images that are opened before training to see which bits they use."""


class ImageDataset(Dataset[dict[str, Any]]):
    """A split with a transform.

    An item has `image` [3, H, W], `label` (an index, or a vector), `index`, `view` and, if `with_masks`, `mask` [H, W]
    bool. With `views`, augmentation depends on the view instead of the epoch. With `skip`, an image that cannot be read
    is left out of its batch. If `known` is set (an entry per sample and view), a batch whose samples are all known has
    the key `known` instead of `image`.

    An index of n or more, for n samples, is a repeated draw of sample `index % n` in one epoch. It has its own
    augmentation.

    Raises:
        ValueError: `with_masks` is set and the split has no masks.
    """

    def __init__(
        self,
        split: ImageSplit,
        transform: SampleTransform,
        seed: int = 0,
        with_masks: bool = False,
        views: int | None = None,
        skip: bool = False,
    ) -> None:
        if with_masks and not split.has_masks:
            raise ValueError("this split has no masks")
        self.split = split if with_masks else drop_masks(split)
        self.label_vector = get_label_vector(split)
        self.transform = transform
        self.seed = seed
        self.with_masks = with_masks
        self.views = views
        self.skip = skip
        self.known: Tensor | None = None
        # In shared memory, because persistent workers must see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch for augmentation."""
        self._epoch.fill_(epoch)

    @property
    def view(self) -> int:
        """The fixed augmentation used in this epoch; 0 if there are none."""
        return max(int(self._epoch) - 1, 0) % self.views if self.views else 0

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = index % len(self)
        item = self.transform_sample(self.split.load(place), place if self.views else index)
        return {**item, "index": place}

    def __getitems__(self, indices: Sequence[int]) -> FetchedBatch | ToastError:
        """Return a batch, or the error that prevents it: an error raised in a worker would lose its type."""
        places = [index % len(self) for index in indices]
        if self._are_cached(places):
            return FetchedBatch([self._make_cached_item(place) for place in places], {})
        items, skipped = [], {}
        for index in indices:
            try:
                items.append(self[index])
            except ToastError as error:
                if not self.skip:
                    return error
                skipped[self.split.names[index % len(self)]] = error.why or error.what
        # A batch cannot be empty: if no image can be read, it has a black one whose label is ignored.
        return FetchedBatch(items or [self.make_blank_item(places[0])], skipped)

    def transform_sample(self, sample: Sample, index: int) -> dict[str, Any]:
        """Return a sample as an item of a batch; `index` is part of the seed of its augmentation."""
        # Not torch.manual_seed, which would also reseed the GPU.
        generator = torch.default_generator
        before = generator.get_state()
        turn = self.view if self.views else int(self._epoch)
        generator.manual_seed(derive_seed(self.seed, turn, index))
        try:
            return {**self.transform_image(sample), "index": index, "view": self.view}
        finally:
            generator.set_state(before)

    def transform_image(self, sample: Sample) -> dict[str, Any]:
        """Return the transformed image, the label and, if `with_masks`, the mask of a sample."""
        image, mask = self.transform(sample.image, sample.mask if self.with_masks else None)
        item = {"image": image, "label": self.encode_label(sample.label)}
        return {**item, "mask": mask} if self.with_masks else item

    def encode_label(self, label: Label) -> Any:
        """Return a label as it is in a batch: the index of a class, or a vector."""
        return label if self.label_vector is None else self.label_vector.encode(label)

    def _are_cached(self, indices: Sequence[int]) -> bool:
        # Not if images may be skipped: a skipped image looks like a known one.
        if self.known is None or self.skip:
            return False
        return bool(self.known[[self.view * len(self) + index for index in indices]].all())

    def _make_cached_item(self, index: int) -> dict[str, Any]:
        label = self.encode_label(self.split.labels[index])
        return {CACHED_KEY: True, "label": label, "index": index, "view": self.view}

    def make_blank_item(self, index: int) -> dict[str, Any]:
        """Return a black image with an ignored label, for a batch in which no image can be read."""
        image = Image.new("RGB", (64, 64))
        return self.transform_sample(Sample(image, IGNORE_INDEX, "", np.zeros((64, 64), dtype=bool)), index)


def drop_masks(split: ImageSplit) -> ImageSplit:
    """Return the split without masks, if they would be read from separate files."""
    return split.without_masks() if isinstance(split, FileSplit) else split


@dataclass(frozen=True)
class FetchedBatch:
    """The items of a batch, the samples that were left out (the reason, by name), and names of streamed samples."""

    items: list[dict[str, Any]]
    skipped: dict[str, str]
    names: dict[int, str] = field(default_factory=dict)


class ImageLoader(DataLoader[dict[str, Any]]):
    """A DataLoader that raises the `ToastError` of a worker with its type and fields."""

    notes: tuple[str, ...] = ()
    dataset: ImageDataset
    batch_sampler: ShardedBatchSampler

    @cached_property
    def skipped(self) -> dict[str, str]:
        """Images left out so far because they could not be read: the reason, by name."""
        return {}

    def set_epoch(self, epoch: int, begin: int = 0) -> None:
        """Set the epoch for shuffling and augmentation. The next iteration skips the first `begin` batches."""
        self.dataset.set_epoch(epoch)
        self.batch_sampler.set_epoch(epoch, begin)

    @property
    def samples(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def skip_cached_images(self, known: Tensor) -> None:
        """Load no images of batches that are all `known`, a shared-memory tensor with an entry per image and view."""
        self.dataset.known = known

    def load_complete_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Load the images that were left out of a batch of this epoch, in this process.

        Raises:
            ToastError: an image can no longer be read.
        """
        fetched: Any = FetchedBatch([self.dataset[index] for index in batch["index"].tolist()], {})
        return self.collate_fn(fetched)[0]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:  # type: ignore[override]
        return self.batch_sampler.mask_surplus_labels(self._iterate_batches())

    def _iterate_batches(self) -> Iterator[dict[str, Tensor]]:
        for batch in super().__iter__():
            if isinstance(batch, ToastError):
                batch.process = self.batch_sampler.process
                try:
                    raise batch
                finally:
                    # Break the reference cycle of error, traceback and this frame, which keeps the workers alive:
                    # each of them takes five seconds to stop when collected as part of a cycle.
                    del batch
            tensors, skipped = batch
            self.skipped.update(skipped)
            yield tensors


def build_image_loader(
    split: ImageSplit, preprocessing: Preprocessing, batches: BatchOptions, options: LoaderOptions
) -> ImageLoader:
    """Return a loader of labelled images, transformed for the backbone.

    Raises:
        UsageError: image sizes do not fit, or the split does not support `images.cache`.
        ToastError: `images.cache` is set and there is not enough disk space.
    """
    transform = build_transform(options.images, preprocessing, train=batches.augment)
    notes = describe_bit_depth(drop_masks(split)) if batches.shuffle else ()
    if options.images.cache:
        from toast_cli.data.images.resize_cache import cache_resized

        split, note = cache_resized(split if batches.with_masks else drop_masks(split), transform)
        notes = (*notes, note)
    skip = options.images.on_error == "skip"
    loader = make_image_loader(split, transform, batches, options.seed, options.workers, skip, options.pin_memory)
    loader.notes = notes
    return loader


def describe_bit_depth(split: Any) -> tuple[str, ...]:
    """Return a note if the first few images of a split have 16 bits and use only a few of them: they look black."""
    if getattr(split, "white", 0) is not None:  # it is set, or the images are not read from files
        return ()
    brightest = None
    for index in range(min(len(split), DEPTH_SAMPLES)):
        try:
            found = split.load(index).image.info.get("brightest")
        except ToastError:  # said where the image is used
            continue
        if found is None:
            return ()
        brightest = max(brightest or 0, found)
    white = guess_white(brightest)
    return (
        ()
        if white is None
        else (
            f"The images have 16 bits but no value above {brightest:,.0f}, so they are nearly black. If they hold "
            f"{white.bit_length()} bits, set images.white={white}.",
        )
    )


def make_image_loader(
    split: ImageSplit,
    transform: SampleTransform,
    batches: BatchOptions,
    seed: int,
    workers: int,
    skip: bool = False,
    pin: bool = False,
) -> ImageLoader:
    """Return a loader of batches with `image` [B, 3, H, W], `label` [B] or [B, labels], `index` [B] and perhaps `mask`.

    Iterating raises the `ToastError` of an image that cannot be read, with any number of workers. With `skip`, it
    leaves the image out.

    Raises:
        ValueError: `batches.with_masks` is set and the split has no masks.
    """
    images = ImageDataset(split, transform, seed, batches.with_masks, batches.views, skip)
    return build_data_loader(images, batches, workers, pin=pin)


def build_data_loader(
    dataset: ImageDataset,
    batches: BatchOptions,
    workers: int,
    together: Callable[[list[dict[str, Any]]], dict[str, Any]] = default_collate,
    pin: bool = False,
) -> ImageLoader:
    """Return a loader of a dataset; `together` collates items into a batch, `pin` puts it in page-locked memory."""
    seed = dataset.seed
    order: Sampler[int] = SequentialSampler(dataset)
    if batches.shuffle and batches.balance:
        order = BalancedSampler(cast("Sequence[int]", dataset.split.labels), seed)
    elif batches.shuffle:
        order = SeededShuffleSampler(len(dataset), seed)
    return ImageLoader(
        dataset,
        batch_sampler=ShardedBatchSampler(order, batches.batch_size, batches.process, batches.processes),
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=ignore_interrupts,
        collate_fn=partial(collate_fetched, together=together),
        pin_memory=pin,
        # Without its own generator, a DataLoader draws the seeds of its workers from the global one.
        generator=torch.Generator().manual_seed(derive_seed(seed)),
    )


def collate_fetched(fetched: Any, together: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> Any:
    """Return the collated tensors of a batch and its skipped samples; return an error unchanged."""
    return fetched if isinstance(fetched, ToastError) else (together(fetched.items), fetched.skipped)


def ignore_interrupts(worker: int) -> None:
    """Ignore, in a worker, signals that the whole process group gets, so that the main process can finish its step."""
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
