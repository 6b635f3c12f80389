from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tests.layouts import vtab
from toast_cli.backbone import Preprocessing
from toast_cli.data.source import DataSet
from toast_cli.data.transforms import build_transform
from toast_cli.data.vtab import TASKS, Options, open_vtab
from toast_cli.errors import ToastError, UsageError
from toast_cli.recipe.library import resolve
from toast_cli.recipe.schema import ImageOptions


@pytest.fixture
def kitti(tmp_path: Path) -> Path:
    vtab(tmp_path)
    return tmp_path / "vtab-1k/kitti"


def opened(kitti: Path, **fields: Any) -> DataSet:
    return open_vtab(Options(path="kitti", **fields), kitti.parent.parent)


def test_the_nineteen_tasks_have_the_published_classes_and_groups() -> None:
    groups = [task.group for task in TASKS.values()]
    assert (groups.count("natural"), groups.count("specialized"), groups.count("structured")) == (7, 4, 8)
    assert [task.classes for task in TASKS.values()] == [
        100, 102, 47, 102, 37, 10, 397, 2, 10, 45, 5, 8, 6, 6, 4, 16, 16, 18, 9,
    ]  # fmt: skip
    assert {task.metric for task in TASKS.values()} == {"accuracy"}
    assert all(task.test > 700 for task in TASKS.values())


def test_settings_are_chosen_on_800_and_200_and_reported_on_all_1000(kitti: Path) -> None:
    chosen, reported = opened(kitti), opened(kitti, use="all1000")
    assert {part: len(split) for part, split in chosen.splits.items()} == {"train": 8, "val": 4, "test": 8}
    assert {part: len(split) for part, split in reported.splits.items()} == {"train": 12, "test": 8}
    assert chosen.splits["test"] == reported.splits["test"]
    assert chosen.classes == reported.classes == ("0", "1", "2", "3")
    assert chosen.splits["train"].load(1).label == 1


def test_what_differs_from_what_was_published_is_said(kitti: Path) -> None:
    (kitti / "train800.txt").write_text("images/train/000000.jpg 2\n")
    notes = opened(kitti).notes
    assert notes[0] == "VTAB-1k, kitti: structured, 4 classes, judged by top-1 accuracy"
    assert "train800.txt holds 1 images; the published list has 800." in notes
    assert "test.txt holds 8 images; the published list has 711." in notes
    assert "train: no image of classes '0', '1', '3'" in notes


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("images/train/000000.jpg", "expected a path and a class from 0 to 3"),
        ("images/train/000000.jpg 4", "expected a path and a class from 0 to 3"),
        ("images/train/000000.jpg -1", "expected a path and a class from 0 to 3"),
        ("../kitti/images/train/000000.jpg 0", "leads out"),
        ("/images/train/000000.jpg 0", "leads out"),
    ],
)
def test_an_odd_line_is_named_with_its_list(kitti: Path, line: str, why: str) -> None:
    (kitti / "val200.txt").write_text(f"images/val/000000.jpg 0\n{line}\n")
    with pytest.raises(ToastError, match=rf"val200\.txt, line 2: .*{why}"):
        opened(kitti)


@pytest.mark.parametrize("part", ["val200", "test"])
def test_a_training_image_that_is_judged_by_is_an_error(kitti: Path, part: str) -> None:
    (kitti / f"{part}.txt").write_text("images/train/000003.jpg 3\n")
    with pytest.raises(ToastError, match="1 training images are in the") as refused:
        opened(kitti)
    assert "000003.jpg" in refused.value.what


def test_an_unknown_task_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no VTAB task 'kiti'") as refused:
        open_vtab(Options(path="kiti"), tmp_path)
    assert "Did you mean 'kitti'?" in refused.value.what_to_do and "smallnorb_ele" in refused.value.what_to_do


def test_the_task_that_is_asked_for_is_not_mistaken_for_another(kitti: Path) -> None:
    with pytest.raises(ToastError, match="svhn was not found"):
        open_vtab(Options(path="svhn"), kitti)
    assert open_vtab(Options(path="kitti"), kitti).classes == opened(kitti).classes


@pytest.mark.parametrize("method", ["toast", "toast-lite", "linear", "full", "lora", "vpt"])
def test_the_recipes_prepare_images_as_the_papers_code_does(method: str) -> None:
    recipe = resolve(backbone="vit_b16", dataset="vtab:svhn", method=method).recipe
    assert recipe.dataset.path == "svhn"  # type: ignore[attr-defined]
    assert (recipe.images.squash, recipe.images.normalize, recipe.images.augment) == (True, "imagenet", "none")


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("half", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("none", (0, 0, 0), (1, 1, 1)),
        (None, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
    ],
)
def test_images_are_squashed_and_normalised_as_named(name: Any, mean: Any, std: Any) -> None:
    image = Image.effect_mandelbrot((40, 20), (-2, -1, 1, 1), 50).convert("RGB")
    seen = Preprocessing((16, 16), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    shown, _ = build_transform(ImageOptions(normalize=name, squash=True), seen, train=True)(image)
    whole = v2.functional.to_image(image.resize((16, 16), Image.Resampling.BICUBIC)).float() / 255
    expected = (whole - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(shown, expected)


def test_a_normalisation_by_name_and_by_numbers_exclude_each_other() -> None:
    with pytest.raises(UsageError, match=r"normalize names a mean and a std"):
        resolve(
            dataset="folder:x", backbone="vit_b16", overrides=["images.normalize=half", "images.mean=[0.5,0.5,0.5]"]
        )
