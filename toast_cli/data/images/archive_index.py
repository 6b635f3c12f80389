"""Random access to the files in a zip or tar archive, from any number of processes and threads."""

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

from toast_cli.data.images.files import hash_blocks
from toast_cli.data.images.folder_scan import FolderContents, is_heif_name, is_image_name, summarize_file_names
from toast_cli.utils.errors import ToastError

MAX_MEMBER_BYTES = 300_000_000
"""Maximum size in bytes of an image in an archive; protects against entries that would fill the memory."""


@dataclass(frozen=True)
class ArchiveIndex:
    """The index of an archive. It is both a `FolderTree` and the `FileRoot` of the images in it.

    Attributes:
        file: the archive.
        members: location of every image, by path: its name in a zip, or its offset and size in a tar.
        inner: paths of all folders.
        others: location of every other file, by path.
        notes: entries that were left out.
        top: the folder in the archive that all paths are relative to.
    """

    file: Path
    members: dict[str, Any]
    inner: frozenset[str]
    others: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    top: str = ""
    _handles: dict[int, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def root(self) -> ArchiveIndex:
        """The index itself, which opens its members."""
        return self

    def __str__(self) -> str:
        return self.get_display_path()

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self).items() if name != "_sorted"}
        return {**kept, "_handles": {}}  # an open file cannot be sent to another process

    def __truediv__(self, name: str) -> ArchiveMember:
        return ArchiveMember(self, name)

    def get_display_path(self, below: str = "") -> str:
        """Return the path of the archive followed by that of a folder in it."""
        return "/".join(part for part in (str(self.file), self.top, below) if part)

    def get_subfolder(self, top: str) -> ArchiveIndex:
        """Return the index of a folder in the archive, with paths relative to that folder."""
        cut, start = len(top) + 1, f"{top}/"
        return replace(
            self,
            members={name[cut:]: location for name, location in self.members.items() if name.startswith(start)},
            inner=frozenset(name[cut:] for name in self.inner if name.startswith(start)),
            others={name[cut:]: location for name, location in self.others.items() if name.startswith(start)},
            top=top,
        )

    def list_folders(self, below: str = "") -> list[str]:
        """Return the sorted names of the folders directly in a folder."""
        return sorted(PurePosixPath(folder).name for folder in self.inner if _get_parent(folder) == below)

    def list_files(self, below: str = "") -> list[str]:
        """Return the paths of the files directly in a folder."""
        return sorted(name for name in (*self.members, *self.others) if _get_parent(name) == below)

    def list_files_recursively(self, below: str = "") -> FolderContents:
        """Return the paths of all files below a folder."""
        images, others = self._sorted
        return FolderContents(_select_below(images, below), _select_below(others, below))

    @cached_property
    def _sorted(self) -> tuple[list[str], list[str]]:
        return sorted(self.members), sorted(self.others)

    def read_member(self, name: str) -> bytes:
        """Return the bytes of a member.

        Raises:
            OSError: the member does not exist or cannot be read.
        """
        location, handle = self._locate(name), self._get_handle()
        if isinstance(handle, zipfile.ZipFile):
            return handle.read(location)
        offset, size = location
        return os.pread(handle.fileno(), size, offset)

    def compute_stamp(self, name: str) -> int:
        """Return a number that changes with the content of a member: the checksum in a zip, a hash of blocks in a tar.

        Raises:
            OSError: the archive cannot be read.
        """
        location, handle = self._locate(name), self._get_handle()
        if isinstance(handle, zipfile.ZipFile):
            return handle.getinfo(location).CRC
        offset, size = location
        return hash_blocks(size, lambda start, count: os.pread(handle.fileno(), count, offset + start))

    def _locate(self, name: str) -> Any:
        files = self.members if name in self.members else self.others
        if name not in files:
            raise FileNotFoundError(2, "No such file in the archive", name)
        return files[name]

    def _get_handle(self) -> Any:
        # One handle per process: processes that share one would move each other's file position.
        handle = self._handles.get(os.getpid())
        if handle is None:
            handle = zipfile.ZipFile(self.file) if _is_zip(self.file) else self.file.open("rb")
            self._handles[os.getpid()] = handle
        return handle


@dataclass(frozen=True)
class ArchiveMember:
    """An image file in an archive."""

    archive: ArchiveIndex
    name: str

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    @property
    def stamp(self) -> int | None:
        """A number that changes with its content; None if it cannot be read."""
        try:
            return self.archive.compute_stamp(self.name)
        except OSError:
            return None

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """Return a stream of its bytes."""
        return BytesIO(self.archive.read_member(self.name))


