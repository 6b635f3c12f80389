"""The loader of streamed images: tar shards, and data sets of the Hugging Face hub.

The `datasets` library opens a stream, shuffles its shards and a buffer of samples, and assigns shards to processes and
to their workers, so that no two read the same shard. This module adds batches, the same number of steps for every
process, and resuming in the middle of an epoch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate, get_worker_info

from toast_cli.data.base import Sample
from toast_cli.data.images.decode import open_image
from toast_cli.data.images.files import open_file
from toast_cli.data.images.loader import FetchedBatch, ImageDataset, collate_fetched, ignore_interrupts
from toast_cli.data.images.transforms import build_transform
from toast_cli.data.sampler import derive_seed
from toast_cli.data.streams.stream_split import StreamSplit
from toast_cli.utils.errors import ToastError, UsageError

if TYPE_CHECKING:
    from toast_cli.backbones.base import Preprocessing
    from toast_cli.data.base import BatchOptions, LoaderOptions


@dataclass(frozen=True)
class StreamedImageFile:
    """An image of a stream: its bytes, or the path or URL of its file."""

    name: str
    content: bytes | None
    path: str | None

    def __str__(self) -> str:
        return self.name

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """Return a stream of its bytes.

        Raises:
            OSError: the sample has no image, or its file cannot be read.
        """
        if self.content is not None:
            return BytesIO(self.content)
        if self.path is None:
            raise OSError(None, "The sample has no image.")
        if "://" not in self.path:
            return open_file(Path(self.path))
        import fsspec

        return fsspec.open(self.path, "rb").open()


@dataclass(frozen=True)
class StreamedImageKey:
    """The identity of an image of a stream: its name and content, as names may repeat between shards or be missing."""

    name: str
    content: bytes

    @property
    def number(self) -> int:
        """Seed of the image's augmentation, independent of worker and position."""
        key = self.name.encode(errors="surrogateescape") + b"\0" + self.content
        return int.from_bytes(blake2b(key, digest_size=7).digest(), "big")


class StreamDataset(IterableDataset[Any]):
    """One process's share of a stream, read by its workers in pieces of `size` images.

    Pieces that are certain to be skipped are counted, not decoded. With W workers, the loader receives piece j of
    worker w at position j W + w or earlier.
    """

    def __init__(self, images: ImageDataset, split: StreamSplit, batches: BatchOptions, seed: int) -> None:
        super().__init__()
        self.images, self.split = images, split
        self.size = _count_process_samples(batches, batches.batch_size)
        self.table = _shard_stream(split, batches, seed)
        # In shared memory, because persistent workers must see them change.
        self._epoch_and_offset = torch.zeros(2, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int, leave_out: int) -> None:
        """Set the epoch for shuffling and augmentation. Its first `leave_out` images need not be decoded."""
        self.images.set_epoch(epoch)
        self._epoch_and_offset[0], self._epoch_and_offset[1] = epoch, leave_out

    def __iter__(self) -> Iterator[FetchedBatch | ToastError | int]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        epoch, leave_out = self._epoch_and_offset.tolist()
        self.table.set_epoch(epoch)
        rows, skipped = iter(self.table), Counter[str]()
        while taken := list(islice(rows, self.size)):
            yield len(taken) if (number + 1) * self.size <= leave_out else self._fetch_batch(taken, skipped)
            number += workers

    def _fetch_batch(self, rows: list[Mapping[str, Any]], before: Counter[str]) -> FetchedBatch | ToastError:
        """Return a batch, or the error that prevents it: an error raised in a worker would lose its type.

        `before` counts the skipped images of this epoch by name, to distinguish images of the same name.
        """
        items, skipped, names = [], {}, {}
        for row in rows:
            key = StreamedImageKey(self.split.get_name(row), (row[self.split.image] or {}).get("bytes") or b"")
            try:
                items.append(self.images.transform_sample(load_stream_sample(self.split, row), key.number))
                names[key.number] = key.name
            except ToastError as error:
                if not self.images.skip:
                    return error
                before[key.name] += 1
                suffix = f" (number {before[key.name]} of that name)" if before[key.name] > 1 else ""
                skipped[key.name + suffix] = error.why or error.what
        return FetchedBatch(items or [self.images.make_blank_item(0)], skipped, names)


def load_stream_sample(split: StreamSplit, row: Mapping[str, Any]) -> Sample:
    """Return the decoded image of a row and its class.

    Raises:
        ToastError: the image cannot be read, or its label is not a known class.
    """
    name = split.get_name(row)
    label = split.get_label(row, name)
    cell = row[split.image] or {}
    return Sample(open_image(StreamedImageFile(name, cell.get("bytes"), cell.get("path")), split.white), label, name)


