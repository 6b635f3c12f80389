"""Images that are read from front to end, because there are too many to look up: shards, and data sets of the hub.

The `datasets` library opens them, shuffles their shards and a buffer of samples, and deals shards out to processes and
to the workers of each, so that no two read the same one. What is added here: batches as everywhere else, the same
number of steps for every process, and an epoch that can be gone on with in its middle.
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
from toast_cli.data.images.loader import FetchedBatch, ImageDataset, collate_fetched, derive_seed, ignore_interrupts
from toast_cli.data.images.transforms import build_transform
from toast_cli.data.streams.dataset import StreamSplit
from toast_cli.utils.errors import ToastError, UsageError

if TYPE_CHECKING:
    from toast_cli.backbones.base import Preprocessing
    from toast_cli.data.base import BatchOptions, LoaderOptions


@dataclass(frozen=True)
class StreamedImageFile:
    """One image of a stream, as `open_image` takes it: its bytes, or where they are."""

    name: str
    content: bytes | None
    path: str | None

    def __str__(self) -> str:
        return self.name

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """Its bytes.

        Raises:
            OSError: there are none.
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
    """Where a row's image comes from: its name, and a number that goes with name and content alone.

    Names may repeat from shard to shard, or be missing.
    """

    name: str
    content: bytes

    @property
    def number(self) -> int:
        """What the augmentation of the image is drawn by, whoever reads it and when."""
        told = self.name.encode(errors="surrogateescape") + b"\0" + self.content
        return int.from_bytes(blake2b(told, digest_size=7).digest(), "big")


class StreamDataset(IterableDataset[Any]):
    """What one process reads of a stream, by its workers, in pieces of `size` images.

    Pieces that are sure to be left out are counted and not decoded: of W workers, number w's piece number j comes to
    the loader as number j W + w, or before.
    """

    def __init__(self, images: ImageDataset, split: StreamSplit, batches: BatchOptions, seed: int) -> None:
        super().__init__()
        self.images, self.split = images, split
        self.size = _count_process_samples(batches, batches.batch_size)
        self.table = _shard_stream(split, batches, seed)
        # In shared memory, so that workers that live on from epoch to epoch see them change.
        self._epoch_and_offset = torch.zeros(2, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int, leave_out: int) -> None:
        """Shuffle and augment as in this epoch from now on; its first so many images need not be decoded."""
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
        """A batch; `before` counts what was left out in this epoch, by name: of one name, each is another image.

        An error is handed on: raised in a worker, it would arrive as a traceback's text.
        """
        items, skipped = [], {}
        for row in rows:
            place = StreamedImageKey(self.split.name_of(row), (row[self.split.image] or {}).get("bytes") or b"")
            try:
                items.append(self.images.item(load_stream_sample(self.split, row), place.number))
            except ToastError as error:
                if not self.images.skip:
                    return error
                before[place.name] += 1
                more = f" (number {before[place.name]} of that name)" if before[place.name] > 1 else ""
                skipped[place.name + more] = error.why or error.what
        return FetchedBatch(items or [self.images.blank(0)], skipped)


def load_stream_sample(split: StreamSplit, row: Mapping[str, Any]) -> Sample:
    """The image of a row, decoded, and its class.

    Raises:
        ToastError: it cannot be read, or has no class that is known.
    """
    name = split.name_of(row)
    label = split.label_of(row, name)
    cell = row[split.image] or {}
    return Sample(open_image(StreamedImageFile(name, cell.get("bytes"), cell.get("path"))), label, name)