def open_archive_index(file: Path) -> ArchiveIndex:
    """Read the index of a zip or an uncompressed tar, without opening any image.

    Raises:
        ToastError: the file is neither, is damaged or encrypted, or has a path that leads out of the archive.
    """
    try:
        if _is_zip(file):
            return _build_index(file, _read_zip_entries(file))
        with tarfile.open(file, "r:") as tar:
            return _build_index(file, _read_tar_entries(tar))
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        if _is_compressed(file):
            raise ToastError(
                f"Cannot read {file}: it is compressed.",
                "A compressed tar does not allow random access.",
                "Decompress it (gunzip, unxz, ...); compression does not make images smaller. Or pack a zip.",
                code="data.compressed-archive",
            ) from error
        raise ToastError(
            f"Cannot read {file} as a zip or tar file.",
            f"{type(error).__name__}: {error}",
            "Download or pack it again.",
            code="data.unreadable-archive",
        ) from error
    except OSError as error:
        raise ToastError(
            f"Cannot read {file}.", error.strerror or str(error), code="data.unreadable-archive"
        ) from error


@dataclass(frozen=True)
class _ArchiveEntry:
    """An entry of an archive: its path, kind, size in bytes, and location."""

    path: str
    kind: Literal["file", "folder", "link"]
    size: int
    location: Any


def _read_zip_entries(file: Path) -> Iterator[_ArchiveEntry]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.flag_bits & 0x1:
                raise ToastError(
                    f"Cannot read {file}: {info.filename} is encrypted.",
                    what_to_do="Pack it again without a password.",
                    code="data.encrypted-archive",
                )
            link = (info.external_attr >> 16) & 0o170000 == 0o120000
            kind: Any = "folder" if info.is_dir() else "link" if link else "file"
            yield _ArchiveEntry(info.orig_filename.replace("\\", "/"), kind, info.file_size, info.filename)


def _read_tar_entries(tar: tarfile.TarFile) -> Iterator[_ArchiveEntry]:
    for member in tar:
        kind: Any = "folder" if member.isdir() else "file" if member.isreg() and not member.issparse() else "link"
        yield _ArchiveEntry(member.name.replace("\\", "/"), kind, member.size, (member.offset_data, member.size))


def _build_index(file: Path, entries: Iterator[_ArchiveEntry]) -> ArchiveIndex:
    members: dict[str, Any] = {}
    folders: set[str] = set()
    others: dict[str, Any] = {}
    links: list[str] = []
    repeated: list[str] = []
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
        elif is_image_name(name) or is_heif_name(name):
            if entry.size > MAX_MEMBER_BYTES:
                raise ToastError(
                    f"{file}/{name} is too large: {entry.size:,} bytes.",
                    f"An image may have at most {MAX_MEMBER_BYTES:,} bytes.",
                    "Pack the archive again without it.",
                    code="data.oversized-file",
                )
            files = members if is_image_name(name) else others
            if name in files:
                repeated.append(name)
            files[name] = entry.location
        else:
            others[name] = entry.location
        folders.update(parent.as_posix() for parent in path.parents)
    folders.discard(".")
    notes = [f"{file}: links are not followed: {summarize_file_names(links)}"] if links else []
    if repeated:
        notes.append(f"{file}: packed more than once, the last copy is read: {summarize_file_names(repeated)}")
    return ArchiveIndex(file, members, frozenset(folders), others, tuple(notes))


def _require_inner_path(file: Path, name: str) -> PurePosixPath:
    """Return the path of a member.

    Raises:
        ToastError: the path leads out of the archive.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
        raise ToastError(
            f"{file} is not safe to read: its path '{name}' leads out of the archive.",
            "Unpacking it could overwrite files elsewhere. It was packed by mistake, or with malicious intent.",
            "Pack it again with paths below one folder.",
            code="data.unsafe-path",
        )
    return path


def _select_below(names: list[str], folder: str) -> list[str]:
    """Return the sorted paths that are below a folder, by bisection: there may be a million paths."""
    if not folder:
        return names
    return names[bisect_left(names, f"{folder}/") : bisect_left(names, f"{folder}0")]  # '0' comes after '/'


def _get_parent(folder: str) -> str:
    return "" if "/" not in folder else folder.rpartition("/")[0]


def _is_zip(file: Path) -> bool:
    """Return whether a file is a zip. A tar whose last member is a zip ends with a zip index, but is not one."""
    with file.open("rb") as stream:
        has_signature = stream.read(4).startswith((b"PK\x03\x04", b"PK\x05\x06"))
    return zipfile.is_zipfile(file) and (has_signature or not tarfile.is_tarfile(file))


def _is_compressed(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
