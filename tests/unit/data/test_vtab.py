from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tests.layouts import vtab
from toast_cli.backbones.base import Preprocessing
from toast_cli.backbones.image_options import ImageOptions
from toast_cli.data.base import DataSet
from toast_cli.data.datasets.vtab import VTAB_TASKS, VtabOptions, open_vtab
from toast_cli.data.images.transforms import build_transform
from toast_cli.recipe.lookup import resolve_recipe
from toast_cli.utils.errors import ToastError, UsageError


@pytest.fixture
def kitti(tmp_path: Path) -> Path:
    vtab(tmp_path)
    return tmp_path / "vtab-1k/kitti"


def opened(kitti: Path, **fields: Any) -> DataSet:
    return open_vtab(VtabOptions(path="kitti", **fields), kitti.parent.parent)


PUBLISHED = {
    "caltech101": (102, 6084), "cifar": (100, 10000), "dtd": (47, 1880), "oxford_flowers102": (102, 6149),
    "oxford_iiit_pet": (37, 3669), "svhn": (10, 26032), "sun397": (397, 21750), "patch_camelyon": (2, 32768),
    "eurosat": (10, 5400), "resisc45": (45, 6300), "diabetic_retinopathy": (5, 42670), "clevr_count": (8, 15000),
    "clevr_dist": (6, 15000), "dmlab": (6, 22735), "kitti": (4, 711), "dsprites_loc": (16, 73728),
    "dsprites_ori": (16, 73728), "smallnorb_azi": (18, 12150), "smallnorb_ele": (9, 12150),
}  # fmt: skip
"""Classes and test images of the 19 tasks, from the benchmark's own table."""


@pytest.mark.parametrize("task", PUBLISHED)
def test_a_tasks_lists_are_held_against_the_published_ones(task: str, tmp_path: Path) -> None:
    classes, test = PUBLISHED[task]
    root = tmp_path / "vtab-1k" / task
    root.mkdir(parents=True)
    for number in (0, 1, 2):
        (root / f"{number}.jpg").touch()
    for number, name in enumerate(("train800", "val200", "test")):
        (root / f"{name}.txt").write_text(f"{number}.jpg {classes - 1}\n")
    (root / "train800val200.txt").write_text("0.jpg 0\n1.jpg 0\n")
    chosen = open_vtab(VtabOptions(path=task), tmp_path)
    assert len(chosen.classes) == classes
    assert [note for note in chosen.notes if "the published list" in note] == [
        "train800.txt has 1 images; the published list has 800.",
        "val200.txt has 1 images; the published list has 200.",
        f"test.txt has 1 images; the published list has {test:,}.",
    ]
    reported = open_vtab(VtabOptions(path=task, use="all1000"), tmp_path)
    assert "train800val200.txt has 2 images; the published list has 1,000." in reported.notes
    (root / "test.txt").write_text(f"2.jpg {classes}\n")
    with pytest.raises(ToastError, match=f"0 to {classes - 1}") as refused:
        open_vtab(VtabOptions(path=task), tmp_path)
    assert refused.value.code == "data.invalid-list"


def test_a_task_of_the_published_size_says_no_difference(tmp_path: Path) -> None:
    root = tmp_path / "vtab-1k/kitti"
    root.mkdir(parents=True)
    listed = {"train800": range(800), "val200": range(800, 1000), "test": range(1000, 1711)}
    for name, numbers in {**listed, "train800val200": range(1000)}.items():
        (root / f"{name}.txt").write_text("".join(f"{number}.jpg {number % 4}\n" for number in numbers))
    for number in range(1711):
        (root / f"{number}.jpg").touch()
    for use in ("train800", "all1000"):
        assert not any("published" in note for note in open_vtab(VtabOptions(path="kitti", use=use), tmp_path).notes)


def test_the_nineteen_tasks_have_the_published_groups() -> None:
    assert set(PUBLISHED) == set(VTAB_TASKS)
    groups = [task.group for task in VTAB_TASKS.values()]
    assert (groups.count("natural"), groups.count("specialized"), groups.count("structured")) == (7, 4, 8)
    assert {task.metric for task in VTAB_TASKS.values()} == {"accuracy"}


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
    assert notes[0] == "VTAB-1k, kitti: structured, 4 classes, metric: top-1 accuracy"
    assert "train800.txt has 1 images; the published list has 800." in notes
    assert "test.txt has 8 images; the published list has 711." in notes
    assert "train: no images of classes '0', '1', '3'" in notes


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("images/train/000000.jpg", "data.invalid-list"),
        ("images/train/000000.jpg 4", "data.invalid-list"),
        ("images/train/000000.jpg -1", "data.invalid-list"),
        ("../kitti/images/train/000000.jpg 0", "data.unsafe-path"),
        ("/images/train/000000.jpg 0", "data.unsafe-path"),
    ],
)
def test_an_odd_line_is_named_with_its_list(kitti: Path, line: str, code: str) -> None:
    (kitti / "val200.txt").write_text(f"images/val/000000.jpg 0\n{line}\n")
    with pytest.raises(ToastError, match=rf"val200\.txt, line 2: .*'{line}'") as refused:
        opened(kitti)
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("part", "image"), [("val200", "train/000003.jpg"), ("test", "train/000003.jpg"), ("test", "val/000000.jpg")]
)
def test_an_image_that_is_learned_from_or_chosen_by_and_judged_by_is_an_error(
    kitti: Path, part: str, image: str
) -> None:
    (kitti / f"{part}.txt").write_text(f"images/{image} 3\n")
    with pytest.raises(ToastError, match=f"1 images .* {image[:3]}.* {part[:3]}.*") as refused:
        opened(kitti)
    assert refused.value.code == "data.overlapping-splits"
    assert image in refused.value.what


def test_an_unknown_task_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'kiti'") as refused:
        open_vtab(VtabOptions(path="kiti"), tmp_path)
    assert refused.value.code == "data.unknown-task"
    assert "Did you mean 'kitti'?" in refused.value.what_to_do and "smallnorb_ele" in refused.value.what_to_do


@pytest.mark.parametrize("name", ["kiti", "nope"])
def test_the_tasks_are_listed_once(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        open_vtab(VtabOptions(path=name), tmp_path)
    assert [refused.value.what_to_do.count(word) for word in ("Known:", "smallnorb_ele", "diabetic")] == [1, 1, 1]


def test_the_task_that_is_asked_for_is_not_mistaken_for_another(kitti: Path) -> None:
    with pytest.raises(ToastError, match="svhn") as refused:
        open_vtab(VtabOptions(path="svhn"), kitti)
    assert refused.value.code == "data.missing-dataset"
    assert open_vtab(VtabOptions(path="kitti"), kitti).classes == opened(kitti).classes


@pytest.mark.parametrize("method", ["toast", "toast-lite", "linear", "full", "lora", "vpt"])
def test_the_recipes_prepare_images_as_the_papers_code_does(method: str) -> None:
    recipe = resolve_recipe(backbone="vit_b16", dataset="vtab:svhn", method=method).recipe
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
    with pytest.raises(UsageError, match="normalize"):
        resolve_recipe(
            dataset="folder:x", backbone="vit_b16", overrides=["images.normalize=half", "images.mean=[0.5,0.5,0.5]"]
        )
