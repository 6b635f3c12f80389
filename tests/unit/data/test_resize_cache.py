"""Images kept resized: the same numbers as without, and never an old or a damaged one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from tests.layouts import encoded
from toast_cli.backbones.base import Preprocessing
from toast_cli.data.base import BatchOptions
from toast_cli.data.images import decode as decoding
from toast_cli.data.images.labelled_files import FileSplit
from toast_cli.data.images.loader import ImageLoader
from toast_cli.data.images.object_masks import Box
from toast_cli.model.recipe_data import build_batches
from toast_cli.recipe.parse import build_recipe
from toast_cli.utils.errors import ToastError, UsageError

COUNT = 6


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOAST_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache/resized"


@pytest.fixture
def split(tmp_path: Path) -> FileSplit:
    (tmp_path / "images").mkdir()
    for number in range(COUNT):
        (tmp_path / f"images/{number}.jpg").write_bytes(encoded(number))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(tmp_path / "images/3.jpg").save(tmp_path / "images/3.jpg", exif=exif)
    names = tuple(f"{number}.jpg" for number in range(COUNT))
    return FileSplit(tmp_path / "images", names, (0,) * COUNT, (Box(8, 5, 20, 15),) * COUNT)


def loader(split: Any, cached: bool = True, workers: int = 0, train: bool = True, **images: Any) -> ImageLoader:
    raw = {
        "backbone": "vit_demo_3",
        "dataset": "demo",
        "method": "linear",
        "training": {"workers": workers},
        "images": {"augment": "crop-flip", "resize": 20, **images, "cache": cached},
    }
    seen = Preprocessing((16, 16), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    backbone: Any = SimpleNamespace(require_preprocessing=lambda: seen)
    asked = BatchOptions(4, shuffle=train, augment=train, with_masks=True)
    return build_batches(split, build_recipe(raw, {}, origin="a test"), backbone, asked)


def same(first: ImageLoader, second: ImageLoader) -> bool:
    return all(
        torch.equal(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in ("image", "mask", "index")
    )


def entries(cache: Path) -> list[Path]:
    return [file for file in cache.rglob("*") if file.is_file()]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("images", [{}, {"squash": True, "resize": None, "augment": "flip"}])
def test_images_and_masks_are_those_of_a_run_without_it_the_first_time_and_after(
    split: FileSplit, cache: Path, train: bool, images: dict[str, Any]
) -> None:
    plain = loader(split, cached=False, train=train, **images)
    assert not entries(cache)
    for _ in range(2):
        assert same(loader(split, train=train, **images), plain)
        assert len(entries(cache)) == COUNT


def test_nothing_is_decoded_the_second_time(split: FileSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    list(loader(split))
    second = loader(split)
    monkeypatch.setattr(decoding, "open_image", None)
    assert len(list(second)) == 2


def test_a_file_that_changes_is_another_image_whatever_its_name_size_and_date(split: FileSplit) -> None:
    list(loader(split))
    file = split.root / "1.jpg"
    date = file.stat().st_mtime_ns
    other = Image.new("RGB", (40, 30), "red")
    other.save(file)
    import os

    os.utime(file, ns=(date, date))
    assert same(loader(split), loader(split, cached=False))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: b"",
        lambda content: content[:100] + bytes([content[100] ^ 1]) + content[101:],
        lambda content: b"X" + content[1:],
    ],
)
def test_a_damaged_entry_is_written_anew(split: FileSplit, cache: Path, damage: Callable[[bytes], bytes]) -> None:
    list(loader(split))
    whole = {file: file.read_bytes() for file in entries(cache)}
    for file, content in whole.items():
        file.write_bytes(damage(content))
    assert same(loader(split), loader(split, cached=False))
    assert {file: file.read_bytes() for file in entries(cache)} == whole


@pytest.mark.e2e
def test_workers_share_it_and_leave_nothing_half_written(split: FileSplit, cache: Path) -> None:
    assert same(loader(split, workers=2), loader(split, cached=False))
    assert len(entries(cache)) == COUNT


def test_another_size_is_kept_apart(split: FileSplit, cache: Path) -> None:
    list(loader(split))
    assert same(loader(split, resize=24), loader(split, cached=False, resize=24))
    assert len(entries(cache)) == 2 * COUNT


def test_where_and_how_much_is_said_beforehand(split: FileSplit, cache: Path) -> None:
    (note,) = loader(split).notes
    assert str(cache) in note and f"for {COUNT}" in note


def test_too_little_room_is_said_before_anything_is_kept(
    split: FileSplit, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(ToastError, match="could not be written") as refused:
        loader(split)
    assert "images.cache=false" in refused.value.what_to_do
    assert not entries(cache)


def test_an_image_that_cannot_be_read_is_named_as_without_it(split: FileSplit) -> None:
    batches = loader(split)
    (split.root / "2.jpg").write_bytes(b"no image")
    (split.root / "4.jpg").unlink()
    for name in ("2.jpg", "4.jpg"):
        with pytest.raises(ToastError, match=name):
            batches.dataset.split.load(int(name[0]))


def test_what_cannot_be_kept_is_refused(split: FileSplit) -> None:
    with pytest.raises(UsageError) as refused:
        loader(split, augment="random-resized-crop", resize=None)
    assert refused.value.code == "cache.no-resize-step"
    with pytest.raises(UsageError) as refused:
        loader(SimpleNamespace(labels=(), names=(), has_masks=True))
    assert refused.value.code == "cache.not-image-files"
