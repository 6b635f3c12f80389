"""Broken image files are found before a run, without decoding those that are whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.layouts import photograph
from toast_cli.data.audit.image_files import check_files
from toast_cli.data.images import decode
from toast_cli.data.images.labelled_files import FileSplit


def split_of(root: Path) -> FileSplit:
    names = tuple(sorted(file.name for file in root.iterdir()))
    return FileSplit(root, (*names, "missing.png"), (0,) * (len(names) + 1))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for suffix in ("jpg", "png", "webp", "gif", "tif", "bmp"):
        photograph(1, (90, 70)).save(tmp_path / f"whole.{suffix}")
    for suffix in ("jpg", "png"):
        content = (tmp_path / f"whole.{suffix}").read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(content[: len(content) // 2])
        (tmp_path / f"padded.{suffix}").write_bytes(content + b"\0" * 100)
        (tmp_path / f"trailer.{suffix}").write_bytes(content + b"a trailer of a phone")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("<html>")
    return tmp_path


def test_every_broken_file_is_found_and_no_whole_one(root: Path) -> None:
    check = check_files({"train": split_of(root)})
    assert {name for _, name in check.unreadable} == {"cut.jpg", "cut.png", "empty.jpg", "text.jpg", "missing.png"}
    assert check.checked == check.total == 15


def test_whole_files_are_not_decoded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    monkeypatch.setattr(decode, "open_image", lambda path, white=None: decoded.append(path.name))
    check_files({"train": split_of(root)})
    assert sorted(decoded) == ["cut.jpg", "cut.png", "trailer.jpg", "trailer.png"]


def test_processes_share_the_files_and_time_is_limited(root: Path) -> None:
    splits = {"train": split_of(root)}
    shares = [check_files(splits, process, 2) for process in range(2)]
    assert sum(share.checked for share in shares) == 15
    assert sum(len(share.unreadable) for share in shares) == 5
    assert check_files(splits, seconds=0).checked == 0
