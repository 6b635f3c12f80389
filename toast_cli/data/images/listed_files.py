"""Lookup of the image files that a list names, however the list spells their paths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from unicodedata import normalize
from urllib.parse import unquote

from toast_cli.data.images.files import MissingFilesError

ListFolder = Callable[[Path], Mapping[str, Sequence[str]]]
"""A function from a folder to the names in it, by their form without capitals."""

MAX_EXPLAINED = 1000
"""Maximum number of missing files that are looked for under another name."""


def find_listed_files(
    root: Path, names: Sequence[str], describe: Callable[[int], str], what: str, what_to_do: str
) -> list[str]:
    """Return the names of existing files below `root`, with forward slashes, in the order of the list.

    A name that does not exist as it is written is also looked up with backslashes as separators, as a `file://` URL,
    with percent-encoded characters, and in other forms of Unicode.

    Args:
        root: the folder that relative paths refer to.
        names: the paths in the list.
        describe: returns the name of an entry for messages, by its index.
        what: description of the files, for messages.
        what_to_do: the next step for the user.

    Raises:
        MissingFilesError: some files do not exist; it says under which other names they do.
    """
    list_folder = _make_folder_listing()
    found = match_listed_files(root, names, list_folder)
    missing = [index for index, name in enumerate(found) if name is None]
    if missing:
        reasons = explain_missing_files(root, [names[index] for index in missing], list_folder)
        raise MissingFilesError(list(map(describe, missing)), len(names), what, what_to_do, reasons)
    return [name for name in found if name is not None]


def match_listed_files(root: Path, names: Sequence[str], list_folder: ListFolder | None = None) -> list[str | None]:
    """Return the name of the existing file below `root` that each entry of a list means; None if there is none."""
    list_folder = list_folder or _make_folder_listing()
    return [_find_file(root, name, list_folder) for name in names]


def require_files(files: Sequence[tuple[str, Path]], what: str, what_to_do: str) -> None:
    """Check that all files exist, so that a missing one does not end a run in the middle of training.

    Args:
        files: name, for the message, and path of every file.
        what: description of the files, for the message.
        what_to_do: the next step for the user.

    Raises:
        MissingFilesError: some files do not exist.
    """
    missing = [(name, str(file)) for name, file in files if not file.is_file()]
    if missing:
        known = explain_missing_files(Path(), [file for _, file in missing])
        raise MissingFilesError([name for name, _ in missing], len(files), what, what_to_do, known)


def explain_missing_files(root: Path, names: Sequence[str], list_folder: ListFolder | None = None) -> list[str]:
    """Return sentences on why files that a list names are not found: where they are, or whose paths they are."""
    list_folder = list_folder or _make_folder_listing()
    cases: dict[str, list[str]] = {}
    for name in names[:MAX_EXPLAINED]:
        slashed = _read_url(name).replace("\\", "/")
        other = _find_spelling(root, slashed, list_folder, ignore_case=True)
        if other is not None:
            cases.setdefault("case", []).append(f"'{name}' is '{other}'")
            continue
        parts = PurePosixPath(slashed).parts
        tail = next(("/".join(parts[n:]) for n in range(1, len(parts)) if _is_file(root / "/".join(parts[n:]))), None)
        if "://" in name and not name.lower().startswith("file:"):
            cases.setdefault("url", []).append(name)
        elif PureWindowsPath(name).drive:
            cases.setdefault("windows", []).append(f"'{name}'" + (f" may be '{tail}'" if tail else ""))
        elif tail is not None:
            cases.setdefault("tail", []).append(f"'{name}' may be '{tail}'")
    words = {
        "case": "exist with other capitals in their names",
        "url": "are addresses; download the images and list their files",
        "windows": "are absolute paths of a Windows computer; write paths below the folder of the list",
        "tail": "begin with another folder; write paths below the folder of the list",
    }
    return [f"{len(found):,} {words[kind]}: {found[0]}." for kind, found in cases.items()]


def _find_file(root: Path, name: str, list_folder: ListFolder) -> str | None:
    if _is_file(root / name):
        return name
    spellings = (_find_spelling(root, spelling, list_folder) for spelling in _iterate_spellings(name))
    found = next((spelling for spelling in spellings if spelling is not None), None)
    if found is not None and (place := Path(found)).is_absolute() and place.is_relative_to(root.absolute()):
        return place.relative_to(root.absolute()).as_posix()
    return found


def _iterate_spellings(name: str) -> Iterator[str]:
    """Yield a path as other systems may have meant it, without repetition."""
    slashed = name.replace("\\", "/")
    yield from dict.fromkeys((name, slashed, _read_url(name), unquote(slashed), slashed.strip()))


def _read_url(name: str) -> str:
    """Return the path of a `file://` URL; other names are returned unchanged."""
    scheme, slashes, path = name.partition("://")
    if scheme.lower() != "file" or not slashes:
        return name
    return unquote(path.removeprefix("localhost"))


def _find_spelling(root: Path, name: str, list_folder: ListFolder, ignore_case: bool = False) -> str | None:
    """Return the name of a file whose parts equal those of `name` in some form of Unicode, or None."""
    parts = PurePosixPath(name).parts
    place, spelled = root, []
    for part in parts:
        if not _exists(place / part):
            alike = list_folder(place).get(_fold(part), ())
            if not ignore_case:
                alike = [each for each in alike if normalize("NFC", each) == normalize("NFC", part)]
            if not alike:
                return None
            part = alike[0]
        place /= part
        spelled.append(part)
    return str(PurePosixPath(*spelled)) if spelled and _is_file(place) else None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long for the file system
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # likewise
        return False


def _fold(name: str) -> str:
    return normalize("NFC", name).casefold()


def _make_folder_listing() -> ListFolder:
    @cache
    def list_folder(folder: Path) -> Mapping[str, Sequence[str]]:
        found: dict[str, list[str]] = {}
        try:
            for name in sorted(entry.name for entry in folder.iterdir()):
                found.setdefault(_fold(name), []).append(name)
        except OSError:  # the folder does not exist
            pass
        return found

    return list_folder
