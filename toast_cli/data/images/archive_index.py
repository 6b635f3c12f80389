"""Zip and tar files read in place: their index once, then any file in it, by any number of processes and threads."""

from __future__ import annotations

import os
import tarfile
import zipfile
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

from toast_cli.data.images.folder_scan import FolderContents, is_image_name, summarize_file_names
from toast_cli.utils.errors import ToastError

MAX_MEMBER_BYTES = 300_000_000
"""Bytes of the largest image file that is read out of an archive: what claims more would fill the memory."""


@dataclass(frozen=True)
class ArchiveIndex:
    """One archive as a `Tree` and, at the same time, as the root of the files in it.

    `members` are its images by path; the value is what finds the bytes (a zip's own name, a tar's offset and size).
    `inner` are all its folders, `others` its other files. `notes` say what was left out. `top` is the folder in the
    archive that all of this lies below.
    """

    file: Path
    members: dict[str, Any]
    inner: frozenset[str]
    others: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    top: str = ""
    _handles: dict[int, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def root(self) -> ArchiveIndex:
        """Itself: its members lie below it."""
        return self

    def __str__(self) -> str:
        return self.place()

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self).items() if name != "_sorted"}
        return {**kept, "_handles": {}}  # an open file cannot go to another process

    def __truediv__(self, name: str) -> ArchiveMember:
        return ArchiveMember(self, name)

    def place(self, below: str = "") -> str:
        """The archive's path, and in it the folder's."""
        return "/".join(part for part in (str(self.file), self.top, below) if part)

    def below(self, top: str) -> ArchiveIndex:
        """What lies below a folder of it, by the paths from there: whether it was packed with a folder around decides
        nothing.
        """
        cut, start = len(top) + 1, f"{top}/"
        return replace(
            self,
            members={name[cut:]: where for name, where in self.members.items() if name.startswith(start)},
            inner=frozenset(name[cut:] for name in self.inner if name.startswith(start)),
            others=tuple(name[cut:] for name in self.others if name.startswith(start)),
            top=top,
        )

    def folders(self, below: str = "") -> list[str]:
        """Sorted names of the folders directly in a folder."""
        return sorted(PurePosixPath(folder).name for folder in self.inner if _get_parent(folder) == below)

    def files(self, below: str = "") -> list[str]:
        """Paths of the files directly in a folder."""
        return sorted(name for name in (*self.members, *self.others) if _get_parent(name) == below)

    def found(self, below: str = "") -> FolderContents:
        """Paths of all files anywhere below a folder."""
        images, others = self._sorted
        return FolderContents(_select_below(images, below), _select_below(others, below))

    @cached_property
    def _sorted(self) -> tuple[list[str], list[str]]:
        return sorted(self.members), sorted(self.others)

    def read(self, name: str) -> bytes:
        """The bytes of one member.

        Raises:
            OSError: there is no such member, or it cannot be read.
        """
        if name not in self.members:
            raise FileNotFoundError(2, "No such file in the archive", name)
        # One handle a process: two that share one would move each other's place in the file.
        handle = self._handles.get(os.getpid())
        if handle is None:
            handle = self._handles[os.getpid()] = self._open()
        where = self.members[name]
        if isinstance(handle, zipfile.ZipFile):
            return handle.read(where)
        offset, size = where
        return os.pread(handle.fileno(), size, offset)

    def _open(self) -> Any:
        return zipfile.ZipFile(self.file) if _is_zip(self.file) else self.file.open("rb")


@dataclass(frozen=True)
class ArchiveMember:
    """One image file within an archive, as `open_image` takes it."""

    archive: ArchiveIndex
    name: str

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """Its bytes."""
        return BytesIO(self.archive.read(self.name))


