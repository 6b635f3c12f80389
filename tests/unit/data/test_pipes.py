"""A pipe, or a device, in place of a file of a data set: refused with its name, and never waited for."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.layouts import LAYOUTS
from toast_cli import registry
from toast_cli.data.class_map import read_class_file
from toast_cli.recipe.parse import build_dataset_options
from toast_cli.utils.errors import ToastError

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")

WRITTEN = (".txt", ".mat", ".json", ".xml", ".csv", ".zip", ".tar")
"""What lists, annotations and archives end in."""


@contextmanager
def seconds(count: int) -> Iterator[None]:
    """Raise where something waits longer."""

    def late(*_: Any) -> None:
        pytest.fail("it waits for a pipe")  # no Exception, which a reader may take for a damaged file

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(count)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def voc(where: Path) -> str:
    lists = where / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").touch()
    return "voc"


def ade20k(where: Path) -> str:
    root = where / "ADEChallengeData2016"
    for part in ("training", "validation"):
        (root / "images" / part).mkdir(parents=True)
    (root / "objectInfo150.txt").touch()
    return "ade20k"


def text(where: Path) -> str:
    (where / "texts").mkdir()
    (where / "texts/a.txt").touch()
    return f"text:{where / 'texts'}"


WITHOUT = ("demo", "structured", "folder", "grid", "hf", "images", "imagenet")
"""Layouts of images alone."""

MADE: dict[str, Callable[[Path], str]] = {
    **{name: make for name, make in LAYOUTS.items() if name not in WITHOUT},
    "voc": voc,
    "ade20k": ade20k,
    "text": text,
}


@pytest.mark.parametrize("name", MADE)
def test_no_list_no_annotation_and_no_archive_may_be_a_pipe(name: str, tmp_path: Path) -> None:
    options = build_dataset_options(MADE[name](tmp_path))
    source = registry.load_entry(registry.SOURCES, options.name)
    found = {
        (file.parent, file.suffix, file.stem if file.suffix != ".xml" else ""): file for file in tmp_path.rglob("*")
    }
    files = [file for file in found.values() if file.suffix in WRITTEN and file.is_file()]
    assert files
    for file in files:
        file.rename(tmp_path / "kept")
        os.mkfifo(file)
        with seconds(10):
            try:
                data = source.open(options, tmp_path)
                for split in data.splits.values():
                    for index in range(len(split)):
                        split.load(index)
            except ToastError as error:
                assert file.name in str(error) or "not found" in str(error) or "no file" in str(error), error
        file.unlink()
        (tmp_path / "kept").rename(file)


def test_a_class_file_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "classes.txt")
    with seconds(10), pytest.raises(ToastError, match=r"classes\.txt"):
        read_class_file(str(tmp_path / "classes.txt"), None)
