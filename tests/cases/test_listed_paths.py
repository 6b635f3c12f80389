"""Paths of another system: they are read where their meaning is plain, otherwise the error says what to change.

Public reports: roboflow/supervision #2581, abbyy/barcode_detection_benchmark #2, DeepLabCut/DeepLabCut #1569.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize

import pytest
from PIL import Image

from tests.layouts import encoded, tarred
from toast_cli.data.base import DataSet
from toast_cli.data.images.archive import ArchiveOptions, open_archive
from toast_cli.data.images.files import MissingFilesError
from toast_cli.data.images.image_folder import ImageFolderOptions, open_image_folder
from toast_cli.data.images.listed_files import require_files
from toast_cli.data.images.table import TableOptions, open_table
from toast_cli.utils.errors import ToastError

CAFE, CAFE_APART = normalize("NFC", "café 1"), normalize("NFD", "café 1")
FILES = [f"{CAFE_APART}/{number}.png" for number in range(4)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / CAFE_APART).mkdir()
    for number, file in enumerate(FILES):
        Image.new("RGB", (6, 5), (number, 0, 0)).save(tmp_path / file)
    return tmp_path


def table(root: Path, names: list[str]) -> DataSet:
    with (root / "t.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label"), *((name, "ab"[n % 2]) for n, name in enumerate(names))])
    return open_table(TableOptions(path=str(root / "t.csv"), test_fraction=0, val_fraction=0), None)


SPELLINGS: dict[str, Callable[[Path, str], str]] = {
    "as it is": lambda root, name: name,
    "another form of Unicode": lambda root, name: normalize("NFC", name),
    "backslashes": lambda root, name: name.replace("/", "\\"),
    "both": lambda root, name: ".\\" + normalize("NFC", name).replace("/", "\\"),
    "blanks around": lambda root, name: f" {name} ",
    "a URL of a file": lambda root, name: (root / name).as_uri(),
    "percent": lambda root, name: normalize("NFC", name).replace(" ", "%20").replace("/", "%2F"),
}


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
def test_other_spellings_are_the_same_files_and_the_same_split(root: Path, spell: Callable[[Path, str], str]) -> None:
    split = table(root, [spell(root, name) for name in FILES]).splits["train"]
    assert sorted(split.names) == FILES  # type: ignore[attr-defined]
    assert {split.load(index).image.getpixel((0, 0))[0] for index in range(4)} == {0, 1, 2, 3}


def test_a_file_whose_name_has_a_backslash_is_itself(root: Path) -> None:
    Image.new("RGB", (6, 5)).save(root / "a\\b.png")
    assert table(root, ["a\\b.png", FILES[0]]).splits["train"].names == ("a\\b.png", FILES[0])  # type: ignore[attr-defined]


def test_one_file_in_two_spellings_is_listed_twice(root: Path) -> None:
    with pytest.raises(ToastError) as refused:
        table(root, [*FILES, FILES[0].replace("/", "\\")])
    assert refused.value.code == "data.duplicate-image"


@pytest.mark.parametrize(
    ("spell", "shown"),
    [
        (lambda name: "C:\\Users\\me\\" + name.replace("/", "\\"), "4 are absolute paths of a Windows computer"),
        (lambda name: "\\\\server\\share\\" + name.replace("/", "\\"), "Windows"),
        (lambda name: f"/home/me/{name}", "4 begin with another folder"),
        (lambda name: name.upper(), "4 exist with other capitals"),
        (lambda name: f"https://example.org/{name}", "4 are addresses"),
        (lambda name: "x" * 300 + name, "The first is"),
    ],
)
def test_what_cannot_be_read_is_explained(root: Path, spell: Callable[[str], str], shown: str) -> None:
    with pytest.raises(MissingFilesError) as refused:
        table(root, list(map(spell, FILES)))
    assert refused.value.code == "data.missing-files" and "4 of 4" in refused.value.what
    assert shown in refused.value.why


def test_lists_of_published_sets_are_explained_likewise(root: Path) -> None:
    with pytest.raises(MissingFilesError, match="1 exist with other capitals"):
        require_files([("0.PNG", root / CAFE_APART / "0.PNG")], "images", "Unpack them again.")


def test_folders_are_found_by_either_form_and_with_backslashes(root: Path) -> None:
    for name in ("a", "b"):
        (root / CAFE_APART / name).mkdir()
        Image.new("RGB", (6, 5)).save(root / CAFE_APART / name / "0.png")
    for path in (str(root / CAFE), f"{root}\\{CAFE}"):
        assert open_image_folder(ImageFolderOptions(path=path), None).classes == ("a", "b")


def test_backslashes_in_a_tar_are_separators_as_in_a_zip(tmp_path: Path) -> None:
    files = {f"pets\\{name}\\{number}.png": encoded(number, "png") for name in ("cat", "dog") for number in range(3)}
    tarred(tmp_path / "pets.tar", files)
    data = open_archive(ArchiveOptions(path=str(tmp_path / "pets.tar")), None)
    assert data.classes == ("cat", "dog") and data.splits["train"].load(0).image.size == (40, 30)
