"""The order of samples in an epoch, and batches of indices, sharded over the processes of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import UsageError


class ShardedBatchSampler(Sampler[list[int]]):
    """A sampler of one process's share of every batch.

    Global batches do not depend on the number of processes. Each process takes a contiguous range of every batch, so
    all processes together see the same samples in the same steps as a single one. If the last batch has fewer samples
    than there are processes, a process without a share takes one sample, and `fill` sets its labels to `IGNORE_INDEX`.
    All processes therefore take the same number of steps.

    Raises:
        UsageError: `batch_size` is smaller than `processes`.
    """

    def __init__(self, sampler: Sampler[int], batch_size: int, process: int = 0, processes: int = 1) -> None:
        if batch_size < processes:
            raise UsageError(
                f"A batch size of {batch_size} is too small for {processes} processes.",
                "Batch sizes in a recipe are totals over all processes.",
                "Raise training.batch_size and training.eval_batch_size, or start fewer processes.",
                code="training.batch-too-small",
            )
        self.sampler = sampler
        self.batch_size = batch_size
        self.process = process
        self.processes = processes
        self._begin = 0

    def set_epoch(self, epoch: int, begin: int = 0) -> None:
        """Set the epoch for shuffling. The next iteration skips the first `begin` batches."""
        self._begin = begin
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self._iterate_batches(), self._begin, None)

    def _iterate_batches(self) -> Iterator[list[int]]:
        batch: list[int] = []
        for index in self.sampler:
            batch.append(index)
            if len(batch) == self.batch_size:
                yield self._get_process_share(batch)
                batch = []
        if batch:
            yield self._get_process_share(batch)

    def mask_surplus_labels(self, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield `batches`; set labels to `IGNORE_INDEX`, numbers to NaN, in a batch without a share of this process."""
        for number, batch in enumerate(batches, self._begin):
            size = min(self.batch_size, len(self.sampler) - number * self.batch_size)  # type: ignore[arg-type]
            begin, end = self._share_bounds(size)
            if begin == end:
                for name in ("label", "labels"):
                    if name in batch:
                        batch[name].fill_(float("nan") if batch[name].is_floating_point() else IGNORE_INDEX)
            yield batch

    def _get_process_share(self, batch: list[int]) -> list[int]:
        begin, end = self._share_bounds(len(batch))
        return batch[begin:end] or batch[:1]

    def _share_bounds(self, size: int) -> tuple[int, int]:
        # Rounded up: the first process, which reports for all, always has a share.
        return -(-size * self.process // self.processes), -(-size * (self.process + 1) // self.processes)


class SeededShuffleSampler(Sampler[int]):
    """A sampler of all indices in an order that depends only on (seed, epoch)."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch for shuffling, from the next iteration on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        return iter(torch.randperm(self.count, generator=generator).tolist())


class BalancedSampler(SeededShuffleSampler):
    """A sampler that draws every class equally often in an epoch, in an order that depends only on (seed, epoch).

    An epoch has as many draws as there are samples, rounded up to a multiple of the classes. Of a large class, an epoch
    has a random part. The samples of a small class return, and the numbers of draws within a class differ by at most
    one. With n samples, the index of a repeated draw is higher by n for each earlier one.
    """

    def __init__(self, labels: Sequence[int], seed: int) -> None:
        members: dict[int, list[int]] = {}
        for index, label in enumerate(labels):
            members.setdefault(label, []).append(index)
        self.samples = len(labels)
        self.members = [torch.tensor(members[label]) for label in sorted(members)]
        self.draws = -(-self.samples // len(members))
        """Draws of each class in an epoch."""
        super().__init__(self.draws * len(members), seed)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        drawn = torch.cat([self._draw_class(indices, generator) for indices in self.members])
        return iter(drawn[torch.randperm(len(drawn), generator=generator)].tolist())

    def _draw_class(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        rounds = -(-self.draws // len(indices))
        orders = [
            indices[torch.randperm(len(indices), generator=generator)] + turn * self.samples for turn in range(rounds)
        ]
        return torch.cat(orders)[: self.draws]


def derive_seed(*numbers: int) -> int:
    """Return a 64-bit seed hashed from the numbers, so that nearby numbers give unrelated seeds."""
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=8).digest(), "little")
