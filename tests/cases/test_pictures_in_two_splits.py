"""`toast tune` reports the same picture in two splits, by content, before training, for every source of stored images.

No public report; the kind is a leak between splits, which `toast data check` finds and a run has to mention.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.layouts import encoded, photograph, tarred
from toast_cli.data.audit import leaks
from toast_cli.data.audit.leaks import describe_leaks
from toast_cli.data.base import DataSet
from toast_cli.data.images.archive import ArchiveOptions, open_archive
from toast_cli.data.images.image_folder import ImageFolderOptions, open_image_folder
from toast_cli.data.images.table import TableOptions, open_table
from toast_cli.data.segmentation.mask_folder import MaskFolderOptions, open_mask_folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOAST_CACHE_DIR", str(tmp_path / "cache"))


def track(items: Any, total: int, what: str) -> Any:
    return items


FILES = {f"{part}/{name}/{n}.png": n for part in ("train", "test") for n, name in enumerate(("cat", "dog"))}
"""The photograph of every file: both of test are those of train."""


def as_folder(root: Path) -> DataSet:
    for name, number in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture = photograph(number, (160, 120))
        # One of the test images is scaled and compressed.
        picture = picture.resize((80, 60)) if name.startswith("test") and number else picture
        picture.save(root / name)
    return open_image_folder(ImageFolderOptions(path=str(root), val_fraction=0), None)


def as_table(root: Path) -> DataSet:
    as_folder(root)
    rows = "".join(f"{name},{number},{name.partition('/')[0]}\n" for name, number in FILES.items())
    (root / "t.csv").write_text(f"path,label,split\n{rows}")
    return open_table(TableOptions(path=str(root / "t.csv"), val_fraction=0), None)


def as_zip(root: Path) -> DataSet:
    with zipfile.ZipFile(root / "a.zip", "w") as packed:
        for name, number in FILES.items():
            packed.writestr(name, encoded(number, "png"))
    return open_archive(ArchiveOptions(path=str(root / "a.zip"), val_fraction=0), None)


def as_tar(root: Path) -> DataSet:
    tarred(root / "a.tar", {name: encoded(number, "png") for name, number in FILES.items()})
    return open_archive(ArchiveOptions(path=str(root / "a.tar"), val_fraction=0), None)


def as_masks(root: Path) -> DataSet:
    for name, number in FILES.items():
        part, _, rest = name.partition("/")
        file = rest.replace("/", "-")
        for folder in ("images", "masks"):
            (root / folder / part).mkdir(parents=True, exist_ok=True)
        photograph(number).save(root / "images" / part / file)
        Image.fromarray(np.zeros((30, 40), np.uint8)).save(root / "masks" / part / file)
    (root / "classes.txt").write_text("ground\nbox\n")
    return open_mask_folder(MaskFolderOptions(path=str(root), val_fraction=0), None)


def as_hf(root: Path) -> DataSet:
    datasets = pytest.importorskip("datasets")
    from toast_cli.data.streams.hugging_face import HuggingFaceOptions, open_hf

    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    table = {"image": [{"bytes": encoded(n, "png"), "path": None} for n in (0, 1)], "label": ["cat", "dog"]}
    made = {part: datasets.Dataset.from_dict(table, features=features) for part in ("train", "test")}
    datasets.DatasetDict(made).save_to_disk(str(root / "h"))
    return open_hf(HuggingFaceOptions(path=str(root / "h"), val_fraction=0), None)


@pytest.mark.parametrize("make", [as_folder, as_table, as_zip, as_tar, as_masks, as_hf])
def test_every_source_says_how_many_and_names_one(tmp_path: Path, make: Callable[[Path], DataSet]) -> None:
    (warning,) = describe_leaks(make(tmp_path), track)
    assert warning.startswith("2 pictures of test are in train too (") and "data check" in warning


def test_the_result_is_kept_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = as_folder(tmp_path)
    first = describe_leaks(data, track)
    with monkeypatch.context() as patch:
        patch.delattr(leaks, "scan_images")
        assert describe_leaks(data, track) == first
    photograph(7, (160, 120)).save(tmp_path / "test/cat/0.png")
    assert describe_leaks(data, track)[0].startswith("1 picture of test is in train too")


def test_without_leaks_nothing_is_said_and_too_many_images_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = as_folder(tmp_path)
    for number, name in enumerate(("test/cat/0.png", "test/dog/1.png")):
        photograph(70 + number, (160, 120)).save(tmp_path / name)
    assert describe_leaks(data, track) == []
    monkeypatch.setattr(leaks, "MAX_SEARCHED", 3)
    assert "4 images are too many" in describe_leaks(data, track)[0]
