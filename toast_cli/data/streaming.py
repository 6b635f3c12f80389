"""Images that are read from front to end, because there are too many to look up: shards, and data sets of the hub.

The `datasets` library opens them, shuffles their shards and a buffer of samples, and deals shards out to processes and
to the workers of each, so that no two read the same one. What is added here: batches as everywhere else, the same
number of steps for every process, and an epoch that can be gone on with in its middle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from io import BytesIO
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, Literal

import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate, get_worker_info

from toast_cli.data.images import open_image
from toast_cli.data.loading import Fetched, LabelledImages, collate, image_transform, mixed, quiet_worker
from toast_cli.data.source import Sample
from toast_cli.data.streams import StreamSplit
from toast_cli.errors import ToastError, UsageError

if TYPE_CHECKING:
    from toast_cli.backbone import Backbone
    from toast_cli.data.source import Asked
    from toast_cli.recipe.schema import Recipe


@dataclass(frozen=True)
class Streamed:
    """One image of a stream, as `open_image` takes it."""

    name: str
    content: bytes | None

    def __str__(self) -> str:
        return self.name

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """Its bytes.

        Raises:
            OSError: there are none.
        """
        if self.content is None:
            raise OSError(None, "The sample has no image.")
        return BytesIO(self.content)


@dataclass(frozen=True)
class Place:
    """Where a row's image comes from: its name, and a number that goes with the name alone."""

    name: str

    @property
    def number(self) -> int:
        """What the augmentation of the image is drawn by, whoever reads it and when."""
        return int.from_bytes(blake2b(self.name.encode(errors="surrogateescape"), digest_size=7).digest(), "big")


