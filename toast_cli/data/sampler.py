"""Batches shared out among the processes of a run: every sample in one of them, none twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from torch.utils.data import Sampler

from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import UsageError


class ShardedBatchSampler(Sampler[list[int]]):
    """One process's part of every batch of indices.

    Batches are those that a single process would see; each process takes a stretch of every one, so that together they
    see the same samples in the same steps. Where a last batch is too small to go round, a process without a part is
    given one sample whose labels are to be ignored (`fill`): all processes then take the same number of steps.

    Raises:
        UsageError: a whole batch is too small to go round.
    """

    def __init__(self, sampler: Sampler[int], batch_size: int, process: int = 0, processes: int = 1) -> None:
        if batch_size < processes:
            raise UsageError(
                f"A batch of {batch_size} cannot be shared by {processes} processes.",
                "Batch sizes in a recipe are for all processes together.",
                "Raise training.batch_size and training.eval_batch_size, or start fewer processes.",
                code="training.batch-too-small",
            )
        self.sampler = sampler
        self.batch_size = batch_size
        self.process = process
        self.processes = processes
        self._begin = 0

    def set_epoch(self, epoch: int, begin: int = 0) -> None:
        """Shuffle as in this epoch, if anything is shuffled, and leave its first `begin` batches out."""
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
                yield self._part(batch)
                batch = []
        if batch:
            yield self._part(batch)

    def fill(self, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The batches made of these indices, with labels ignored where there was no part for this process."""
        for number, batch in enumerate(batches, self._begin):
            size = min(self.batch_size, len(self.sampler) - number * self.batch_size)  # type: ignore[arg-type]
            begin, end = self._stretch(size)
            if begin == end:
                for name in ("label", "labels"):
                    if name in batch:
                        batch[name].fill_(IGNORE_INDEX)
            yield batch

    def _part(self, batch: list[int]) -> list[int]:
        begin, end = self._stretch(len(batch))
        return batch[begin:end] or batch[:1]

    def _stretch(self, size: int) -> tuple[int, int]:
        # Rounded up, so that the first process, which speaks for all, always has something to speak of.
        return -(-size * self.process // self.processes), -(-size * (self.process + 1) // self.processes)