def open_archive_index(file: Path) -> ArchiveIndex:
    """The index of a zip or an uncompressed tar; no image is opened.

    Raises:
        ToastError: it is neither, is damaged or encrypted, or holds a path that leads out of it.
    """
    try:
        if _is_zip(file):
            return _build_index(file, _read_zip_entries(file))
        with tarfile.open(file, "r:") as tar:
            return _build_index(file, _read_tar_entries(tar))
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise ToastError(
            f"{file} is not a zip or tar file that can be read.",
            "A compressed tar can only be read from front to end."
            if _is_compressed(file)
            else f"{type(error).__name__}: {error}",
            "Decompress it (gunzip, unxz, ...): images gain nothing from it. Or pack a zip."
            if _is_compressed(file)
            else "Fetch or pack it anew.",
            code="data.compressed-archive" if _is_compressed(file) else "data.unreadable-archive",
        ) from error
    except OSError as error:
        raise ToastError(
            f"{file} cannot be read.", error.strerror or str(error), code="data.unreadable-archive"
        ) from error


@dataclass(frozen=True)
class _ArchiveEntry:
    """What an index says about one entry."""

    path: str
    kind: Literal["file", "folder", "link"]
    size: int
    where: Any


def _read_zip_entries(file: Path) -> Iterator[_ArchiveEntry]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.flag_bits & 0x1:
                raise ToastError(
                    f"{file} is encrypted: {info.filename}.",
                    what_to_do="Pack it anew without a password.",
                    code="data.encrypted-archive",
                )
            link = (info.external_attr >> 16) & 0o170000 == 0o120000
            kind: Any = "folder" if info.is_dir() else "link" if link else "file"
            yield _ArchiveEntry(info.orig_filename.replace("\\", "/"), kind, info.file_size, info.filename)


def _read_tar_entries(tar: tarfile.TarFile) -> Iterator[_ArchiveEntry]:
    for member in tar:
        kind: Any = "folder" if member.isdir() else "file" if member.isreg() and not member.issparse() else "link"
        yield _ArchiveEntry(member.name, kind, member.size, (member.offset_data, member.size))


def _build_index(file: Path, entries: Iterator[_ArchiveEntry]) -> ArchiveIndex:
    members: dict[str, Any] = {}
    folders: set[str] = set()
    others: list[str] = []
    links: list[str] = []
    twice: list[str] = []
    for entry in entries:
        path = _require_inner_path(file, entry.path)
        if any(part.startswith(".") or part == "__MACOSX" for part in path.parts):
            continue
        name = path.as_posix()
        if entry.kind == "link":
            links.append(name)
            continue
        if entry.kind == "folder":
            folders.add(name)
        elif is_image_name(name):
            if entry.size > MAX_MEMBER_BYTES:
                raise ToastError(
                    f"{file}/{name} is suspiciously large: {entry.size:,} bytes.",
                    what_to_do="Pack it anew without it.",
                    code="data.oversized-file",
                )
            if name in members:
                twice.append(name)
            members[name] = entry.where
        else:
            others.append(name)
        folders.update(parent.as_posix() for parent in path.parents)
    folders.discard(".")
    notes = [f"{file}: links are not followed: {summarize_file_names(links)}"] if links else []
    if twice:
        notes.append(f"{file}: packed more than once, of which the last is read: {summarize_file_names(twice)}")
    return ArchiveIndex(file, members, frozenset(folders), tuple(others), tuple(notes))


def _require_inner_path(file: Path, name: str) -> PurePosixPath:
    """A member's path.

    Raises:
        ToastError: it leads out of the archive.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
        raise ToastError(
            f"{file} is not read: it holds a path that leads out of it, '{name}'.",
            "Unpacked, it would write over files elsewhere; whoever packed it made a mistake, or meant harm.",
            "Pack it anew with paths below one folder.",
            code="data.unsafe-path",
        )
    return path


def _select_below(names: list[str], folder: str) -> list[str]:
    """Those of sorted paths that lie below a folder; a thousand classes ask among a million images."""
    if not folder:
        return names
    return names[bisect_left(names, f"{folder}/") : bisect_left(names, f"{folder}0")]  # '0' comes after '/'


def _get_parent(folder: str) -> str:
    return "" if "/" not in folder else folder.rpartition("/")[0]


def _is_zip(file: Path) -> bool:
    """By its beginning, too: a tar that ends in a packed zip has that one's index at its end."""
    with file.open("rb") as opened:
        begins = opened.read(4).startswith((b"PK\x03\x04", b"PK\x05\x06"))
    return zipfile.is_zipfile(file) and (begins or not tarfile.is_tarfile(file))


def _is_compressed(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