class StreamedImages(IterableDataset[Any]):
    """Batches of one process, made by its workers: each the numbers `w`, `w + W`, ... of W workers.

    With `endless`, a reader that has come to the end of its shards before its last batch starts over; a reader that
    has not leaves the rest out. Without, each reads what it has once.
    """

    def __init__(self, images: LabelledImages, split: StreamSplit, asked: Asked, seed: int) -> None:
        super().__init__()
        self.images, self.split, self.asked = images, split, asked
        self.endless = asked.shuffle
        self.table = _part_of(split, asked, seed)
        # In shared memory, so that workers that live on from epoch to epoch see them change.
        self._at = torch.zeros(2, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int, begin: int) -> None:
        """Shuffle and augment as in this epoch from now on, and leave its first `begin` batches out."""
        self.images.set_epoch(epoch)
        self._at[0], self._at[1] = epoch, begin

    def __iter__(self) -> Iterator[Fetched | ToastError]:
        worker = get_worker_info()
        first, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        epoch, begin = self._at.tolist()
        self.table.set_epoch(epoch)
        rows = self._rows()
        steps = -(-len(self.split) // self.asked.batch_size)
        number = first
        while number < steps or not self.endless:
            taken = list(islice(rows, self._size(number)))
            if not taken:
                return
            if number >= begin:
                yield self._fetched(taken)
            number += workers

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        while True:
            empty = True
            for row in self.table:
                empty = False
                yield row
            if not self.endless or empty:
                return

    def _size(self, number: int) -> int:
        """Of this process's part of a batch. Where one is too small to go round, a process without a part takes one."""
        asked, whole = self.asked, self.asked.batch_size
        if self.endless:
            whole = min(whole, len(self.split) - number * whole)
        begin, end = (-(-whole * process // asked.processes) for process in (asked.process, asked.process + 1))
        return max(end - begin, 1)

    def _fetched(self, rows: list[Mapping[str, Any]]) -> Fetched | ToastError:
        """A batch. An error is handed on: raised in a worker, it would arrive as a traceback's text."""
        items, skipped = [], {}
        for row in rows:
            place = Place(self.split.name_of(row))
            try:
                items.append(self.images.item(self._sample(row, place.name), place.number))
            except ToastError as error:
                if not self.images.skip:
                    return error
                skipped[place.name] = error.why or error.what
        return Fetched(items or [self.images.blank(0)], skipped)

    def _sample(self, row: Mapping[str, Any], name: str) -> Sample:
        label = self.split.label_of(row, name)
        cell = row[self.split.image] or {}
        if cell.get("bytes") is None and cell.get("path"):
            raise ToastError(f"The image {name} is not in the stream.", f"It is a path: {cell['path']}.")
        return Sample(open_image(Streamed(name, cell.get("bytes"))), label, name)


def _part_of(split: StreamSplit, asked: Asked, seed: int) -> Any:
    """What this process reads of the stream, shuffled where that is asked for."""
    from datasets.distributed import split_dataset_by_node

    table = split.table
    if asked.shuffle:
        table = table.shuffle(seed=mixed(seed) % 2**32, buffer_size=split.shuffle_buffer)
    return split_dataset_by_node(table, rank=asked.process, world_size=asked.processes)


class StreamLoader:
    """Batches of a stream; `notes` say how shards go round."""

    def __init__(self, dataset: StreamedImages, workers: int, seed: int) -> None:
        self.dataset = dataset
        self.skipped: dict[str, str] = {}
        split, asked = dataset.split, dataset.asked
        shards = split.table.num_shards
        apart = shards % asked.processes == 0
        workers = min(workers, shards // asked.processes if apart else shards)
        self.notes = tuple(_notes(split, asked, max(workers, 1))) if dataset.endless else ()
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=quiet_worker,
            collate_fn=partial(collate, together=default_collate),
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(mixed(seed)),
        )

    def __len__(self) -> int:
        return -(-len(self.dataset.split) // self.dataset.asked.batch_size)

    @property
    def samples(self) -> int:
        """Images."""
        return len(self.dataset.split)

    def set_epoch(self, epoch: int, begin: int = 0) -> None:
        """Shuffle and augment as in this epoch, from the next iteration on, which leaves `begin` batches out."""
        self.dataset.set_epoch(epoch, begin)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._loader:
            if isinstance(batch, ToastError):
                batch.process = self.dataset.asked.process
                raise batch
            tensors, skipped = batch
            self.skipped.update(skipped)
            yield tensors


def stream_batches(split: Any, recipe: Recipe, backbone: Backbone, asked: Asked) -> StreamLoader:
    """Images as the recipe and the backbone want them, in the order of the stream.

    Raises:
        UsageError: the recipe asks for what a stream cannot give.
    """
    if recipe.training.cache:
        raise UsageError(
            "training.cache keeps what belongs to each image, and a stream has no place for any.",
            what_to_do="Leave training.cache out, or unpack the data.",
        )
    if asked.batch_size < asked.processes:
        raise UsageError(
            f"A batch of {asked.batch_size} cannot be shared by {asked.processes} processes.",
            what_to_do="Raise training.batch_size and training.eval_batch_size, or start fewer processes.",
        )
    transform = image_transform(recipe, backbone, asked)
    images = LabelledImages(split, transform, recipe.seed, skip=recipe.images.on_error == "skip")
    dataset = StreamedImages(images, split, replace(asked, with_masks=False), recipe.seed)
    return StreamLoader(dataset, recipe.training.workers, recipe.seed)


def _notes(split: StreamSplit, asked: Asked, workers: int) -> Iterator[str]:
    shards, processes, readers = split.table.num_shards, asked.processes, asked.processes * workers
    yield (
        f"{split.where}: {len(split):,} images streamed from {shards:,} shards by {readers} "
        f"reader{'s' * (readers > 1)}, shuffled {split.shuffle_buffer:,} at a time"
    )
    if shards % processes:
        yield (
            f"{split.where}: {shards:,} shards do not go evenly into {processes} processes, so each reads all of them "
            "and keeps its part: slower, and still none sees an image of another"
        )
    elif shards % readers:
        yield (
            f"{split.where}: {shards:,} shards do not go evenly into {readers} readers, so an epoch shows some images "
            "twice and leaves others out"
        )
