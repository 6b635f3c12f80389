"""Shards, streamed: every image once an epoch, no two readers on one, an epoch gone on with in its middle."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.layouts import encoded, folder, shards, tarred
from toast_cli import registry
from toast_cli.backbones.base import Preprocessing
from toast_cli.data.base import BatchOptions, DataSet, get_image_splits
from toast_cli.data.splits import get_split_hash
from toast_cli.data.streams import loader as streaming
from toast_cli.data.streams.loader import StreamedImageKey
from toast_cli.model.recipe_data import build_batches
from toast_cli.recipe.parse import build_dataset_options, build_recipe
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import ToastError, UsageError

pytest.importorskip("datasets")

SHARDS, EACH = 4, 6
NUMBERS = {
    StreamedImageKey(f"shards/train-{{0000..0003}}.tar: {n:06d}", encoded(n)).number: n for n in range(SHARDS * EACH)
}
"""Which sample an index in a batch is of."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def opened(where: Path, shorthand: str | None = None, **fields: Any) -> DataSet:
    shorthand = shorthand or shards(where, SHARDS, EACH)
    options = build_dataset_options(shorthand, {"classes": 3, "val_shards": 0, **fields})
    return registry.load_entry(registry.SOURCES, options.name).open(options, where)


def loader(data: DataSet, asked: BatchOptions, part: str = "train", workers: int = 0, **more: Any) -> Any:
    raw = {
        "backbone": "vit_demo_3",
        "dataset": "demo",
        "method": "linear",
        "training": {"workers": workers, **more.pop("training", {})},
        "images": more,
    }
    seen = Preprocessing((16, 16), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    backbone: Any = SimpleNamespace(require_preprocessing=lambda: seen)
    return build_batches(data.splits[part], build_recipe(raw, {}, origin="a test"), backbone, asked)


def numbers(batches: Any, epoch: int = 1, begin: int = 0) -> list[list[int]]:
    batches.set_epoch(epoch, begin)
    return [[NUMBERS[int(index)] for index in batch["index"]] for batch in batches]


def flat(batches: list[list[int]]) -> list[int]:
    return [number for batch in batches for number in batch]


def test_an_epoch_shows_every_image_once_with_its_own_label(tmp_path: Path) -> None:
    batches = loader(opened(tmp_path), BatchOptions(5, shuffle=True))
    seen = list(batches)
    assert len(seen) == len(batches) == 5
    assert [len(batch["label"]) for batch in seen] == [5, 5, 5, 5, 4]
    found = {
        NUMBERS[int(i)]: int(label) for batch in seen for i, label in zip(batch["index"], batch["label"], strict=True)
    }
    assert found == {number: number % 3 for number in range(24)}


def test_a_pass_in_order_keeps_the_name_of_every_image(tmp_path: Path) -> None:
    data = opened(tmp_path)
    batches, training = loader(data, BatchOptions(5)), loader(data, BatchOptions(5, shuffle=True))
    list(batches), list(training)
    assert batches.names == {index: f"shards/train-{{0000..0003}}.tar: {n:06d}" for index, n in NUMBERS.items()}
    assert training.names == {}


def test_epochs_and_seeds_differ_in_order_and_an_epoch_can_be_repeated(tmp_path: Path) -> None:
    batches = loader(opened(tmp_path, shuffle_buffer=4), BatchOptions(4, shuffle=True))
    first, second = numbers(batches, 1), numbers(batches, 2)
    assert sorted(flat(first)) == sorted(flat(second)) == list(range(24))
    assert first != second
    assert numbers(batches, 1) == first


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.e2e)])
def test_an_epoch_goes_on_where_it_was_left(tmp_path: Path, workers: int) -> None:
    batches = loader(opened(tmp_path), BatchOptions(4, shuffle=True), workers=workers)
    assert numbers(batches, 3, begin=2) == numbers(batches, 3)[2:]


def test_what_an_epoch_has_had_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opening, opened_now = streaming.open_image, []
    monkeypatch.setattr(streaming, "open_image", lambda file, *_: opened_now.append(file) or opening(file))
    batches = loader(opened(tmp_path), BatchOptions(4, shuffle=True))
    assert len(flat(numbers(batches, 3, begin=4))) == len(opened_now) == 8


