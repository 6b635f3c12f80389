"""Conversations read from files and data sets, with what is not used of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from math import floor
from pathlib import Path
from typing import Any

from toast_cli.data.paths import resolve_path
from toast_cli.data.text.conversation_format import (
    ConversationFormat,
    describe_formats,
    detect_format,
    load_format,
    load_formats,
    parse_trained,
)
from toast_cli.data.text.entry_files import EntryFile, EntryOptions, read_entry_files
from toast_cli.data.text.turns import Conversation
from toast_cli.utils.errors import ToastError
from toast_cli.utils.hashing import hash_text


@dataclass(frozen=True)
class ConversationSource:
    """A file, a folder or a data set of conversations.

    Attributes:
        path: its place.
        format: the name of its format; None if every entry shows its own.
        weight: how often its texts are trained in an epoch.
        renamed: names of fields in the format by their names in the file.
    """

    path: str
    format: str | None
    weight: float = 1.0
    renamed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ConversationFile:
    """The conversations of a file or of a split of a data set, and what was not used of it.

    Attributes:
        name: its name in messages.
        conversations: its conversations in order.
        entries: number of its entries.
        split: the split that it is; None if splits are to be made of it.
        formats: number of conversations by format, if the format was detected.
        unused: number of entries by what is not used of them.
        left_out: why entries are left out, by entry.
        weight: how often its texts are trained in an epoch.
        notes: sentences about how it was read.
    """

    name: str
    conversations: tuple[Conversation, ...]
    entries: int
    split: str | None
    formats: Mapping[str, int]
    unused: Mapping[str, int]
    left_out: Mapping[str, str]
    weight: float = 1.0
    notes: tuple[str, ...] = ()

    def describe_reading(self) -> list[str]:
        """Return notes on the format and on fields that are not used."""
        notes = list(self.notes)
        if self.formats:
            found = ", ".join(f"{name} ({count_entries(count)})" for name, count in self.formats.items())
            notes.append(f"Format of {self.name}: {found}.")
        if self.unused:
            fields = ", ".join(f"{name} of {count_entries(count)}" for name, count in self.unused.items())
            notes.append(f"Not used in {self.name}: {fields}.")
        return notes

    def describe_left_out(self) -> list[str]:
        """Return a note on entries that are left out."""
        if not self.left_out:
            return []
        reasons = summarize_left_out(self.left_out)
        return [f"{len(self.left_out):,} of {count_entries(self.entries)} of {self.name} were left out: {reasons}."]


def read_conversation_files(
    source: ConversationSource, data_dir: Path | None, options: EntryOptions, taken: Container[str] = ()
) -> list[ConversationFile]:
    """Read the conversations of a source, one `ConversationFile` for each file or split.

    A file whose name is in `taken` has its folder in its name.

    Raises:
        UsageError: There is no such file, folder, data set or format.
        ToastError: It cannot be read, or has no valid conversation.
    """
    known = load_formats()
    formats = known if source.format is None else {source.format: load_format(source.format)}
    is_entry = partial(_is_entry, formats=known, renamed=source.renamed)
    read = []
    files = read_entry_files(source.path, data_dir, options, is_entry)
    place = Path(resolve_path(source.path, data_dir))
    for file in files:
        name = _name_with_folder(file.name, place, taken)
        read.append(_convert_entries(replace(file, name=name), formats, source))
    if not any(found.conversations for found in read):
        left_out = {name: why for found in read for name, why in found.left_out.items()}
        entries = sum(found.entries for found in read)
        why = f"None of {count_entries(entries)} is valid: {summarize_left_out(left_out)}."
        raise ToastError(
            f"{source.path} contains no conversation"
            + (f" in the format '{source.format}'." if source.format else "."),
            why if entries else "The file is empty.",
            _suggest_format((entry for file in files for entry in file.entries), source, known) if entries else "",
            code="text.no-conversations",
        )
    return read


def compute_repeats(weight: float, names: Sequence[str], seed: int) -> list[int]:
    """Return how often each text is trained in an epoch, so that it is `weight` times on average.

    The texts that a fraction adds depend on their names and the seed alone.
    """
    whole = floor(weight)
    order = sorted(range(len(names)), key=lambda index: hash_text(f"{seed} {names[index]}"))
    more = set(order[: round((weight - whole) * len(names))])
    return [whole + (index in more) for index in range(len(names))]


def count_entries(count: int) -> str:
    """Return a number of entries in words."""
    return f"{count:,} {'entry' if count == 1 else 'entries'}"


def summarize_left_out(left_out: Mapping[str, str], most: int = 3) -> str:
    """Return the first entries that are left out, with their reasons."""
    more = f" and {len(left_out) - most:,} more" if len(left_out) > most else ""
    return f"{', '.join(f'{name} ({why})' for name, why in islice(left_out.items(), most))}{more}"


def _name_with_folder(name: str, place: Path, taken: Container[str]) -> str:
    """Return the name of a file of a source after as many of the folders of its `place` as make it new.

    Absolute paths would not do: names are in the record of a run, and its data may have moved.
    """
    folders = place if place.is_dir() else place.parent
    while name in taken and folders.name:
        name, folders = f"{folders.name}/{name}", folders.parent
    return name


def _convert_entries(
    file: EntryFile, formats: Mapping[str, ConversationFormat], source: ConversationSource
) -> ConversationFile:
    left_out: dict[str, str] = {}
    unused: Counter[str] = Counter()
    detected: Counter[str] = Counter()
    conversations = []
    for number, given in enumerate(file.entries, start=1):
        try:
            if not isinstance(given, dict):
                raise ValueError("it is not a JSON object")
            entry = _rename(given, source.renamed)
            name = source.format or detect_format(entry, formats)
            turns = parse_trained(entry, formats[name])
            unused.update(set(formats[name].list_unused(entry)))
            detected[name] += 1
            conversations.append(Conversation(turns, f"{file.name}, entry {number}"))
        except ValueError as error:
            left_out[f"entry {number}"] = str(error)
    return ConversationFile(
        file.name,
        tuple(conversations),
        len(file.entries),
        file.split,
        {} if source.format else dict(detected.most_common()),
        dict(unused.most_common()),
        left_out,
        source.weight,
        file.notes,
    )


def _rename(entry: dict[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """Return an entry with the names of fields that the format knows.

    Raises:
        ValueError: A field would replace another one.
    """
    if not renamed:
        return entry
    names = {name: renamed.get(name, name) for name in entry}
    twice = next((name for name, count in Counter(names.values()).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"dataset.fields gives it two fields '{twice}'")
    return {names[name]: value for name, value in entry.items()}


def _is_entry(entry: Mapping[str, Any], formats: Mapping[str, ConversationFormat], renamed: Mapping[str, str]) -> bool:
    named = {renamed.get(name, name): value for name, value in entry.items()}
    return any(form.recognize(named) for form in formats.values())


def _suggest_format(entries: Iterable[Any], source: ConversationSource, known: Mapping[str, ConversationFormat]) -> str:
    """Return what to do with a source without a valid entry; empty if its entries have the fields of its format."""
    objects = [entry for entry in entries if isinstance(entry, dict)]
    found = {
        name: None
        for name, form in known.items()
        for entry in objects[:1]
        if _is_entry(entry, {name: form}, source.renamed)
    }
    if source.format in found or (found and source.format is None):
        return ""
    if found:
        return f"Its entries are in the format '{next(iter(found))}': use --dataset messages:{source.path}."
    return (
        f"Known are entries with {describe_formats(known)}. Rename the fields, also with dataset.fields: "
        "dataset.fields='{question: prompt, answer: completion}'."
    )
