"""Image and labels are changed together; in evaluation labels stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from toast_cli.data.base import BatchOptions, Sample
from toast_cli.data.demo.scenes import DemoOptions, DemoSplit
from toast_cli.data.demo.segmentation import DemoSegmentationSplit, get_segmentation_classes
from toast_cli.model.model import build_model
from toast_cli.model.recipe_data import build_batches
from toast_cli.recipe.parse import build_recipe
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import UsageError

SHADES = (0, 120, 240)


class Drawn:
    """Images whose brightness is their class: left to right, 0, 1 and 2, and a row without a class."""

    kind = "pixels"

    has_masks = False

    def __init__(self, sizes: Sequence[tuple[int, int]]) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def load(self, index: int) -> Sample:
        width, height = self.sizes[index]
        classes = np.broadcast_to(np.arange(width) * 3 // width, (height, width)).astype(np.uint8)
        pixels = np.asarray(SHADES, np.uint8)[classes]
        classes = classes.copy()
        classes[-1] = 255
        return Sample(Image.fromarray(np.stack([pixels] * 3, -1)), -1, str(index), classes=classes)


def batches(
    sizes: Sequence[tuple[int, int]], asked: BatchOptions, task: dict[str, Any] | None = None, **images: Any
) -> Any:
    raw = {
        "backbone": {"name": "vit_demo_3", "weights": "none"},
        "dataset": "demo-segmentation",
        "method": "linear",
        "task": {"width": 16, **(task or {})},
        "images": {"mean": [0, 0, 0], "std": [1, 1, 1], **images},
    }
    recipe = build_recipe(raw, {}, origin="a test")
    backbone = build_model(recipe, ("a", "b", "c")).backbone
    return build_batches(Drawn(sizes), recipe, backbone, asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("augment", ["none", "flip", "crop-flip", "random-resized-crop"])
@pytest.mark.parametrize("evaluation", ["slide", "whole"])
def test_labels_follow_their_pixels_through_every_change(augment: str, evaluation: str) -> None:
    loader = batches(
        [(96, 70), (70, 96), (64, 64)] * 3, BatchOptions(9, True, True), {"evaluation": evaluation}, augment=augment
    )
    batch = next(iter(loader))
    assert batch["image"].shape == (9, 3, 64, 64) and batch["labels"].shape == (9, 64, 64)
    shade = batch["image"][:, 0] * 255
    labels = batch["labels"]
    seen = [int((labels == value).sum()) for value in (0, 1, 2, IGNORE_INDEX)]
    assert min(seen[:3]) > 500 and sum(seen) == labels.numel()
    for value, wanted in enumerate(SHADES):
        found = shade[labels == value]
        # Blurred where two classes meet, and nowhere else.
        assert float((found - wanted).abs().lt(30).float().mean()) > 0.9


def test_labels_turn_with_their_pixels_and_empty_corners_have_no_class() -> None:
    batch = next(iter(batches([(64, 64)] * 9, BatchOptions(9, True, True), rotation=40, color_jitter=0.1)))
    shade, labels = batch["image"][:, 0] * 255, batch["labels"]
    assert 0.03 < float((labels == IGNORE_INDEX).float().mean()) < 0.5
    for value, wanted in enumerate(SHADES):
        found = shade[labels == value]
        assert len(found) > 500 and float((found - wanted).abs().lt(60).float().mean()) > 0.9


@pytest.mark.parametrize("change", [{"auto_augment": "trivial"}, {"erasing": 0.5}])
def test_changes_that_labels_cannot_follow_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as refused:
        batches([(64, 64)], BatchOptions(1), **change)
    assert refused.value.code == "image.unsupported-option" and next(iter(change)) in refused.value.what


def test_a_smaller_scale_is_filled_up_with_what_has_no_class() -> None:
    task = {"scale": (0.5, 0.5)}
    batch = next(iter(batches([(64, 64)] * 4, BatchOptions(4, True, True), task, augment="crop-flip", mean=[0.5] * 3)))
    outside = batch["labels"] == IGNORE_INDEX
    assert 0.7 < float(outside.float().mean()) < 0.8
    # The mean colour, as near as a pixel comes to it; black would be -0.5.
    filled = batch["image"].movedim(1, -1)[_inner(outside)]
    assert len(filled) > 5000 and float(filled.abs().max()) < 0.004
    assert set(batch["labels"].unique().tolist()) == {IGNORE_INDEX, 0, 1, 2}


def _inner(outside: Tensor) -> Tensor:
    """Those without a class, but for the scenes' own row without one."""
    rows = outside.all(-1, keepdim=True).expand_as(outside)
    return rows & rows.roll(1, 1) & rows.roll(-1, 1)


