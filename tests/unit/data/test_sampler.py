from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
import torch
from torch.utils.data import SequentialSampler

from toast_cli.data.sampler import BalancedSampler, SeededShuffleSampler, ShardedBatchSampler
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import UsageError


def shares(samples: int, batch: int, processes: int) -> list[ShardedBatchSampler]:
    return [
        ShardedBatchSampler(SequentialSampler(range(samples)), batch, process, processes)
        for process in range(processes)
    ]


def filled(share: ShardedBatchSampler) -> list[list[int]]:
    """The indices of a share's batches that are not there to be ignored."""
    batches = (
        {"index": part, "label": torch.zeros(len(part), dtype=torch.long), "labels": torch.zeros(len(part), 2)}
        for part in share
    )
    seen = []
    for batch in share.mask_surplus_labels(batches):
        ignored = bool((batch["label"] == IGNORE_INDEX).all())
        assert bool(batch["labels"].isnan().all()) is ignored, "-100 may be a number of the data"
        seen.append([] if ignored else batch["index"])
    return seen


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize(("samples", "batch"), [(12, 4), (13, 4), (14, 5), (3, 8), (1, 3)])
def test_processes_see_together_in_each_step_what_one_would_see(samples: int, batch: int, processes: int) -> None:
    alone = filled(shares(samples, batch, 1)[0])
    together = [list(chain(*parts)) for parts in zip(*map(filled, shares(samples, batch, processes)), strict=True)]
    assert together == alone
    assert list(chain(*alone)) == list(range(samples))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_all_processes_take_the_same_number_of_steps(processes: int) -> None:
    for share in shares(13, 6, processes):
        assert len(list(share)) == len(share) == 3
        assert all(share)


def test_a_process_without_a_part_gets_one_sample_to_ignore() -> None:
    busy, idle = shares(5, 4, 2)
    assert list(idle)[-1] == [4]
    assert filled(idle)[-1] == []
    assert filled(busy)[-1] == [4]


def test_all_processes_shuffle_alike_and_differently_every_epoch() -> None:
    first, second = (ShardedBatchSampler(SeededShuffleSampler(20, seed=3), 8, process, 2) for process in (0, 1))
    epochs = []
    for epoch in (1, 2):
        first.set_epoch(epoch)
        second.set_epoch(epoch)
        epochs.append([a + b for a, b in zip(first, second, strict=True)])
        assert sorted(chain(*epochs[-1])) == list(range(20))
    assert epochs[0] != epochs[1]


def test_a_batch_smaller_than_the_processes_is_refused() -> None:
    with pytest.raises(UsageError) as refused:
        ShardedBatchSampler(SequentialSampler(range(9)), 2, 0, 3)
    assert refused.value.code == "training.batch-too-small"
    assert "2" in refused.value.what and "3 processes" in refused.value.what


LABELS = [0] * 11 + [2] * 3 + [5]


def test_a_balanced_epoch_has_every_class_equally_often_and_every_sample_of_a_class_alike() -> None:
    sampler = BalancedSampler(LABELS, seed=3)
    epochs = []
    for epoch in (1, 2, 1):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        drawn = [index % len(LABELS) for index in epochs[-1]]
        assert Counter(LABELS[index] for index in drawn) == {0: 5, 2: 5, 5: 5} and len(drawn) == len(sampler)
        times = Counter(drawn)
        assert len(set(drawn) & set(range(11))) == 5 and times[14] == 5
        assert sorted(times[index] for index in (11, 12, 13)) == [1, 2, 2]
        assert len(set(epochs[-1])) == len(drawn)  # repeated draws differ, so that their augmentations do
    assert epochs[0] == epochs[2] != epochs[1]
    assert list(BalancedSampler(LABELS, seed=4)) != list(BalancedSampler(LABELS, seed=3))


def test_processes_share_a_balanced_epoch_and_resume_within_it() -> None:
    alone, *pair = (ShardedBatchSampler(BalancedSampler(LABELS, 3), 4, *place) for place in ((0, 1), (0, 2), (1, 2)))
    for share in (alone, *pair):
        share.set_epoch(7)
    whole = list(alone)
    assert [a + b for a, b in zip(*pair, strict=True)][:-1] == whole[:-1]  # the last batch is a single sample
    alone.set_epoch(7, 2)
    assert list(alone) == whole[2:]
