from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from toast_cli.backbones.base import Preprocessing
from toast_cli.backbones.image_options import ImageOptions
from toast_cli.data.base import BatchOptions, Sample
from toast_cli.data.images.labelled_files import FileSplit
from toast_cli.data.images.loader import ImageDataset, ImageLoader, make_image_loader
from toast_cli.data.images.transforms import ImageTransform, build_transform
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import ToastError, UsageError

COUNT = 10


@dataclass(frozen=True)
class Noise:
    """A split in memory: image i is noise, labelled i % 3, its mask a row of i + 1 pixels."""

    has_masks: bool = True
    labels: tuple[int, ...] = tuple(i % 3 for i in range(COUNT))
    names: tuple[str, ...] = tuple(map(str, range(COUNT)))

    def __len__(self) -> int:
        return COUNT

    def load(self, index: int) -> Sample:
        pixels = np.random.default_rng(index).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        mask = np.zeros((20, 24), dtype=bool)
        mask[10, 3 : 4 + index] = True
        return Sample(Image.fromarray(pixels), self.labels[index], self.names[index], mask if self.has_masks else None)


class Unreadable(Noise):
    def load(self, index: int) -> Sample:
        if index == 7:
            raise UsageError("Image 7 is bad.", "It is.", "Mend it.")
        return super().load(index)


def transform(train: bool = True) -> ImageTransform:
    half = (0.5, 0.5, 0.5)
    return build_transform(ImageOptions(augment="crop-flip"), Preprocessing((16, 16), half, half), train)


def loader(workers: int = 0, seed: int = 0, shuffle: bool = True) -> ImageLoader:
    return make_image_loader(Noise(), transform(), BatchOptions(4, shuffle=shuffle), seed, workers)


def epoch(batches: ImageLoader, number: int) -> list[dict[str, Tensor]]:
    batches.set_epoch(number)
    return list(batches)


def same(first: list[dict[str, Tensor]], second: list[dict[str, Tensor]]) -> bool:
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(first, second, strict=True)
    )


def order(batches: list[dict[str, Tensor]]) -> list[int]:
    return torch.cat([batch["index"] for batch in batches]).tolist()


def by_index(batches: list[dict[str, Tensor]]) -> dict[int, Tensor]:
    return {int(i): image for batch in batches for i, image in zip(batch["index"], batch["image"], strict=True)}


@pytest.fixture(scope="module")
def two_workers() -> Iterator[ImageLoader]:
    yield loader(workers=2)


def test_a_batch_has_images_labels_and_indices() -> None:
    batch = next(iter(loader(shuffle=False)))
    assert batch.keys() == {"image", "label", "index", "view"}
    assert (batch["image"].shape, batch["image"].dtype) == ((4, 3, 16, 16), torch.float32)
    assert batch["label"].tolist() == [0, 1, 2, 0]
    assert batch["index"].tolist() == [0, 1, 2, 3]
    assert batch["label"].dtype == batch["index"].dtype == torch.int64


def test_masks_come_along_when_asked_for() -> None:
    batches = make_image_loader(Noise(), transform(train=False), BatchOptions(4, with_masks=True), seed=0, workers=0)
    batch = next(iter(batches))
    assert (batch["mask"].shape, batch["mask"].dtype) == ((4, 16, 16), torch.bool)
    assert batch["mask"].flatten(1).sum(1).diff().gt(0).any()


def test_masks_cannot_be_asked_of_a_split_without_any() -> None:
    with pytest.raises(ValueError, match="no masks"):
        make_image_loader(Noise(has_masks=False), transform(), BatchOptions(4, with_masks=True), seed=0, workers=0)


def test_every_image_comes_once_in_batches_of_which_the_last_may_be_short() -> None:
    batches = epoch(loader(), 0)
    assert sorted(order(batches)) == list(range(COUNT))
    assert [len(batch["label"]) for batch in batches] == [4, 4, 2]


@pytest.mark.e2e
@pytest.mark.parametrize("number", [0, 1, 2])
def test_workers_change_neither_order_nor_augmentation(two_workers: ImageLoader, number: int) -> None:
    assert same(epoch(loader(), number), epoch(two_workers, number))


@pytest.mark.e2e
def test_epochs_differ_in_order_and_in_augmentation(two_workers: ImageLoader) -> None:
    first, second = epoch(two_workers, 1), epoch(two_workers, 2)
    assert order(first) != order(second)
    images, later = by_index(first), by_index(second)
    assert sum(not torch.equal(images[i], later[i]) for i in range(COUNT)) > COUNT // 2


@pytest.mark.e2e
def test_an_epoch_can_be_repeated(two_workers: ImageLoader) -> None:
    first = epoch(two_workers, 1)
    epoch(two_workers, 2)
    assert same(first, epoch(two_workers, 1))


@pytest.mark.e2e
def test_an_epoch_that_was_left_early_does_not_leak_into_the_next(two_workers: ImageLoader) -> None:
    two_workers.set_epoch(3)
    next(iter(two_workers))
    assert same(epoch(two_workers, 1), epoch(loader(), 1))


def test_the_seed_decides_order_and_augmentation() -> None:
    assert same(epoch(loader(seed=5), 1), epoch(loader(seed=5), 1))
    first, second = epoch(loader(seed=5), 1), epoch(loader(seed=6), 1)
    assert order(first) != order(second)
    images, other = by_index(first), by_index(second)
    assert sum(not torch.equal(images[i], other[i]) for i in range(COUNT)) > COUNT // 2


