"""What every source of labelled images owes the rest of the house, checked on tiny copies of the official layouts."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.layouts import LAYOUTS, shards
from toast_cli import registry
from toast_cli.backbone import Preprocessing
from toast_cli.data import images as decoding
from toast_cli.data.source import Asked, DataSet, image_splits
from toast_cli.errors import ToastError
from toast_cli.recipe.loading import build_dataset, build_recipe

SMALL = {"demo": {"train_images": 8, "val_images": 4, "test_images": 4}, "grid": {"cell_side": 16}}
"""Fields that keep a source small."""


@pytest.fixture(autouse=True)
def quiet_hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's library keeps its cache with the test, and says nothing."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def opened(shorthand: str, where: Path, **fields: Any) -> DataSet:
    name = shorthand.partition(":")[0]
    options = build_dataset(shorthand, {**SMALL.get(name, {}), **fields})
    return registry.load(registry.SOURCES, options.name).open(options, where)


@pytest.fixture(params=LAYOUTS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """What to say to --dataset, and the --data-dir."""
    return LAYOUTS[request.param](tmp_path), tmp_path


def test_every_registered_source_of_labelled_images_is_held_to_the_contract() -> None:
    sources = {name: registry.load(registry.SOURCES, name) for name in registry.names(registry.SOURCES)}
    labelled = {name for name, source in sources.items() if source.task == "classification"}
    assert labelled - {"unknown", "shards"} == set(LAYOUTS) - {"imagenet_in_tars"}


def test_opening_reads_no_image_and_every_split_is_whole(
    made: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: object) -> None:
        raise AssertionError(f"{path} was opened")

    with monkeypatch.context() as context:
        context.setattr(decoding, "open_image", forbidden)
        data = opened(*made)
    splits = image_splits(data, "the data")
    assert {"train", "val"} <= set(splits) <= {"train", "val", "test"}
    assert all(name.isprintable() for name in data.classes) and len(set(data.classes)) == len(data.classes)
    for part, split in splits.items():
        assert len(split) == len(split.labels) == len(split.names) > 0, part
        assert set(split.labels) <= set(range(len(data.classes)))
    assert set(splits["train"].labels) == set(range(len(data.classes)))
    everything = [name for split in splits.values() for name in split.names]
    assert len(set(everything)) == len(everything), "an image is in two splits"


def test_a_sample_is_rgb_and_its_mask_lies_on_it_here_and_in_another_process(made: tuple[str, Path]) -> None:
    for split in image_splits(opened(*made), "the data").values():
        sample = split.load(len(split) - 1)
        assert sample.image.mode == "RGB"
        assert (sample.label, sample.name) == (split.labels[-1], split.names[-1])
        assert (sample.mask is not None) is split.has_masks
        if sample.mask is not None:
            assert sample.mask.dtype == bool and sample.mask.shape == (sample.image.height, sample.image.width)
            assert 0 < sample.mask.mean() < 1
        elsewhere = pickle.loads(pickle.dumps(split)).load(len(split) - 1)
        np.testing.assert_array_equal(elsewhere.image, sample.image)


def test_opening_twice_gives_the_same_and_another_seed_other_splits(made: tuple[str, Path]) -> None:
    first, second = opened(*made), opened(*made)
    assert (first.classes, first.notes) == (second.classes, second.notes)
    for part, split in image_splits(first, "the data").items():
        again = image_splits(second, "the data")[part]
        assert (list(again.names), list(again.labels)) == (list(split.names), list(split.labels))


def test_batches_come_out_with_masks_where_there_are_some(made: tuple[str, Path]) -> None:
    data = opened(*made)
    split = data.splits["train"]
    recipe = build_recipe(
        {"backbone": "vit_demo", "dataset": "demo", "method": "linear", "images": {"augment": "flip"}},
        {},
        origin="a test",
    )
    seen_as = Preprocessing((16, 16), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    backbone: Any = SimpleNamespace(require_preprocessing=lambda: seen_as)
    batches = data.batches(split, recipe, backbone, Asked(3, shuffle=True, augment=True, with_masks=split.has_masks))
    seen = list(batches)
    assert len(seen) == len(batches) == -(-len(split) // 3)
    assert seen[0]["image"].shape == (3, 3, 16, 16)
    assert ("mask" in seen[0]) is split.has_masks
    assert torch.cat([batch["index"] for batch in seen]).sort().values.tolist() == list(range(len(split)))


@pytest.mark.parametrize("name", sorted({*LAYOUTS, "shards"} - {"demo", "grid", "imagenet_in_tars"}))
def test_what_is_not_there_is_said_with_what_to_put_where(name: str, tmp_path: Path) -> None:
    shorthand = (shards if name == "shards" else LAYOUTS[name])(tmp_path)
    with pytest.raises(ToastError) as refused:
        opened(shorthand, tmp_path / "elsewhere", **({"classes": 3} if name == "shards" else {}))
    assert refused.value.exit_code in (1, 2)
    assert refused.value.what_to_do


def test_a_missing_image_is_named_when_the_set_is_opened(tmp_path: Path) -> None:
    for name in ("cub", "nabirds", "flowers", "dogs", "cars", "vtab", "table"):
        where = tmp_path / name
        where.mkdir()
        shorthand = LAYOUTS[name](where)
        gone = sorted(where.rglob("*.jpg"))[0]
        gone.unlink()
        with pytest.raises(ToastError, match=r"1 of \d+ .* missing") as refused:
            opened(shorthand, where)
        assert gone.name in refused.value.why
