"""One class name in two forms: forms of Unicode are one class, other invisible differences are reported.

Public reports: unmade/shelf-back #50, macos-fuse-t/fuse-t #16.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unicodedata import normalize

import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image

from tests.layouts import encoded
from toast_cli.data.class_map import (
    describe_similar_classes,
    normalize_class_names,
    read_class_file,
    require_known_classes,
)
from toast_cli.data.images.archive import ArchiveOptions, open_archive
from toast_cli.data.images.image_folder import SOURCE, ImageFolderOptions, open_image_folder
from toast_cli.data.images.table import TableOptions, open_table
from toast_cli.data.open_source import open_source
from toast_cli.data.segmentation.mask_folder import MaskFolderOptions, open_mask_folder
from toast_cli.data.splits import compute_split_hash, hold_out
from toast_cli.evaluation import open_run
from toast_cli.training.reporter import Reporter
from toast_cli.utils.errors import ToastError

NFC, NFD = normalize("NFC", "café"), normalize("NFD", "café")


def draw(root: Path, *folders: str, count: int = 4) -> Path:
    for place, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", (6, 5), (place, number, 0)).save(root / folder / f"{place}{number}.png")
    return root


def test_two_splits_share_the_class(tmp_path: Path) -> None:
    root = draw(tmp_path, f"train/{NFC}", "train/tea", f"val/{NFD}", "val/tea")
    data = open_image_folder(ImageFolderOptions(path=str(root)), None)
    assert data.classes == (NFC, "tea") and data.splits["val"].labels == (0,) * 4 + (1,) * 4  # type: ignore[attr-defined]
    assert data.splits["val"].load(0).image.getpixel((0, 0))[0] == 2


def test_two_folders_in_one_are_one_class_and_that_is_said(tmp_path: Path) -> None:
    data = open_image_folder(ImageFolderOptions(path=str(draw(tmp_path, NFC, NFD, "tea"))), None)
    assert data.classes == (NFC, "tea") and sum(map(len, data.splits.values())) == 12
    assert any("2 folders" in note for note in data.notes)


def test_archives_tables_and_class_files_likewise(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for number, name in enumerate((f"train/{NFC}", "train/tea", f"test/{NFD}", "test/tea")):
            packed.writestr(f"{name}/0.png", encoded(number, "png"))
    assert open_archive(ArchiveOptions(path=str(tmp_path / "a.zip")), None).classes == (NFC, "tea")
    draw(tmp_path, "i")
    rows = "".join(f"i/0{number}.png,{label}\n" for number, label in enumerate((NFC, NFD, "tea", "tea")))
    (tmp_path / "t.csv").write_text(f"path,label\n{rows}", encoding="utf-8")
    (tmp_path / "c.txt").write_text(f"tea\n{NFD}\n", encoding="utf-8")
    options = TableOptions(path=str(tmp_path / "t.csv"))
    assert open_table(options, None).classes == (NFC, "tea")
    listed = options.model_copy(update={"class_file": str(tmp_path / "c.txt")})
    assert open_table(listed, None).classes == ("tea", NFC) == read_class_file(str(tmp_path / "c.txt"), None)


def test_class_maps_are_found_in_either_form(tmp_path: Path) -> None:
    for folder, name in (("images", NFC), ("masks", NFD)):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.zeros((5, 6), np.uint8)).save(tmp_path / folder / f"{name}.png")
    (tmp_path / "classes.txt").write_text(f"{NFD}\ntea\n", encoding="utf-8")
    data = open_mask_folder(MaskFolderOptions(path=str(tmp_path)), None)
    assert data.classes == (NFC, "tea") and len(data.splits["train"]) == 1


def test_a_copy_in_another_form_is_split_alike() -> None:
    names = [f"{NFC}{number}" for number in range(40)]
    other = [normalize("NFD", name) for name in names]
    assert hold_out(names, [0] * 40, 0.3, 0) == hold_out(other, [0] * 40, 0.3, 0)
    assert compute_split_hash(names, [0] * 40) == compute_split_hash(other, [0] * 40)


@pytest.mark.parametrize("trained", [(NFC, "cafz"), (NFD, "cafz"), ("cafz", NFC), ("cafz", NFD)])
def test_a_run_is_evaluated_on_data_in_either_form(tmp_path: Path, trained: tuple[str, ...]) -> None:
    from toast_cli.recipe.parse import build_recipe

    draw(tmp_path, *(f"{part}/{name}" for part in ("train", "test") for name in (NFD, "cafz")))
    source = f"folder:{tmp_path}"
    raw = {"backbone": {"name": "vit_demo", "weights": "none"}, "dataset": source, "method": "linear"}
    request = SimpleNamespace(dataset=source, path=tmp_path)
    recipe = build_recipe(raw, {}, origin="a test")
    model = SimpleNamespace(objective=SimpleNamespace(target="class"))
    run = SimpleNamespace(
        request=request, recipe=recipe, classes=trained, accelerator=Accelerator(cpu=True), model=model
    )
    data = open_run.open_run_data(cast("Any", run), Reporter())
    assert data.classes == normalize_class_names(trained)


@pytest.mark.parametrize(
    ("classes", "shown"),
    [
        (("cat", "Cat"), "capitals"),
        (("cat", "cat "), "blanks"),
        (("a b", "a  b"), "blanks"),
        (("a b", "a\u00a0b"), r"'a\xa0b'"),
        (("cat", "ca\u200bt"), r"'ca\u200bt'"),
        (("\uff21", "a"), "only"),
    ],
)
def test_invisible_differences_are_reported(classes: tuple[str, ...], shown: str) -> None:
    assert shown in describe_similar_classes(classes)[0]


def test_visible_differences_are_not() -> None:
    assert describe_similar_classes(("cat", "cats", "café", "cafe", "क", "कि", "1", "01")) == []


def test_joiners_are_ordinary_spelling_and_other_invisible_signs_are_not(tmp_path: Path) -> None:
    names = ("می\u200cخواهم", "क्\u200dष", "👩\u200d🌾")
    root = draw(tmp_path / "joined", *names)
    assert open_image_folder(ImageFolderOptions(path=str(root)), None).classes == tuple(sorted(names))
    for name in ("a\u200bb", "a\u202eb", "\u200d"):
        with pytest.raises(ToastError) as refused:
            require_known_classes((name, "tea"), {}, "a test")
        assert refused.value.code == "data.unprintable-class"


def test_every_source_is_looked_at_and_another_split_is_told_the_difference(tmp_path: Path) -> None:
    root = draw(tmp_path, "train/cat", "train/Cat", "test/cat")
    assert "capitals" in open_source(SOURCE, ImageFolderOptions(path=str(root)), None).warnings[0]
    draw(tmp_path, "test/CAT ")
    with pytest.raises(ToastError) as refused:
        open_source(SOURCE, ImageFolderOptions(path=str(root)), None)
    assert refused.value.code == "data.unknown-class" and "differs from" in refused.value.why