def test_a_larger_scale_shows_a_part() -> None:
    task = {"scale": (2.0, 2.0)}
    batch = next(iter(batches([(64, 64)] * 6, BatchOptions(6, True, True), task, augment="crop-flip")))
    shown = {int(image.unique().numel()) for image in batch["labels"].masked_fill(batch["labels"] == IGNORE_INDEX, 0)}
    assert batch["labels"].shape == (6, 64, 64) and shown & {1, 2}


def test_in_evaluation_labels_keep_their_size_and_padding_counts_for_nothing() -> None:
    batch = next(iter(batches([(128, 70), (60, 40)], BatchOptions(2))))
    assert batch["extent"].tolist() == [[64, 117], [64, 96]], "the shorter side becomes the input's"
    assert batch["size"].tolist() == [[70, 128], [40, 60]]
    assert batch["image"].shape == (2, 3, 64, 117) and batch["labels"].shape == (2, 70, 128)
    assert not batch["image"][1, :, :, 96:].any()
    assert (batch["labels"][1, 40:] == IGNORE_INDEX).all() and (batch["labels"][1, :, 60:] == IGNORE_INDEX).all()
    assert batch["labels"][1, :39, :60].unique().tolist() == [0, 1, 2]


def test_whole_images_are_resized_to_the_input_size() -> None:
    batch = next(iter(batches([(128, 70), (60, 40)], BatchOptions(2), {"evaluation": "whole"})))
    assert batch["image"].shape == (2, 3, 64, 64)
    assert batch["extent"].tolist() == [[64, 64]] * 2 and batch["size"].tolist() == [[70, 128], [40, 60]]


def test_a_process_without_a_part_of_the_last_batch_has_nothing_to_count() -> None:
    loader = batches([(64, 64)] * 3, BatchOptions(2, process=1, processes=2))
    assert [int((batch["labels"] != IGNORE_INDEX).sum()) for batch in loader] == [63 * 64, 0]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError) as refused:
        batches([(64, 64)], BatchOptions(1), resize=32)
    assert refused.value.code == "image.resize-too-small"
    assert "images.resize=32" in str(refused.value)
    with pytest.raises(UsageError) as refused:
        batches([(64, 64)], BatchOptions(1), squash=True)
    assert refused.value.code == "image.unsupported-option"
    assert "images.squash" in str(refused.value)
    raw = {"backbone": "vit_demo_3", "dataset": "demo-segmentation", "method": "linear", "task": "classification"}
    with pytest.raises(UsageError) as refused:
        build_recipe(raw, {}, origin="a test")
    assert "demo-segmentation has a label for every pixel" in str(refused.value)
    with pytest.raises(UsageError) as refused:
        build_recipe({**raw, "dataset": "demo", "task": "segmentation"}, {}, origin="a test")
    assert "demo has none" in str(refused.value)


def test_the_demos_labels_are_those_of_its_own_scenes() -> None:
    scenes = DemoSplit(DemoOptions(), "test", 40)
    labelled = DemoSegmentationSplit(scenes)
    seen = set()
    for index in range(40):
        sample, scene = labelled.load(index), scenes.load(index)
        assert np.array_equal(np.asarray(sample.image), np.asarray(scene.image))
        assert np.array_equal(sample.classes == get_segmentation_classes().index("beetle"), scene.mask)
        seen |= set(np.unique(sample.classes).tolist())
    assert seen == set(range(len(get_segmentation_classes())))
    assert torch.from_numpy(labelled.load(0).classes).dtype == torch.uint8
