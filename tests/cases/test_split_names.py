"""Splits under other names: every source understands the same names, refuses what is unclear, and says the rest.

Public reports: ultralytics/ultralytics #21311 and #4310, roboflow/roboflow-python #153, huggingface/datasets #4839 and
#7529.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.layouts import encoded, tarred
from toast_cli.data.base import DataSet
from toast_cli.data.images.archive import ArchiveOptions, open_archive
from toast_cli.data.images.image_folder import ImageFolderOptions, open_image_folder
from toast_cli.data.images.table import TableOptions, open_table
from toast_cli.data.images.unlabelled_folder import UnlabelledFolderOptions, open_unlabelled_folder
from toast_cli.data.segmentation.mask_folder import MaskFolderOptions, open_mask_folder
from toast_cli.data.split_names import parse_split_name
from toast_cli.utils.errors import ToastError

NAMES = {
    "train": ("train", "Training", "TRAIN", "train_set", "trainset", "seg_train", "train-images", "train2017", "trn"),
    "val": ("val", "Valid", "validation", "dev", "val_set", "seg_dev", "VAL2017", "development"),
    "test": ("test", "Testing", "tst", "testset", "seg_test", "test.images", "TestImages"),
    "trainval": ("trainval", "train_val", "TrainVal"),
    "unclear": ("eval", "hold-out", "test-dev", "evaluation"),
}
OTHERS = ("trains", "pretrain", "contest", "latest", "testosterone", "cat", "valley", "fold1", "A", "1", "日本")


@pytest.mark.parametrize(("split", "name"), [(split, name) for split, names in NAMES.items() for name in names])
def test_names_mean_splits_in_any_case_and_with_any_separator(split: str, name: str) -> None:
    meaning = parse_split_name(name)
    assert meaning is not None and meaning.split == split
    assert meaning.plain == (not name.startswith("seg_"))


@pytest.mark.parametrize("name", OTHERS)
def test_words_that_only_contain_a_split_mean_nothing(name: str) -> None:
    assert parse_split_name(name) is None


def draw(root: Path, folders: Mapping[str, int]) -> Path:
    for place, (folder, count) in enumerate(folders.items()):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (6, 5), (place, number, 0)).save(root / folder / f"{number}.png")
    return root


def pets(*parts: str) -> dict[str, int]:
    return {f"{part}/{name}": 4 for part in parts for name in ("cat", "dog")}


def opened(root: Path, **options: Any) -> DataSet:
    return open_image_folder(ImageFolderOptions(path=str(root), **options), None)


def sizes(data: DataSet) -> dict[str, int]:
    return {part: len(split) for part, split in data.splits.items()}


@pytest.mark.parametrize(
    ("train", "test", "shown"),
    [
        ("Training", "Testing", "'Training' as train"),
        ("seg_train", "seg_test", "'seg_test' as test"),
        ("training_set", "test_set", "'training_set' as train"),
        ("trainval", "test", "'trainval' as train"),
        ("seg_train/seg_train", "seg_test/seg_test", "seg_train/seg_train"),
        ("train/images", "test/images", "train/images"),
        ("images/train", "images/test", "images"),
    ],
)
def test_split_folders_are_no_classes_and_what_was_read_is_said(
    tmp_path: Path, train: str, test: str, shown: str
) -> None:
    data = opened(draw(tmp_path, pets(train, test)), val_fraction=0)
    assert data.classes == ("cat", "dog") and sizes(data) == {"train": 8, "test": 8}
    assert any(shown in note for note in data.notes)


def test_classes_may_hold_the_splits(tmp_path: Path) -> None:
    data = opened(draw(tmp_path, {"cat/train": 3, "cat/test": 2, "dog/train": 3, "dog/test": 1}), val_fraction=0)
    assert data.classes == ("cat", "dog") and sizes(data) == {"train": 6, "test": 3}


@pytest.mark.parametrize(
    ("folders", "code", "shown"),
    [
        (pets("train", "eval"), "data.unclear-split", "eval: val"),
        (pets("train", "hold-out"), "data.unclear-split", "hold-out"),
        (pets("trainval", "val"), "data.unclear-split", "trainval"),
        (pets("train", "val", "dev"), "data.duplicate-split", "dev and val"),
        (pets("train", "training"), "data.duplicate-split", "train and training"),
        (pets("dev", "testing"), "data.no-train-split", "dev, testing"),
        ({**pets("val"), "cat": 4, "dog": 4}, "data.no-train-split", "val"),
    ],
)
def test_what_is_unclear_is_refused_by_name_with_a_remedy(
    tmp_path: Path, folders: dict[str, int], code: str, shown: str
) -> None:
    with pytest.raises(ToastError) as refused:
        opened(draw(tmp_path, folders))
    assert refused.value.code == code and shown in str(refused.value)
    assert "dataset.split_names" in refused.value.what_to_do


def test_the_user_says_what_a_name_means(tmp_path: Path) -> None:
    root = draw(tmp_path, pets("fold1", "fold2", "extra"))
    data = opened(root, split_names={"fold1": "train", "fold2": "test", "extra": "unused"}, val_fraction=0)
    assert data.classes == ("cat", "dog") and sizes(data) == {"train": 8, "test": 8}
    with pytest.raises(ToastError) as refused:
        opened(root, split_names={"fold9": "train"})
    assert refused.value.code == "data.unknown-split"


@pytest.mark.parametrize("outer", [("A", "B"), ("fold1", "fold2", "fold3"), ("2019", "2020")])
def test_folders_of_folders_of_images_are_not_classes_without_a_word(tmp_path: Path, outer: tuple[str, ...]) -> None:
    data = opened(draw(tmp_path, pets(*outer)))
    assert data.classes == outer
    assert all(name in data.warnings[0] for name in (*outer, "cat", "dog"))


def test_folders_inside_a_class_are_said(tmp_path: Path) -> None:
    data = opened(draw(tmp_path, {"cat/tabby": 3, "cat/black": 3, "dog": 4}))
    assert any("class 'cat'" in note for note in data.notes) and not data.warnings


@pytest.mark.parametrize("name", ["train", "test", "Training", "test tube", "dev", "eval"])
def test_a_class_may_have_the_name_of_a_split(tmp_path: Path, name: str) -> None:
    assert opened(draw(tmp_path, {name: 4, "bus": 4, "car": 4})).classes == tuple(sorted((name, "bus", "car")))


def test_a_class_file_makes_splits_classes(tmp_path: Path) -> None:
    root = draw(tmp_path, {"train": 4, "test": 4})
    (tmp_path / "classes.txt").write_text("test\ntrain\n")
    assert opened(root, class_file=str(tmp_path / "classes.txt")).classes == ("test", "train")


@pytest.mark.parametrize("folder", ["test", "test/test", "test/unknown", "test/images"])
def test_a_test_folder_without_classes_is_said_not_to_be_read(tmp_path: Path, folder: str) -> None:
    data = opened(draw(tmp_path, {**pets("train", "val"), folder: 5}))
    assert "test" not in data.splits
    assert any(note.startswith("test: not read, 5 images") for note in data.notes)


def test_a_zip_is_read_like_its_folder(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as packed:
        for number, name in enumerate(pets("pets/Training", "pets/Testing")):
            packed.writestr(f"{name}/0.png", encoded(number, "png"))
    data = open_archive(ArchiveOptions(path=str(tmp_path / "pets.zip")), None)
    assert data.classes == ("cat", "dog") and sizes(data) == {"train": 2, "test": 2}


@pytest.mark.parametrize(("train", "val"), [("training", "validation"), ("train", "valid"), ("Train", "Val")])
def test_masks_keep_their_splits(tmp_path: Path, train: str, val: str) -> None:
    for part, count in ((train, 6), (val, 3)):
        draw(tmp_path, {f"images/{part}": count})
        (tmp_path / "masks" / part).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(np.zeros((5, 6), np.uint8)).save(tmp_path / "masks" / part / f"{number}.png")
    (tmp_path / "classes.txt").write_text("ground\nbox\n")
    assert sizes(open_mask_folder(MaskFolderOptions(path=str(tmp_path)), None)) == {"train": 6, "val": 3}


def test_tables_name_splits_likewise(tmp_path: Path) -> None:
    draw(tmp_path, {"i": 6})
    cells = ("Training", "train_set", "dev", "TEST", "eval", "0")
    rows = "".join(f"i/{number}.png,{'ab'[number % 2]},{cell}\n" for number, cell in enumerate(cells))
    (tmp_path / "t.csv").write_text(f"path,label,split\n{rows}")
    with pytest.raises(ToastError, match="'eval' is not a split"):
        open_table(TableOptions(path=str(tmp_path / "t.csv")), None)
    given: Any = {"eval": "val", 0: "unused"}
    data = open_table(TableOptions(path=str(tmp_path / "t.csv"), split_names=given), None)
    assert sizes(data) == {"train": 2, "val": 2, "test": 1}
    assert any("'Training' as train" in note and "'dev' as val" in note for note in data.notes)


def test_hub_splits_and_local_folders_of_the_library_likewise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    from toast_cli.data.streams.hugging_face import HuggingFaceOptions, open_hf

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    picture = {"bytes": encoded(0, "png"), "path": None}

    def save(name: str, **splits: int) -> Path:
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
        made = {
            part: datasets.Dataset.from_dict(
                {"image": [picture] * count, "label": ["cat", "dog"] * (count // 2)}, features=features
            )
            for part, count in splits.items()
        }
        datasets.DatasetDict(made).save_to_disk(str(tmp_path / name))
        return tmp_path / name

    def read(path: Path, **options: Any) -> DataSet:
        return open_hf(HuggingFaceOptions(path=str(path), **options), None)

    assert sizes(read(save("a", train=8, dev=4))) == {"train": 8, "val": 4}
    assert any("not read: extra" in note for note in read(save("b", train=8, test=4, extra=2)).notes)
    unclear = save("c", train=8, eval=4)
    with pytest.raises(ToastError, match="'eval', which may mean val or test"):
        read(unclear)
    assert sizes(read(unclear, split_names={"eval": "test"}, val_fraction=0)) == {"train": 8, "test": 4}
    folder = draw(tmp_path / "d", pets("Training", "Testing"))
    assert sizes(read(folder, val_fraction=0)) == {"train": 8, "test": 8}


def test_shards_of_several_splits_in_one_folder_are_not_all_for_training(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    from toast_cli.data.streams.webdataset import WebDatasetOptions, open_shards

    for part, count in (("train", 3), ("val", 2), ("test", 1)):
        files = {f"{part}{number}.{end}": content for number in range(count) for end, content in _sample(number)}
        tarred(tmp_path / f"birds-{part}-0000.tar", files)
    data = open_shards(WebDatasetOptions(path=str(tmp_path), classes=2), None)
    assert sizes(data) == {"train": 3, "val": 2, "test": 1}


def _sample(number: int) -> list[tuple[str, bytes]]:
    return [("jpg", encoded(number)), ("cls", str(number % 2).encode())]


def test_sources_that_read_everything_alike_say_so(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    from toast_cli.data.text.documents import TextDocumentOptions, open_documents

    draw(tmp_path / "i", {"train": 3, "test": 2})
    images = open_unlabelled_folder(UnlabelledFolderOptions(path=str(tmp_path / "i")), None)
    assert "test, train are read alike" in images.warnings[0]
    (tmp_path / "t").mkdir()
    for part in ("train", "valid"):
        (tmp_path / "t" / f"{part}.txt").write_text(f"a text\nof {part}\n")
    texts = open_documents(TextDocumentOptions(path=str(tmp_path / "t")), None)
    assert "train.txt, valid.txt are read together" in texts.warnings[0]
