from __future__ import annotations

import tarfile
import time
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toast_cli.data.base import DataSet
from toast_cli.data.images import archive_index
from toast_cli.data.images.archive import ArchiveOptions, open_archive
from toast_cli.utils.errors import ToastError


def png(shade: int = 0) -> bytes:
    content = BytesIO()
    Image.new("RGB", (6, 4), (shade,) * 3).save(content, "png")
    return content.getvalue()


CLASSES = {f"{name}/{number}.png": png(number) for name in "ab" for number in range(4)}


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: dict[str, bytes], mode: str = "w", link: str | None = None) -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))
        if link is not None:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
    return path


def opened(file: Path, **options: object) -> DataSet:
    return open_archive(ArchiveOptions(path=str(file), **options), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_folder_around_everything_is_seen_through(tmp_path: Path, pack: object) -> None:
    file = pack(tmp_path / "a", {f"photos/of mine/{name}": content for name, content in CLASSES.items()})  # type: ignore[operator]
    assert opened(file).classes == ("a", "b")


def test_a_tar_that_ends_in_a_zip_is_a_tar(tmp_path: Path) -> None:
    inner = zipped(tmp_path / "inner.zip", {"x/0.png": png(), "y/1.png": png()})
    data = opened(tarred(tmp_path / "a.tar", {**CLASSES, "notes.zip": inner.read_bytes()}))
    assert data.classes == ("a", "b")
    assert data.splits["train"].load(0).image.size == (6, 4)


def test_what_operating_systems_leave_in_a_zip_is_no_class(tmp_path: Path) -> None:
    extra = {"__MACOSX/a/._0.png": b"x", ".thumbs/0.png": b"x", "a/._0.png": b"x", "a/Thumbs.db": b"x"}
    data = opened(zipped(tmp_path / "a.zip", {**CLASSES, **extra}))
    assert data.classes == ("a", "b")
    assert sum(map(len, data.splits.values())) == 8


def test_a_zip_whose_paths_have_backslashes_has_folders(tmp_path: Path) -> None:
    data = opened(zipped(tmp_path / "a.zip", {name.replace("/", "\\"): content for name, content in CLASSES.items()}))
    assert data.classes == ("a", "b")
    assert data.splits["train"].load(0).image.size == (6, 4)


def test_links_in_a_tar_are_not_followed_and_said(tmp_path: Path) -> None:
    data = opened(tarred(tmp_path / "a.tar", CLASSES, link="a/link.png"))
    assert data.notes[0].endswith("a.tar: links are not followed: 1 (a/link.png)")
    assert sum(map(len, data.splits.values())) == 8


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_what_else_is_in_an_archive_is_said(tmp_path: Path, pack: object) -> None:
    extra = {"top/a/photo.heic": b"x", "top/a/noending": b"x", "top/list.txt": b"x"}
    file = pack(tmp_path / "it", {**{f"top/{name}": content for name, content in CLASSES.items()}, **extra})  # type: ignore[operator]
    assert opened(file).notes[:3] == (
        f"{file}/top: not read, no image suffix: 1 (a/noending)",
        f"{file}/top: not read, HEIC needs pillow-heif (pip install pillow-heif): 1 (a/photo.heic)",
        f"{file}/top: not read, not in a class folder: 1 (list.txt)",
    )


def test_a_member_that_is_packed_twice_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, content in [*CLASSES.items(), ("b/3.png", png(200))]:
            archive.writestr(name, content)
    data = opened(tmp_path / "a.zip", val_fraction=0, test_fraction=0)
    assert data.notes[0].endswith("a.zip: packed more than once, the last copy is read: 1 (b/3.png)")
    assert int(np.asarray(data.splits["train"].load(7).image).max()) == 200


def test_a_folder_holds_what_is_below_it_and_not_what_only_begins_alike() -> None:
    names = ["a/0.png", "a/b/1.png", "a-b/2.png", "a0/3.png", "a.b/4.png", "aa/5.png", "6.png"]
    archive = archive_index.ArchiveIndex(Path("it.zip"), dict.fromkeys(names), frozenset(), others=("a/x", "ab/x"))
    assert archive.list_files_recursively("a") == (["a/0.png", "a/b/1.png"], ["a/x"], ())
    assert sorted(archive.list_files_recursively().images) == sorted(names)


def test_a_thousand_classes_are_found_among_very_many_images_at_once() -> None:
    names = [f"{label:03d}/{number}.png" for label in range(1000) for number in range(300)]
    archive = archive_index.ArchiveIndex(Path("it.zip"), dict.fromkeys(names), frozenset())
    start = time.process_time()
    assert sum(len(archive.list_files_recursively(f"{label:03d}").images) for label in range(1000)) == len(names)
    assert time.process_time() - start < 5  # well under one; looking through all of them for each class takes a minute


def test_threads_may_read_at_once(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    files = {f"{name}/{number:03d}.png": png(number) for name in "ab" for number in range(100)}
    for file in (zipped(tmp_path / "a.zip", files), tarred(tmp_path / "a.tar", files)):
        split = opened(file, val_fraction=0, test_fraction=0).splits["train"]
        with ThreadPoolExecutor(8) as pool:
            samples = list(pool.map(split.load, range(len(split))))
        assert [int(np.asarray(sample.image)[0, 0, 0]) for sample in samples] == [*range(100)] * 2


class TestErrors:
    @pytest.mark.parametrize(
        "name", ["../evil/0.png", "a/../../0.png", "/etc/0.png", "C:/evil/0.png", "..\\evil\\0.png"]
    )
    def test_a_path_that_leads_outside_is_named(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ToastError) as error:
            opened(zipped(tmp_path / "a.zip", {**CLASSES, name: png()}))
        assert error.value.code == "data.unsafe-path"
        assert name.replace("\\", "/") in error.value.what
        if "\\" not in name:
            with pytest.raises(ToastError) as refused:
                opened(tarred(tmp_path / "a.tar", {**CLASSES, name: png()}))
            assert refused.value.code == "data.unsafe-path"

    @pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w:bz2"])
    def test_a_compressed_tar_is_told_what_to_do(self, tmp_path: Path, mode: str) -> None:
        with pytest.raises(ToastError) as refused:
            opened(tarred(tmp_path / "a.tar", CLASSES, mode))
        assert refused.value.code == "data.compressed-archive" and refused.value.what_to_do

    def test_an_encrypted_zip_is_refused(self, tmp_path: Path) -> None:
        file = zipped(tmp_path / "a.zip", CLASSES)
        content = bytearray(file.read_bytes())
        content[content.index(b"PK\x01\x02") + 8] |= 1
        file.write_bytes(bytes(content))
        with pytest.raises(ToastError) as refused:
            opened(file)
        assert refused.value.code == "data.encrypted-archive"

    @pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 broken"])
    def test_what_is_no_archive_is_named(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.zip").write_bytes(content)
        with pytest.raises(ToastError) as refused:
            opened(tmp_path / "a.zip")
        assert refused.value.code == "data.unreadable-archive"
        assert "a.zip" in str(refused.value)

    def test_a_missing_archive_is_named_with_the_places_looked_at(self, tmp_path: Path) -> None:
        with pytest.raises(ToastError) as error:
            open_archive(ArchiveOptions(path="gone.zip"), tmp_path)
        assert error.value.code == "data.missing-file"
        assert "'gone.zip'" in str(error.value)
        assert str(tmp_path / "gone.zip") in error.value.why

    def test_a_truncated_tar_names_the_image_that_is_cut(self, tmp_path: Path) -> None:
        file = tarred(tmp_path / "a.tar", {**CLASSES, "b/last.png": png() * 3000})
        file.write_bytes(file.read_bytes()[:-200_000])
        with pytest.raises(ToastError, match=r"a\.tar"):
            split = opened(file, test_fraction=0, val_fraction=0).splits["train"]
            for index in range(len(split)):
                split.load(index)

    def test_damage_within_a_zip_names_the_image(self, tmp_path: Path) -> None:
        file = zipped(tmp_path / "a.zip", CLASSES)
        content = bytearray(file.read_bytes())
        content[45] ^= 0xFF
        file.write_bytes(bytes(content))
        split = opened(file, test_fraction=0, val_fraction=0).splits["train"]
        with pytest.raises(ToastError) as refused:
            split.load(0)
        assert refused.value.code == "image.unreadable"
        assert "a.zip/a/0.png" in str(refused.value)

    def test_a_decompression_bomb_in_an_archive_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        split = opened(zipped(tmp_path / "a.zip", CLASSES), test_fraction=0, val_fraction=0).splits["train"]
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        with pytest.raises(ToastError) as refused:
            split.load(0)
        assert refused.value.code == "image.unreadable"
        assert "a.zip/a/0.png" in str(refused.value)
        assert "pixels" in refused.value.why

    def test_a_zip_that_lies_about_a_size_is_read_no_further_than_it_said(self, tmp_path: Path) -> None:
        file = zipped(tmp_path / "a.zip", {**CLASSES, "b/bomb.png": png() + bytes(5_000_000)})
        content = bytearray(file.read_bytes())
        entry = content.rindex(b"PK\x01\x02")
        content[entry + 24 : entry + 28] = (100).to_bytes(4, "little")
        file.write_bytes(bytes(content))
        split = opened(file, test_fraction=0, val_fraction=0).splits["train"]
        with pytest.raises(ToastError) as refused:
            split.load(len(split) - 1)
        assert refused.value.code == "image.unreadable"
        assert "bomb.png" in str(refused.value)

    def test_a_member_that_claims_to_be_huge_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(archive_index, "MAX_MEMBER_BYTES", 10)
        with pytest.raises(ToastError) as refused:
            opened(zipped(tmp_path / "a.zip", CLASSES))
        assert refused.value.code == "data.oversized-file"