@pytest.mark.parametrize(
    ("processes", "workers"), [(2, 0), *(pytest.param(*both, marks=pytest.mark.e2e) for both in ((2, 2), (1, 2)))]
)
def test_processes_and_workers_read_disjoint_shards_and_together_all(
    tmp_path: Path, processes: int, workers: int
) -> None:
    data = opened(tmp_path)
    parts = [
        numbers(loader(data, BatchOptions(4, shuffle=True, process=each, processes=processes), workers=workers))
        for each in range(processes)
    ]
    assert sorted(flat([batch for part in parts for batch in part])) == list(range(24))
    assert {len(part) for part in parts} == {6}, "all processes take the same steps"
    shards_of = [{number // EACH for number in flat(part)} for part in parts]
    assert sum(map(len, shards_of)) == SHARDS


def test_more_processes_than_fit_the_shards_still_see_no_image_twice(tmp_path: Path) -> None:
    data = opened(tmp_path)
    loaders = [loader(data, BatchOptions(6, shuffle=True, process=each, processes=3)) for each in range(3)]
    parts = [numbers(each) for each in loaders]
    assert sorted(flat([batch for part in parts for batch in part])) == list(range(24))
    assert {len(part) for part in parts} == {4}
    assert any("each reads all of them" in note for note in loaders[0].notes)


def test_validation_is_read_once_in_order_by_all_processes_together(tmp_path: Path) -> None:
    data = opened(tmp_path)
    parts = [flat(numbers(loader(data, BatchOptions(5, process=each, processes=2)))) for each in range(2)]
    assert sorted(parts[0] + parts[1]) == list(range(24))


def test_processes_whose_shards_differ_in_size_take_the_same_steps(tmp_path: Path) -> None:
    for shard, count in enumerate((9, 3)):
        files = {
            f"{shard}{n}.{kind}": encoded(n) if kind == "jpg" else b"0" for n in range(count) for kind in ("jpg", "cls")
        }
        tarred(tmp_path / f"shards/{shard}.tar", files)
    data = opened(tmp_path, "shards:shards")
    for process in range(2):
        batches = loader(data, BatchOptions(4, shuffle=True, process=process, processes=2))
        assert [len(batch["label"]) for batch in batches] == [2, 2, 2]


@pytest.mark.e2e
def test_one_process_sees_every_image_once_however_its_workers_come_out(tmp_path: Path) -> None:
    batches = loader(opened(tmp_path, shards(tmp_path, 3, EACH)), BatchOptions(4, shuffle=True), workers=2)
    seen = list(batches)
    assert [len(batch["label"]) for batch in seen] == [4, 4, 4, 4, 2]
    assert len(set(torch.cat([batch["index"] for batch in seen]).tolist())) == 18


def test_augmentation_goes_by_seed_epoch_and_image_whoever_reads_it(tmp_path: Path) -> None:
    data = opened(tmp_path)

    def images(workers: int) -> dict[int, torch.Tensor]:
        asked = BatchOptions(4, shuffle=True, augment=True)
        batches = loader(data, asked, workers=workers, augment="random-resized-crop")
        batches.set_epoch(2)
        return {int(i): image for batch in batches for i, image in zip(batch["index"], batch["image"], strict=True)}

    alone, shared = images(0), images(2)
    assert alone.keys() == shared.keys()
    assert all(torch.equal(alone[index], shared[index]) for index in alone)


def test_shards_are_held_out_for_validation_and_named_by_a_hash(tmp_path: Path) -> None:
    data = opened(tmp_path, val_shards=1)
    assert {part: len(split) for part, split in data.splits.items()} == {"train": 18, "val": 6}
    train, val = (flat(numbers(loader(data, BatchOptions(6), part))) for part in ("train", "val"))
    assert sorted(train + val) == list(range(24))
    assert data.notes[0].startswith("validation: 1 shards held out, seed 0, split ")
    assert opened(tmp_path, val_shards=1).notes == data.notes


def test_a_folder_of_shards_and_separate_validation_are_found(tmp_path: Path) -> None:
    shards(tmp_path, SHARDS, EACH)
    tarred(tmp_path / "val/a.tar", {"a.jpg": encoded(1), "a.cls": b"2"})
    data = opened(tmp_path, "shards:shards", validation="val")
    assert {part: len(split) for part, split in data.splits.items()} == {"train": 24, "val": 1}


def test_the_hash_of_a_split_is_of_its_images_or_of_its_shards_where_nobody_counted_them(tmp_path: Path) -> None:
    first = get_split_hash(opened(tmp_path).splits["train"])
    assert first and first == get_split_hash(opened(tmp_path).splits["train"])
    said = get_split_hash(opened(tmp_path, samples=24).splits["train"])
    assert said and said != first
    tarred(tmp_path / "shards/train-0000.tar", {"x.jpg": encoded(1), "x.cls": b"1"})
    assert get_split_hash(opened(tmp_path, "shards:shards").splits["train"]) != first
    assert get_split_hash(opened(tmp_path, "shards:shards", samples=24).splits["train"]) == said


def test_samples_without_labels_are_for_pre_tuning(tmp_path: Path) -> None:
    data = opened(tmp_path, label_column=None, classes=None)
    assert data.classes == ("an image",)
    assert int(next(iter(loader(data, BatchOptions(4))))["label"].sum()) == 0


class TestBadSamples:
    @pytest.fixture
    def broken(self, tmp_path: Path) -> Iterator[DataSet]:
        files = {f"{n:06d}.{kind}": content for n in range(4) for kind, content in (("jpg", encoded(n)), ("cls", b"0"))}
        files["000002.jpg"] = b"no image"
        tarred(tmp_path / "shards/train-0000.tar", files)
        yield opened(tmp_path, "shards:shards")

    def test_one_that_cannot_be_read_is_named(self, broken: DataSet) -> None:
        with pytest.raises(ToastError) as refused:
            list(loader(broken, BatchOptions(2)))
        assert refused.value.code == "image.unreadable"
        assert "000002" in str(refused.value)

    def test_or_left_out_counted_and_listed(self, broken: DataSet) -> None:
        batches = loader(broken, BatchOptions(1), on_error="skip")
        labels = [int(batch["label"]) for batch in batches]
        assert labels == [0, 0, IGNORE_INDEX, 0]
        assert list(batches.skipped) == ["shards: 000002"]

    @pytest.mark.parametrize(("label", "shown"), [(b"3", "3"), (b"-1", "-1")])
    def test_a_label_that_is_no_class_is_named(self, tmp_path: Path, label: bytes, shown: str) -> None:
        tarred(tmp_path / "shards/a.tar", {"a.jpg": encoded(1), "a.cls": label})
        with pytest.raises(ToastError) as refused:
            list(loader(opened(tmp_path, "shards:shards"), BatchOptions(2)))
        assert refused.value.code == "data.unknown-class"
        assert f"label {shown}" in str(refused.value)

    def test_a_shard_with_a_path_that_leads_out_is_refused(self, tmp_path: Path) -> None:
        tarred(tmp_path / "shards/a.tar", {"../a.jpg": encoded(1), "../a.cls": b"1"})
        with pytest.raises(ToastError) as refused:
            opened(tmp_path, "shards:shards")
        assert refused.value.code == "data.unsafe-path"

    @pytest.mark.parametrize("content", [b"", b"no tar" * 200])
    def test_a_damaged_shard_is_named(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "shards").mkdir()
        (tmp_path / "shards/a.tar").write_bytes(content)
        with pytest.raises(ToastError) as refused:
            opened(tmp_path, "shards:shards")
        assert refused.value.code == "data.cannot-open"
        assert "shards" in str(refused.value)


class TestQuestions:
    def test_classes_have_to_be_said(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError) as refused:
            opened(tmp_path, classes=None)
        assert refused.value.code == "data.unknown-class-names"

    def test_a_class_file_names_them(self, tmp_path: Path) -> None:
        (tmp_path / "names.txt").write_text("a\nb\nc\n")
        assert opened(tmp_path, classes=None, class_file="names.txt").classes == ("a", "b", "c")

    def test_a_missing_shard_of_a_range_is_named(self, tmp_path: Path) -> None:
        shards(tmp_path, SHARDS, EACH)
        (tmp_path / "shards/train-0002.tar").unlink()
        with pytest.raises(ToastError) as refused:
            opened(tmp_path, "shards:shards/train-{0000..0003}.tar")
        assert refused.value.code == "data.missing-files"
        assert "1 of 4" in str(refused.value)
        assert "train-0002.tar" in refused.value.why

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
    def test_a_pipe_among_the_shards_is_refused_and_not_waited_for(self, tmp_path: Path) -> None:
        shards(tmp_path, SHARDS, EACH)
        os.mkfifo(tmp_path / "shards/train-0009.tar")
        with pytest.raises(ToastError) as refused:
            opened(tmp_path, "shards:shards", samples=24)
        assert refused.value.code == "data.not-a-regular-file"
        assert "train-0009.tar" in str(refused.value)

    def test_another_ending_of_labels_is_told_which_there_are(self, tmp_path: Path) -> None:
        with pytest.raises(ToastError) as refused:
            opened(tmp_path, label_column="label")
        assert refused.value.code == "data.missing-column"
        assert "'.label'" in str(refused.value)
        assert ".cls" in refused.value.why

    def test_what_looks_images_up_is_told_why_it_cannot(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError) as refused:
            get_image_splits(opened(tmp_path), "shards")
        assert refused.value.code == "data.streamed"

    def test_first_passes_cannot_be_kept(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError) as refused:
            loader(opened(tmp_path), BatchOptions(4, views=1))
        assert refused.value.code == "data.not-with-streaming"
        assert "training.cache" in str(refused.value)


def hub(where: Path, **fields: Any) -> DataSet:
    folder(where)
    return registry.load_entry(registry.SOURCES, "hf").open(
        build_dataset_options("hf:pets", {"streaming": True, **fields}), where
    )


def test_a_data_set_of_the_hub_is_streamed_as_well(tmp_path: Path) -> None:
    data = hub(tmp_path, samples=10)
    assert data.classes == ("cat", "dog")
    seen = list(loader(data, BatchOptions(4, shuffle=True)))
    assert [len(batch["label"]) for batch in seen] == [4, 4, 2]
    assert torch.cat([batch["label"] for batch in seen]).bincount().tolist() == [5, 5]


def test_how_many_images_a_stream_has_must_be_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        hub(tmp_path)
    assert refused.value.code == "data.unknown-length"
    assert "dataset.samples" in refused.value.what_to_do


def test_endings_in_capitals_are_counted_and_read(tmp_path: Path) -> None:
    files = {f"{n:04d}.{kind}": content for n in range(6) for kind, content in (("JPEG", encoded(n)), ("cls", b"1"))}
    tarred(tmp_path / "s/0.tar", files)
    data = opened(tmp_path, "shards:s")
    assert len(data.splits["train"]) == 6
    assert [len(batch["label"]) for batch in loader(data, BatchOptions(6, shuffle=True))] == [6]


def test_names_with_dots_are_said_to_be_no_kinds(tmp_path: Path) -> None:
    files = {f"img.{n:04d}.{kind}": content for n in range(3) for kind, content in (("jpg", encoded(n)), ("cls", b"1"))}
    tarred(tmp_path / "s/0.tar", files)
    with pytest.raises(ToastError) as refused:
        opened(tmp_path, "shards:s")
    assert refused.value.code == "data.dotted-names"
    assert "0000.jpg" in str(refused.value)


def stored(where: Path, contents: list[bytes], names: list[str] | None = None) -> str:
    """Images as bytes in a Parquet file, without a path."""
    import datasets

    kind = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names or ["a", "b"])})
    rows = [{"bytes": content, "path": None} for content in contents]
    table = datasets.Dataset.from_dict({"image": rows, "label": [n % 2 for n in range(len(rows))]}, features=kind)
    (where / "rows").mkdir()
    table.to_parquet(str(where / "rows/train-00000-of-00001.parquet"))
    return "hf:rows"


