"""What every source of labelled images owes the rest of the house, checked on tiny copies of the official layouts."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.layouts import LAYOUTS, STREAMS
from toast_cli import registry
from toast_cli.backbones.base import Preprocessing
from toast_cli.data.base import BatchOptions, DataSet, get_image_splits
from toast_cli.data.images import decode as decoding
from toast_cli.data.splits import get_split_hash
from toast_cli.data.streams import loader
from toast_cli.model.recipe_data import build_batches
from toast_cli.recipe.parse import build_dataset_options, build_recipe
from toast_cli.utils.errors import ToastError

FIELDS = {
    "demo": {"train_images": 8, "val_images": 4, "test_images": 4},
    "grid": {"cell_side": 16},
    "shards": {"classes": 3},
    "structured": {"test_images": 4},
}
"""Fields that keep a source small, or that it cannot do without."""

SEEDS = {"grid": "grid_seed", "demo": "world_seed", "structured": "draw_seed"}
"""What the seed of a source's splits is called, where it is not `split_seed`."""

PUBLISHED = {"folder", "hf", "flowers", "vtab", "imagenet", "imagenet_in_tars"}
"""Layouts here whose splits are all there, so that no seed has a say."""


@pytest.fixture(autouse=True)
def quiet_hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's library keeps its cache with the test, and says nothing."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def opened(shorthand: str, where: Path, **fields: Any) -> DataSet:
    name = shorthand.partition(":")[0]
    options = build_dataset_options(shorthand, {**FIELDS.get(name, {}), **fields})
    return registry.load_entry(registry.SOURCES, options.name).open(options, where)