class StreamLoader:
    """Batches of a stream; `notes` describe how shards are distributed.

    A training epoch has the same number of steps in every process. A single process sees each image once. With several
    processes, one that reaches the end of its shards before the others starts again. For evaluation, every process
    reads its share once.
    """

    def __init__(
        self, dataset: StreamDataset, batches: BatchOptions, workers: int, seed: int, pin: bool = False
    ) -> None:
        self.dataset, self.batches = dataset, batches
        self.skipped: dict[str, str] = {}
        self.names: dict[int, str] = {}
        self._epoch, self._begin = 0, 0
        shards = dataset.split.table.num_shards
        apart = shards % batches.processes == 0
        workers = min(workers, shards // batches.processes if apart else shards)
        self.notes: tuple[str, ...] = (
            (_format_shard_note(dataset.split, batches.processes, workers, apart),) if batches.shuffle else ()
        )
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=ignore_interrupts,
            collate_fn=_collate_piece,
            pin_memory=pin,
            generator=torch.Generator().manual_seed(derive_seed(seed)),
        )

    def __len__(self) -> int:
        return -(-self.samples // self.batches.batch_size)

    @property
    def samples(self) -> int:
        """Number of images."""
        return len(self.dataset.split)

    def set_epoch(self, epoch: int, begin: int = 0) -> None:
        """Set the epoch for shuffling and augmentation. The next iteration skips the first `begin` batches."""
        self._epoch, self._begin = epoch, begin

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if not self.batches.shuffle:
            yield from self._iterate_pieces(0)
            return
        sizes = [self._get_process_batch_size(number) for number in range(len(self))]
        pieces = self._iterate_pieces(sum(sizes[: self._begin]))
        kept: dict[str, Any] = {}
        for size in sizes[self._begin :]:
            while not kept or len(kept["label"]) < size:
                piece = next(pieces, None)
                if piece is not None:
                    kept = {name: torch.cat([kept[name], piece[name]]) for name in piece} if kept else piece
                elif self.batches.processes > 1:
                    pieces = self._iterate_pieces(0)
                else:
                    break
            if kept:
                yield {name: tensor[:size] for name, tensor in kept.items()}
                kept = {name: tensor[size:] for name, tensor in kept.items()} if len(kept["label"]) > size else {}

    def _get_process_batch_size(self, number: int) -> int:
        """Return the size of this process's share of a batch; at least one."""
        return _count_process_samples(
            self.batches, min(self.batches.batch_size, self.samples - number * self.batches.batch_size)
        )

    def _iterate_pieces(self, leave_out: int) -> Iterator[dict[str, Any]]:
        """Yield pieces in the order of the stream, without the first `leave_out` images."""
        self.dataset.set_epoch(self._epoch, leave_out)
        for piece in self._loader:
            if isinstance(piece, ToastError):
                piece.process = self.batches.process
                raise piece
            if isinstance(piece, int):
                leave_out -= piece
                continue
            (tensors, skipped), names = piece
            self.skipped.update(skipped)
            if not self.batches.shuffle:
                self.names.update(names)
            left = min(leave_out, len(tensors["label"]))
            leave_out -= left
            if left < len(tensors["label"]):
                yield {name: tensor[left:] for name, tensor in tensors.items()} if left else tensors


def build_stream_loader(
    split: StreamSplit, preprocessing: Preprocessing, batches: BatchOptions, options: LoaderOptions
) -> StreamLoader:
    """Return a loader of a stream's images, transformed for the backbone.

    Raises:
        UsageError: an option needs random access to images, or the batch size is too small.
    """
    if batches.views is not None:
        raise UsageError(
            "training.cache does not support streams, which have no random access to images.",
            what_to_do="Remove training.cache, or unpack the data.",
            code="data.not-with-streaming",
        )
    if batches.batch_size < batches.processes:
        raise UsageError(
            f"A batch size of {batches.batch_size} is too small for {batches.processes} processes.",
            what_to_do="Raise training.batch_size and training.eval_batch_size, or start fewer processes.",
            code="training.batch-too-small",
        )
    if options.images.cache:
        raise UsageError(
            "images.cache does not support streams.",
            what_to_do="Remove images.cache.",
            code="data.not-with-streaming",
        )
    transform = build_transform(options.images, preprocessing, train=batches.augment)
    images = ImageDataset(split, transform, options.seed, skip=options.images.on_error == "skip")  # type: ignore[arg-type]
    dataset = StreamDataset(images, split, batches, options.seed)
    return StreamLoader(dataset, batches, options.workers, options.seed, options.pin_memory)


def _shard_stream(split: StreamSplit, batches: BatchOptions, seed: int) -> Any:
    """Return this process's share of the stream, shuffled if `batches.shuffle`."""
    from datasets.distributed import split_dataset_by_node

    table = split.table
    if batches.shuffle:
        table = table.shuffle(seed=derive_seed(seed) % 2**32, buffer_size=split.shuffle_buffer)
    return split_dataset_by_node(table, rank=batches.process, world_size=batches.processes)


def _count_process_samples(batches: BatchOptions, whole: int) -> int:
    """Return how many samples of a global batch belong to this process; at least one."""
    begin, end = (-(-whole * process // batches.processes) for process in (batches.process, batches.process + 1))
    return max(end - begin, 1)


def _collate_piece(piece: Any) -> Any:
    if isinstance(piece, int | ToastError):
        return piece
    return collate_fetched(piece, default_collate), piece.names


def _format_shard_note(split: StreamSplit, processes: int, workers: int, apart: bool) -> str:
    shards, readers = split.table.num_shards, processes * max(workers, 1)
    note = (
        f"{split.where}: {len(split):,} images streamed from {shards:,} shards by {readers} "
        f"reader{'s' * (readers > 1)}, shuffled {split.shuffle_buffer:,} at a time"
    )
    if apart:
        return note
    return (
        f"{note}; {shards:,} shards are not divisible by {processes} processes, so each reads all of them and keeps "
        "its share of the images, which is slower"
    )
