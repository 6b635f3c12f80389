"""Batches of images, the same whatever number of processes decodes them.

What an epoch shows depends on (seed, epoch) and what augmentation does to an image on (seed, epoch, index): neither
on a worker's random state. Nothing here draws from the generators that the model's own randomness comes from.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler, default_collate

from toast_cli.data.base import CACHED_KEY, Sample
from toast_cli.data.images.file_split import FileSplit
from toast_cli.data.images.transforms import build_transform
from toast_cli.data.sampler import ShardedBatchSampler
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from toast_cli.backbones.base import Preprocessing
    from toast_cli.data.base import BatchOptions, ImageSplit, LoaderOptions

    SampleTransform = Callable[[Image.Image, np.ndarray | None], tuple[Tensor, Tensor | None]]


class ImageDataset(Dataset[dict[str, Any]]):
    """A split through a transform: `image` [3, H, W], `label`, `index`, `view` and, if asked for, `mask` [H, W] bool.

    With `views`, augmentation goes by the view instead of the epoch. With `known`, an entry per sample and view, a
    batch of samples that are all known has `known` in place of `image`. With `skip`, an image that cannot be read is
    left out of its batch.

    Raises:
        ValueError: masks are asked of a split that has none.
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
        self.transform = transform
        self.seed = seed
        self.with_masks = with_masks
        self.views = views
        self.skip = skip
        self.known: Tensor | None = None
        # In shared memory, so that workers that live on from epoch to epoch see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Augment as in this epoch from now on."""
        self._epoch.fill_(epoch)

    @property
    def view(self) -> int:
        """Which of the fixed ways of augmentation this epoch takes; 0 where there are none."""
        return max(int(self._epoch) - 1, 0) % self.views if self.views else 0

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.item(self.split.load(index), index)

    def __getitems__(self, indices: Sequence[int]) -> FetchedBatch | ToastError:
        """A batch for the loader. An error is handed on: raised in a worker, it would arrive as a traceback's text."""
        if self._are_cached(indices):
            return FetchedBatch([self._known(index) for index in indices], {})
        items, skipped = [], {}
        for index in indices:
            try:
                items.append(self[index])
            except ToastError as error:
                if not self.skip:
                    return error
                skipped[self.split.names[index]] = error.why or error.what
        # A batch cannot be empty: where nothing could be read, a black image stands there whose label is ignored.
        return FetchedBatch(items or [self.blank(indices[0])], skipped)

    def item(self, sample: Sample, index: int) -> dict[str, Any]:
        """A sample as it goes into a batch; `index` is what its augmentation is drawn by."""
        # Not torch.manual_seed: that one would reseed the GPU too.
        generator = torch.default_generator
        before = generator.get_state()
        turn = self.view if self.views else int(self._epoch)
        generator.manual_seed(derive_seed(self.seed, turn, index))
        try:
            return {**self.shown(sample), "index": index, "view": self.view}
        finally:
            generator.set_state(before)

    def shown(self, sample: Sample) -> dict[str, Any]:
        """A sample as training and evaluation see it."""
        image, mask = self.transform(sample.image, sample.mask if self.with_masks else None)
        item = {"image": image, "label": sample.label}
        return {**item, "mask": mask} if self.with_masks else item

    def _are_cached(self, indices: Sequence[int]) -> bool:
        # Not where images may be left out: one that could not be read looks like one that is known.
        if self.known is None or self.skip:
            return False
        return bool(self.known[[self.view * len(self) + index for index in indices]].all())

    def _known(self, index: int) -> dict[str, Any]:
        return {CACHED_KEY: True, "label": self.split.labels[index], "index": index, "view": self.view}

    def blank(self, index: int) -> dict[str, Any]:
        """What stands in a batch of which nothing could be read: its label is to be ignored."""
        image = Image.new("RGB", (64, 64))
        return self.item(Sample(image, IGNORE_INDEX, "", np.zeros((64, 64), dtype=bool)), index)


def drop_masks(split: ImageSplit) -> ImageSplit:
    """The same images, without reading masks that are files of their own."""
    return split.without_masks() if isinstance(split, FileSplit) else split


@dataclass(frozen=True)
class FetchedBatch:
    """The samples of a batch, and those that were left out: why, by name."""

    items: list[dict[str, Any]]
    skipped: dict[str, str]