def test_images_without_a_name_are_told_apart_and_changed_each_in_its_own_way(tmp_path: Path) -> None:
    shorthand = stored(tmp_path, [encoded(number, "png") for number in range(12)])
    options = build_dataset_options(shorthand, {"streaming": True, "samples": 12})
    data = registry.load_entry(registry.SOURCES, options.name).open(options, tmp_path)
    [batch] = loader(data, BatchOptions(12, shuffle=True, augment=True), augment="random-resized-crop")
    assert len(set(batch["index"].tolist())) == 12


def test_every_image_that_is_skipped_is_counted_of_one_content_too(tmp_path: Path) -> None:
    shorthand = stored(tmp_path, [encoded(n, "png") if n % 3 else b"damaged" for n in range(12)])
    options = build_dataset_options(shorthand, {"streaming": True, "samples": 12})
    batches = loader(
        registry.load_entry(registry.SOURCES, options.name).open(options, tmp_path), BatchOptions(4), on_error="skip"
    )
    for _ in range(2):
        assert sum(len(batch["label"]) for batch in batches) == 8
    assert len(batches.skipped) == 4


def test_a_class_file_in_another_order_than_the_columns_numbers_is_followed(tmp_path: Path) -> None:
    shorthand = stored(tmp_path, [encoded(number, "png") for number in range(4)], names=["ant", "bee"])
    (tmp_path / "classes.txt").write_text("bee\nant\n")
    fields = {"streaming": True, "samples": 4, "class_file": "classes.txt"}
    options = build_dataset_options(shorthand, fields)
    data = registry.load_entry(registry.SOURCES, options.name).open(options, tmp_path)
    assert [int(label) for batch in loader(data, BatchOptions(4)) for label in batch["label"]] == [1, 0, 1, 0]


@pytest.mark.parametrize("stored", [None, "", " "])
def test_a_sample_without_a_label_is_named(tmp_path: Path, stored: str | None) -> None:
    split: Any = opened(tmp_path).splits["train"]
    with pytest.raises(ToastError, match="has no label"):
        split.get_label({"cls": stored}, "one")