class StreamLoader:
    """Batches of a stream; `notes` say how shards go round.

    An epoch has the same number of steps for every process. One alone sees each image once in it; of several, one that
    comes to the end of its shards before the others starts over. To be measured on, a stream is read once by all.
    """

    def __init__(
        self, dataset: StreamDataset, batches: BatchOptions, workers: int, seed: int, pin: bool = False
    ) -> None:
        self.dataset, self.batches = dataset, batches
        self.skipped: dict[str, str] = {}
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
        """Images."""
        return len(self.dataset.split)

    def set_epoch(self, epoch: int, begin: int = 0) -> None:
        """Shuffle and augment as in this epoch, from the next iteration on, which leaves `begin` batches out."""
        self._epoch, self._begin = epoch, begin

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if not self.batches.shuffle:
            yield from self._iterate_pieces(0)
            return
        sizes = [self._size(number) for number in range(len(self))]
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

    def _size(self, number: int) -> int:
        """Of this process's part of a batch. Where one is too small to go round, a process without a part takes one."""
        return _count_process_samples(
            self.batches, min(self.batches.batch_size, self.samples - number * self.batches.batch_size)
        )

    def _iterate_pieces(self, leave_out: int) -> Iterator[dict[str, Any]]:
        """Images in the order of the stream, without the first so many."""
        self.dataset.set_epoch(self._epoch, leave_out)
        for piece in self._loader:
            if isinstance(piece, ToastError):
                piece.process = self.batches.process
                raise piece
            if isinstance(piece, int):
                leave_out -= piece
                continue
            tensors, skipped = piece
            self.skipped.update(skipped)
            left = min(leave_out, len(tensors["label"]))
            leave_out -= left
            if left < len(tensors["label"]):
                yield {name: tensor[left:] for name, tensor in tensors.items()} if left else tensors


def build_stream_loader(
    split: StreamSplit, preprocessing: Preprocessing, batches: BatchOptions, options: LoaderOptions
) -> StreamLoader:
    """Return batches of a stream's images in the order of the stream, transformed for the backbone.

    Raises:
        UsageError: an option needs images that can be looked up, or sizes do not fit.
    """
    if batches.views is not None:
        raise UsageError(
            "training.cache keeps what belongs to each image, and a stream has no place for any.",
            what_to_do="Leave training.cache out, or unpack the data.",
            code="data.not-with-streaming",
        )
    if batches.batch_size < batches.processes:
        raise UsageError(
            f"A batch of {batches.batch_size} cannot be shared by {batches.processes} processes.",
            what_to_do="Raise training.batch_size and training.eval_batch_size, or start fewer processes.",
            code="training.batch-too-small",
        )
    if options.images.cache:
        raise UsageError(
            "images.cache keeps image files, and a stream has none.",
            what_to_do="Leave it out.",
            code="data.not-with-streaming",
        )
    transform = build_transform(options.images, preprocessing, train=batches.augment)
    images = ImageDataset(split, transform, options.seed, skip=options.images.on_error == "skip")  # type: ignore[arg-type]
    dataset = StreamDataset(images, split, batches, options.seed)
    return StreamLoader(dataset, batches, options.workers, options.seed, options.pin_memory)


def _shard_stream(split: StreamSplit, batches: BatchOptions, seed: int) -> Any:
    """What this process reads of the stream, shuffled where that is batches for."""
    from datasets.distributed import split_dataset_by_node

    table = split.table
    if batches.shuffle:
        table = table.shuffle(seed=derive_seed(seed) % 2**32, buffer_size=split.shuffle_buffer)
    return split_dataset_by_node(table, rank=batches.process, world_size=batches.processes)


def _count_process_samples(batches: BatchOptions, whole: int) -> int:
    """How many of a whole batch are this process's; at least one."""
    begin, end = (-(-whole * process // batches.processes) for process in (batches.process, batches.process + 1))
    return max(end - begin, 1)


def _collate_piece(piece: Any) -> Any:
    return piece if isinstance(piece, int) else collate_fetched(piece, default_collate)


def _format_shard_note(split: StreamSplit, processes: int, workers: int, apart: bool) -> str:
    shards, readers = split.table.num_shards, processes * max(workers, 1)
    note = (
        f"{split.where}: {len(split):,} images streamed from {shards:,} shards by {readers} "
        f"reader{'s' * (readers > 1)}, shuffled {split.shuffle_buffer:,} at a time"
    )
    if apart:
        return note
    return (
        f"{note}; {shards:,} shards do not go evenly into {processes} processes, so each reads all of them and keeps "
        "its part: slower, and still none sees an image of another"
    )