class SeededShuffleSampler(Sampler[int]):
    """All indices in an order that depends on (seed, epoch) alone."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Shuffle as in this epoch from the next iteration on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        return iter(torch.randperm(self.count, generator=generator).tolist())


class ImageLoader(DataLoader[dict[str, Any]]):
    """A DataLoader whose workers' errors are raised here as they were."""

    notes: tuple[str, ...] = ()
    dataset: ImageDataset
    batch_sampler: ShardedBatchSampler

    @cached_property
    def skipped(self) -> dict[str, str]:
        """Images that could not be read and were left out so far: why, by name."""
        return {}

    def set_epoch(self, epoch: int, begin: int = 0) -> None:
        """Shuffle and augment as in this epoch, from the next iteration on, which leaves `begin` batches out."""
        self.dataset.set_epoch(epoch)
        self.batch_sampler.set_epoch(epoch, begin)

    @property
    def samples(self) -> int:
        """Images."""
        return len(self.dataset)

    def leave_out(self, known: Tensor) -> None:
        """From now on, leave out images that are known: an entry per image and view, in shared memory."""
        self.dataset.known = known

    def whole(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch of this epoch with what was left out of it, read here and now.

        Raises:
            ToastError: an image cannot be read any more.
        """
        fetched: Any = FetchedBatch([self.dataset[index] for index in batch["index"].tolist()], {})
        return self.collate_fn(fetched)[0]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:  # type: ignore[override]
        return self.batch_sampler.fill(self._batches())

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        for batch in super().__iter__():
            if isinstance(batch, ToastError):
                batch.process = self.batch_sampler.process
                try:
                    raise batch
                finally:
                    # Error, traceback and this frame would hold each other, and with them the workers: collected as
                    # a cycle, each of those takes five seconds to stop.
                    del batch
            tensors, skipped = batch
            self.skipped.update(skipped)
            yield tensors


def build_image_loader(
    split: ImageSplit, preprocessing: Preprocessing, batches: BatchOptions, options: LoaderOptions
) -> ImageLoader:
    """Return batches of labelled images, transformed for the backbone.

    Raises:
        UsageError: sizes do not fit, or resized images cannot be kept.
        ToastError: resized images are to be kept, and there is no room.
    """
    transform = build_transform(options.images, preprocessing, train=batches.augment)
    notes: tuple[str, ...] = ()
    if options.images.cache:
        from toast_cli.data.images.resize_cache import cache_resized

        split, note = cache_resized(split if batches.with_masks else drop_masks(split), transform)
        notes = (note,)
    skip = options.images.on_error == "skip"
    loader = make_image_loader(split, transform, batches, options.seed, options.workers, skip, options.pin_memory)
    loader.notes = notes
    return loader


def make_image_loader(
    split: ImageSplit,
    transform: SampleTransform,
    batches: BatchOptions,
    seed: int,
    workers: int,
    skip: bool = False,
    pin: bool = False,
) -> ImageLoader:
    """A loader of batches: `image` [B, 3, H, W], `label` [B], `index` [B] and perhaps `mask` [B, H, W].

    Iterating raises the `ToastError` of an image that cannot be read, with any number of workers; or, with `skip`,
    leaves it out.

    Raises:
        ValueError: masks are asked of a split that has none.
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
    """A loader of a data set's batches, its items put `together` into one; with `pin`, in page-locked memory."""
    seed = dataset.seed
    order = SeededShuffleSampler(len(dataset), seed) if batches.shuffle else SequentialSampler(dataset)
    return ImageLoader(
        dataset,
        batch_sampler=ShardedBatchSampler(order, batches.batch_size, batches.process, batches.processes),
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=ignore_interrupts,
        collate_fn=partial(collate_fetched, together=together),
        pin_memory=pin,
        # Its own, because a DataLoader draws its workers' seeds from the global one otherwise.
        generator=torch.Generator().manual_seed(derive_seed(seed)),
    )


def collate_fetched(fetched: Any, together: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> Any:
    """A batch's tensors, put `together`, and what was left out of it; an error as it is."""
    return fetched if isinstance(fetched, ToastError) else (together(fetched.items), fetched.skipped)


def derive_seed(*numbers: int) -> int:
    """A seed of 64 bits; neighbouring numbers give unrelated ones."""
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=8).digest(), "little")


def ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches workers as well; the run that reads from them ends its step first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