def test_images_of_one_epoch_are_augmented_differently() -> None:
    class Same(Noise):
        def load(self, index: int) -> Sample:
            return super().load(0)

    images = ImageDataset(Same(), transform())
    assert len({tuple(images[i]["image"].flatten().tolist()) for i in range(COUNT)}) > COUNT // 2


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.e2e)])
def test_loading_leaves_the_models_randomness_alone(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.getpid()

    def forbidden(seed: int) -> None:
        assert os.getpid() != own, "the GPU's generator was reseeded"  # a worker's own is of no use to anyone

    batches = loader(workers)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", forbidden)
    epoch(batches, 0)
    epoch(batches, 1)
    assert torch.equal(torch.rand(3), expected)


def error_of(batches: ImageLoader) -> ToastError:
    """What iterating raises, without the traceback, which would keep the loader and its workers alive."""
    try:
        list(batches)
    except ToastError as error:
        return error.with_traceback(None)
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.e2e)])
def test_an_unreadable_image_raises_the_error_it_raised_in_the_worker(workers: int) -> None:
    error = error_of(make_image_loader(Unreadable(), transform(), BatchOptions(4), 0, workers))
    assert type(error) is UsageError
    assert (error.what, error.why, error.what_to_do) == ("Image 7 is bad.", "It is.", "Mend it.")
    assert error.exit_code == 2
    assert "Traceback" not in str(error)


def test_batches_before_the_unreadable_image_still_come() -> None:
    seen = iter(make_image_loader(Unreadable(), transform(), BatchOptions(4), 0, workers=0))
    assert next(seen)["index"].tolist() == [0, 1, 2, 3]


@pytest.mark.e2e
def test_a_broken_file_is_named_across_processes(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    split = FileSplit(tmp_path, ("broken.jpg",), (0,))
    error = error_of(make_image_loader(split, transform(), BatchOptions(1), 0, workers=1))
    assert "broken.jpg" in error.what
    assert error.why


@pytest.mark.e2e
def test_the_workers_stop_with_the_loader_that_failed() -> None:
    gc.collect()
    before = set(multiprocessing.active_children())
    gc.disable()
    try:
        with contextlib.suppress(ToastError):
            list(make_image_loader(Unreadable(), transform(), BatchOptions(4), 0, workers=2))
        assert set(multiprocessing.active_children()) <= before
    finally:
        gc.enable()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.e2e)])
def test_an_unreadable_image_can_be_skipped_and_is_listed(workers: int) -> None:
    batches = make_image_loader(Unreadable(), transform(), BatchOptions(4), 0, workers, skip=True)
    assert not batches.skipped
    for _ in range(2):
        assert order(list(batches)) == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert batches.skipped == {"7": "It is."}


def test_where_images_may_be_skipped_none_is_left_out_as_known() -> None:
    batches = make_image_loader(Unreadable(), transform(), BatchOptions(4), 0, workers=0, skip=True)
    batches.skip_cached_images(torch.ones(len(Unreadable()), dtype=torch.bool))
    assert all("image" in batch for batch in batches)
    assert batches.skipped == {"7": "It is."}


def test_skipping_changes_nothing_about_the_other_images() -> None:
    whole = by_index(list(make_image_loader(Noise(), transform(), BatchOptions(4, shuffle=True), 0, workers=0)))
    rest = by_index(
        list(make_image_loader(Unreadable(), transform(), BatchOptions(4, shuffle=True), 0, workers=0, skip=True))
    )
    assert rest.keys() == whole.keys() - {7}
    assert all(torch.equal(image, whole[index]) for index, image in rest.items())


def test_a_batch_of_which_nothing_can_be_read_is_not_counted() -> None:
    batches = list(
        make_image_loader(Unreadable(), transform(), BatchOptions(1, with_masks=True), 0, workers=0, skip=True)
    )
    assert len(batches) == COUNT
    assert batches[7]["label"].tolist() == [IGNORE_INDEX]
    assert batches[7]["image"].shape == batches[0]["image"].shape
    assert batches[7]["mask"].shape == batches[0]["mask"].shape


def test_the_data_set_itself_raises_too() -> None:
    with pytest.raises(UsageError, match="Image 7"):
        ImageDataset(Unreadable(), transform())[7]


def test_everything_a_worker_needs_can_be_sent_to_it() -> None:
    """Where processes are spawned and not forked, the data set is pickled, and errors are everywhere."""
    assert pickle.loads(pickle.dumps(transform())) is not None
    error = pickle.loads(pickle.dumps(ToastError("a", "b", "c", exit_code=2)))
    assert (error.what, error.why, error.what_to_do, error.exit_code, str(error)) == ("a", "b", "c", 2, "a\nb\nc")


def test_a_repeated_draw_has_its_own_augmentation_and_a_fixed_view_has_not() -> None:
    fresh, fixed = (ImageDataset(Noise(), transform(), views=views) for views in (None, 2))
    first, again = fresh[3], fresh[3 + COUNT]
    assert again["index"] == 3 and again["label"] == first["label"]
    assert not torch.equal(first["image"], again["image"])
    assert torch.equal(fresh[3 + COUNT]["image"], again["image"])
    assert torch.equal(fixed[3]["image"], fixed[3 + COUNT]["image"])


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.e2e)])
def test_a_balanced_epoch_repeats_images_of_small_classes_with_any_number_of_workers(workers: int) -> None:
    def load(split: Noise) -> tuple[ImageLoader, list[dict[str, Tensor]]]:
        batches = make_image_loader(split, transform(), BatchOptions(5, shuffle=True, balance=True), 1, workers, True)
        return batches, epoch(batches, 2)

    _, got = load(Noise())
    indices = order(got)
    assert torch.cat([batch["label"] for batch in got]).bincount().tolist() == [4, 4, 4]
    assert set(indices) <= set(range(COUNT)) and indices.count(7) == 2
    batches, got = load(Unreadable())
    assert order(got) == [index for index in indices if index != 7] and batches.skipped == {"7": "It is."}
