"""Batches of images, the same whatever number of processes decodes them.

What an epoch shows depends on (seed, epoch) and what augmentation does to an image on (seed, epoch, index): neither
on a worker's random state. Nothing here draws from the generators that the model's own randomness comes from.
"""

from __future__ import annotations

import signal
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler, default_collate

from toast_cli.data.sharing import Share
from toast_cli.data.transforms import build_transform
from toast_cli.errors import ToastError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from PIL.Image import Image

    from toast_cli.backbone import Backbone
    from toast_cli.data.source import Asked, ImageSplit
    from toast_cli.recipe.schema import Recipe

    Transform = Callable[[Image, np.ndarray | None], tuple[Tensor, Tensor | None]]


class LabelledImages(Dataset[dict[str, Any]]):
    """A split through a transform: `image` [3, H, W], `label`, `index` and, if asked for, `mask` [H, W] bool.

    Raises:
        ValueError: masks are asked of a split that has none.
    """

    def __init__(self, split: ImageSplit, transform: Transform, seed: int = 0, with_masks: bool = False) -> None:
        if with_masks and not split.has_masks:
            raise ValueError("this split has no masks")
        self.split = split
        self.transform = transform
        self.seed = seed
        self.with_masks = with_masks
        # In shared memory, so that workers that live on from epoch to epoch see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Augment as in this epoch from now on."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.split.load(index)
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: that one would reseed the GPU too, which fork_rng does not restore here.
            torch.default_generator.manual_seed(_mixed(self.seed, int(self._epoch), index))
            image, mask = self.transform(sample.image, sample.mask if self.with_masks else None)
        item = {"image": image, "label": sample.label, "index": index}
        return {**item, "mask": mask} if self.with_masks else item

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]] | ToastError:
        """A batch for the loader. An error is handed on: raised in a worker, it would arrive as a traceback's text."""
        try:
            return [self[index] for index in indices]
        except ToastError as error:
            return error


class Shuffled(Sampler[int]):
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
        generator = torch.Generator().manual_seed(_mixed(self.seed, self.epoch))
        return iter(torch.randperm(self.count, generator=generator).tolist())


class ImageLoader(DataLoader[dict[str, Any]]):
    """A DataLoader whose workers' errors are raised here as they were."""

    notes: tuple[str, ...] = ()
    dataset: LabelledImages
    batch_sampler: Share

    def set_epoch(self, epoch: int, begin: int = 0) -> None:
        """Shuffle and augment as in this epoch, from the next iteration on, which leaves `begin` batches out."""
        self.dataset.set_epoch(epoch)
        self.batch_sampler.set_epoch(epoch, begin)

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
            yield batch


def image_batches(split: ImageSplit, recipe: Recipe, backbone: Backbone, asked: Asked) -> ImageLoader:
    """Images as the recipe and the backbone want them.

    Raises:
        UsageError: the backbone does not look at images, or the recipe asks for sizes that do not fit.
    """
    return make_loader(
        split,
        build_transform(recipe.images, backbone.require_preprocessing(), train=asked.augment),
        asked,
        seed=recipe.seed,
        workers=recipe.training.workers,
    )


def make_loader(
    split: ImageSplit,
    transform: Transform,
    asked: Asked,
    seed: int,
    workers: int,
) -> ImageLoader:
    """A loader of batches: `image` [B, 3, H, W], `label` [B], `index` [B] and perhaps `mask` [B, H, W].

    Iterating raises the `ToastError` of an image that cannot be read, with any number of workers.

    Raises:
        ValueError: masks are asked of a split that has none.
    """
    dataset = LabelledImages(split, transform, seed, asked.with_masks)
    order = Shuffled(len(dataset), seed) if asked.shuffle else SequentialSampler(dataset)
    return ImageLoader(
        dataset,
        batch_sampler=Share(order, asked.batch_size, asked.process, asked.processes),
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_leave_stopping_to_the_main_process,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        # Its own, because a DataLoader draws its workers' seeds from the global one otherwise.
        generator=torch.Generator().manual_seed(_mixed(seed)),
    )


def _collate(items: list[dict[str, Any]] | ToastError) -> Any:
    return items if isinstance(items, ToastError) else default_collate(items)


def _mixed(*numbers: int) -> int:
    """A seed of 64 bits; neighbouring numbers give unrelated ones."""
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=8).digest(), "little")


def _leave_stopping_to_the_main_process(worker: int) -> None:
    """Ctrl-C reaches workers as well; the run that reads from them ends its step first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