@pytest.fixture(params=LAYOUTS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """What to say to --dataset, and the --data-dir."""
    return LAYOUTS[request.param](tmp_path), tmp_path


@pytest.fixture(params=[*LAYOUTS, *STREAMS])
def any_made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """The same, and of streams."""
    return {**LAYOUTS, **STREAMS}[request.param](tmp_path), tmp_path


def batches_of(data: DataSet, part: str, asked: BatchOptions) -> Any:
    recipe = build_recipe(
        {"backbone": "vit_demo_3", "dataset": "demo", "method": "linear", "images": {"augment": "flip"}},
        {},
        origin="a test",
    )
    seen_as = Preprocessing((16, 16), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    backbone: Any = SimpleNamespace(require_preprocessing=lambda: seen_as)
    return build_batches(data.splits[part], recipe, backbone, asked)


def read(data: DataSet, part: str) -> list[tuple[int, int]]:
    """Index and label of every image of a split, in order."""
    batches = list(batches_of(data, part, BatchOptions(4)))
    index, label = (torch.cat([batch[name] for batch in batches]).tolist() for name in ("index", "label"))
    return list(zip(index, label, strict=True))


def test_every_registered_source_of_labelled_images_is_held_to_the_contract() -> None:
    sources = {name: registry.load_entry(registry.SOURCES, name) for name in registry.list_names(registry.SOURCES)}
    labelled = {name for name, source in sources.items() if source.task == "classification"}
    assert labelled - {"unknown", "python"} == {*LAYOUTS, *STREAMS} - {"imagenet_in_tars"}


def test_opening_reads_no_image_and_every_split_is_whole(
    made: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: object) -> None:
        raise AssertionError(f"{path} was opened")

    with monkeypatch.context() as context:
        context.setattr(decoding, "open_image", forbidden)
        data = opened(*made)
    splits = get_image_splits(data, "the data")
    assert {"train", "val"} <= set(splits) <= {"train", "val", "test"}
    assert all(name.isprintable() for name in data.classes) and len(set(data.classes)) == len(data.classes)
    for part, split in splits.items():
        assert len(split) == len(split.labels) == len(split.names) > 0, part
        assert set(split.labels) <= set(range(len(data.classes)))
    assert set(splits["train"].labels) == set(range(len(data.classes)))
    everything = [name for split in splits.values() for name in split.names]
    assert len(set(everything)) == len(everything), "an image is in two splits"


def test_a_sample_is_rgb_and_its_mask_lies_on_it_here_and_in_another_process(made: tuple[str, Path]) -> None:
    for split in get_image_splits(opened(*made), "the data").values():
        sample = split.load(len(split) - 1)
        assert sample.image.mode == "RGB"
        assert (sample.label, sample.name) == (split.labels[-1], split.names[-1])
        assert (sample.mask is not None) is split.has_masks
        if sample.mask is not None:
            assert sample.mask.dtype == bool and sample.mask.shape == (sample.image.height, sample.image.width)
            assert 0 < sample.mask.mean() < 1
        elsewhere = pickle.loads(pickle.dumps(split)).load(len(split) - 1)
        np.testing.assert_array_equal(elsewhere.image, sample.image)


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_opens_without_decoding_knows_its_size_and_gives_every_image_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: object) -> None:
        raise AssertionError(f"{path} was opened")

    shorthand = STREAMS[name](tmp_path)
    with monkeypatch.context() as context:
        context.setattr(decoding, "open_image", forbidden)
        context.setattr(loader, "open_image", forbidden)
        data = opened(shorthand, tmp_path)
    assert set(data.splits) == {"train", "val"}
    seen = {part: read(data, part) for part in data.splits}
    for part, split in data.splits.items():
        assert len(split) == len(seen[part]) == len({index for index, _ in seen[part]}) > 0
        assert {label for _, label in seen[part]} == set(range(len(data.classes)))
        assert seen[part] == read(pickle.loads(pickle.dumps(data)), part), "another process reads something else"
    assert not {index for index, _ in seen["train"]} & {index for index, _ in seen["val"]}, "an image is in two splits"


def contents(data: DataSet) -> dict[str, list[Any]]:
    """What tells the splits' images apart."""
    if any(not hasattr(split, "names") for split in data.splits.values()):
        return {part: read(data, part) for part in data.splits}
    return {
        part: list(zip(split.names, split.labels, strict=True)) for part, split in get_image_splits(data, "it").items()
    }


def test_opening_twice_gives_the_same(any_made: tuple[str, Path]) -> None:
    first, second = opened(*any_made), opened(*any_made)
    assert (first.classes, first.notes) == (second.classes, second.notes)
    assert contents(first) == contents(second)


@pytest.mark.parametrize("layout", [*LAYOUTS, *STREAMS])
def test_another_seed_makes_other_splits_and_leaves_published_ones_alone(layout: str, tmp_path: Path) -> None:
    shorthand = {**LAYOUTS, **STREAMS}[layout](tmp_path)
    seed = SEEDS.get(layout, "split_seed")
    if layout == "vtab":
        with pytest.raises(ToastError, match=seed):
            opened(shorthand, tmp_path, **{seed: 1})
        return
    first, *others = (opened(shorthand, tmp_path, **{seed: value}) for value in (0, 1, 2, 3))
    if layout in PUBLISHED:
        assert all(contents(other) == contents(first) for other in others)
    elif layout in SEEDS:  # it draws its images
        pixels = [np.asarray(data.splits["train"].load(0).image) for data in (first, others[0])]
        assert not np.array_equal(*pixels)
    else:
        assert any(contents(other) != contents(first) for other in others)
        whole = [sorted(image for split in contents(data).values() for image in split) for data in (first, *others)]
        assert all(other == whole[0] for other in whole), "an image got lost"


def test_every_split_has_a_hash_of_its_own(any_made: tuple[str, Path]) -> None:
    data = opened(*any_made)
    hashes = {part: get_split_hash(split) for part, split in data.splits.items()}
    assert None not in hashes.values() and len(set(hashes.values())) == len(hashes)
    assert hashes == {part: get_split_hash(split) for part, split in opened(*any_made).splits.items()}


def test_batches_come_out_with_masks_where_there_are_some(any_made: tuple[str, Path]) -> None:
    data = opened(*any_made)
    split = data.splits["train"]
    batches = batches_of(data, "train", BatchOptions(3, shuffle=True, augment=True, with_masks=split.has_masks))
    seen = list(batches)
    assert len(seen) == len(batches) == -(-len(split) // 3)
    assert seen[0]["image"].shape == (3, 3, 16, 16)
    assert ("mask" in seen[0]) is split.has_masks
    indices = torch.cat([batch["index"] for batch in seen]).tolist()
    assert len(set(indices)) == len(indices) == len(split)
    if any_made[0].partition(":")[0] not in STREAMS:
        assert sorted(indices) == list(range(len(split)))


@pytest.mark.parametrize("name", sorted({*LAYOUTS, *STREAMS} - {"demo", "grid", "imagenet_in_tars", "structured"}))
def test_what_is_not_there_is_said_with_what_to_put_where(name: str, tmp_path: Path) -> None:
    shorthand = {**LAYOUTS, **STREAMS}[name](tmp_path)
    with pytest.raises(ToastError) as refused:
        opened(shorthand, tmp_path / "elsewhere")
    assert refused.value.exit_code in (1, 2)
    assert refused.value.what_to_do


def test_a_missing_image_is_named_when_the_set_is_opened(tmp_path: Path) -> None:
    for name in ("cub", "nabirds", "flowers", "dogs", "cars", "vtab", "table"):
        where = tmp_path / name
        where.mkdir()
        shorthand = LAYOUTS[name](where)
        gone = sorted(where.rglob("*.jpg"))[0]
        gone.unlink()
        with pytest.raises(ToastError) as refused:
            opened(shorthand, where)
        assert refused.value.code == "data.missing-files"
        assert gone.name in refused.value.why
