"""Batches of indices, sharded over the processes of a run: every sample goes to exactly one process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

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
