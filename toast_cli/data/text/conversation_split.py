"""Conversations from a JSON file, and their splits."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, SplitKind
from toast_cli.data.splits import compute_split_hash, hold_out
from toast_cli.data.text.duplicates import (
    NearTexts,
    compute_text_key,
    count_copies_across_splits,
    find_first_copies,
    find_near_texts_by_split,
    format_copies_note,
)
from toast_cli.data.text.json_lines import read_json_list
from toast_cli.data.text.split_options import TextSplitOptions, join_names, require_distinct_paths
from toast_cli.utils.config import LOCAL_PATH
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.hashing import hash_text

Role = Literal["system", "user", "assistant"]

MAX_SHARING_CONVERSATIONS = 3
"""Number of conversations that may share a part verbatim for it to count in the search for near-duplicates."""

FIELDS_BY_FORMAT = {"alpaca": "instruction", "sharegpt": "conversations"}
"""The field that tells a format of conversations from others."""

_EMPTY: tuple[Any, ...] = (None, "", [], {})
"""Values of fields without content."""


class ConversationOptions(TextSplitOptions):
    """Options of a file of conversations."""

    TOKEN_FIELDS: ClassVar[tuple[str, ...]] = ("max_tokens", "template")

    path: str = Field(
        min_length=1,
        examples=["answers.json"],
        json_schema_extra=LOCAL_PATH,
        description="the file: a JSON list or JSON lines; relative to the data folder, or absolute",
    )
    val_fraction: float = Field(0.05, ge=0, lt=1, description="share of the conversations held out to select the epoch")
    test_fraction: float = Field(0.05, ge=0, lt=1, description="share of the conversations held out for testing")
    max_tokens: int = Field(512, ge=8, description="maximum number of tokens; longer texts are truncated and counted")
    template: Literal["auto", "chat", "plain", "stanford"] = Field(
        "auto",
        description="format of the turns: chat for the tokenizer's chat template, plain for headings, stanford for "
        "Stanford Alpaca's text; auto: chat if the tokenizer has a chat template, else plain",
    )
    packing: bool = Field(
        False, description="pack several texts into blocks of max_tokens; texts do not attend to each other"
    )


@dataclass(frozen=True)
class Turn:
    """A turn of a conversation. `material` is the separate input of an instruction, if it has one."""

    role: Role
    text: str
    material: str = ""

    @property
    def whole(self) -> str:
        """Text and material, separated by a blank line."""
        return "\n\n".join(part for part in (self.text, self.material) if part)


@dataclass(frozen=True)
class Conversation:
    """Turns in order. `name` identifies the conversation in messages."""

    turns: tuple[Turn, ...]
    name: str


@dataclass(frozen=True)
class ConversationSplit:
    """A split of conversations, with the options of their format."""

    kind: ClassVar[SplitKind] = "conversations"

    conversations: tuple[Conversation, ...]
    options: ConversationOptions
    has_masks: bool = False

    @property
    def names(self) -> list[str]:
        """Name of every conversation in messages."""
        return [conversation.name for conversation in self.conversations]

    def __len__(self) -> int:
        return len(self.conversations)

    def stamp(self, index: int) -> int:
        """Return a hash of the text of a conversation, whose name is only its number."""
        return int(hash_text(repr(self.conversations[index].turns))[:12], 16)

    def load(self, index: int) -> Conversation:
        """Return a conversation."""
        return self.conversations[index]


def open_conversations(
    options: ConversationOptions,
    data_dir: Path | None,
    read: Callable[[dict[str, Any]], Sequence[Turn]],
    list_unused: Callable[[dict[str, Any]], Iterable[str]],
) -> DataSet:
    """Read a file of conversations as a data set, and those of `val_path` and `test_path`.

    Copies of a conversation that are in several splits are counted in the notes. With `group_copies`, they are in one.

    Args:
        options: The options of the file.
        data_dir: The folder that a relative path refers to; None for the current folder.
        read: Converts an entry to turns. If it raises ValueError, the entry is left out and counted in the notes.
        list_unused: Yields what `read` does not use of an entry, to be counted in the notes.

    Raises:
        UsageError: If the file does not exist.
        ToastError: If the file is not valid JSON, or has no valid entry or no training conversation.
    """
    require_distinct_paths(options, lambda path: _find_file(path, data_dir).resolve())
    files = {part: _find_file(path, data_dir) for part, path in {"train": options.path, **options.own_paths}.items()}
    read_files = {
        part: _read_file(file, _name_file(file, files), options.name, read, list_unused) for part, file in files.items()
    }
    conversations = [text for found in read_files.values() for text in found.conversations]
    keys = [compute_text_key(format_content(text)) for text in conversations]
    parts = _split_conversations(read_files["train"].conversations, keys, options)
    if not parts["train"]:
        raise ToastError(f"{files['train']} contains no conversation to train on.", code="text.no-training-text")
    start = len(read_files["train"].conversations)
    for part in options.own_paths:
        parts[part] = list(range(start, start + len(read_files[part].conversations)))
        start += len(parts[part])
    contents = [repr(text.turns) for text in conversations]  # not the entry numbers, which do not change with an edit

    def describe_part(part: str) -> str:
        indices = parts[part]
        split_hash = compute_split_hash([contents[i] for i in indices], [0] * len(indices))
        return f"{len(indices):,} {part} (split {split_hash})"

    held = ", ".join(describe_part(part) for part in parts if part == "train" or options.get_fraction(part))
    seed = f", seed {options.split_seed}" if options.holds_out else ""
    notes = [f"{read_files['train'].name}: {held}{seed}"]
    notes += [f"{read_files[part].name}: {describe_part(part)}, the whole file" for part in options.own_paths]
    for found in read_files.values():
        notes += found.describe_unused()
    repeated = count_copies_across_splits({name: [keys[i] for i in indices] for name, indices in parts.items()})
    notes += format_copies_note(
        repeated, join_names([found.name for found in read_files.values()]), bool(options.own_paths)
    )
    splits = {
        name: ConversationSplit(tuple(conversations[i] for i in indices), options)
        for name, indices in parts.items()
        if indices
    }
    if near := find_near_conversations(splits).across_splits:
        later, earlier = next(iter(near.items()))
        count = f"{len(near):,} {'texts of val and test are' if len(near) > 1 else 'text of val and test is'}"
        notes.append(
            f"{count} nearly the same as one of an earlier split, for example {later} and {earlier}. Results on them "
            "say little about new texts; 'toast data check' lists them."
        )
    left_out: dict[str, str] = {}
    for found in read_files.values():
        notes += found.describe_left_out()
        prefix = f"{found.name}, " if options.own_paths else ""
        left_out |= {f"{prefix}{name}": why for name, why in found.left_out.items()}
    return DataSet(classes=(), splits=splits, notes=tuple(notes), left_out=left_out)


@dataclass(frozen=True)
class ConversationFile:
    """The conversations of a file, with what was not used of it: fields, by how many entries have them, and entries."""

    name: str
    conversations: Sequence[Conversation]
    entries: int
    unused: Mapping[str, int]
    left_out: Mapping[str, str]

    def describe_unused(self) -> list[str]:
        """Return a note on fields that are not used."""
        fields = ", ".join(f"{name} of {count:,} entries" for name, count in self.unused.items())
        return [f"Not used in {self.name}: {fields}."] if fields else []

    def describe_left_out(self) -> list[str]:
        """Return a note on entries that are left out."""
        if not self.left_out:
            return []
        reasons = _summarize_left_out(self.left_out)
        return [f"{len(self.left_out):,} of {self.entries:,} entries of {self.name} were left out: {reasons}."]


def _find_file(path: str, data_dir: Path | None) -> Path:
    """Return the file of a path.

    Raises:
        UsageError: If it does not exist.
    """
    file = Path(path).expanduser()
    file = file if file.is_absolute() or data_dir is None else data_dir / file
    if not file.is_file():
        raise UsageError(
            f"The file {file} does not exist.",
            what_to_do="Check the path after the name of the data set, dataset.val_path and dataset.test_path.",
            code="data.missing-file",
        )
    return file


def _name_file(file: Path, files: Mapping[str, Path]) -> str:
    """Return the name of a file in messages, with its folder if another file has the same name."""
    names = [each.name for each in files.values()]
    return file.name if names.count(file.name) == 1 else f"{file.absolute().parent.name}/{file.name}"


def _read_file(
    file: Path,
    name: str,
    format_name: str,
    read: Callable[[dict[str, Any]], Sequence[Turn]],
    list_unused: Callable[[dict[str, Any]], Iterable[str]],
) -> ConversationFile:
    """Read the conversations of a file.

    Raises:
        ToastError: If the file is not valid JSON, or has no valid entry.
    """
    entries = read_json_list(file)
    left_out: dict[str, str] = {}
    unused: Counter[str] = Counter()
    conversations = []
    for number, entry in enumerate(entries, start=1):
        try:
            if not isinstance(entry, dict):
                raise ValueError("it is not a JSON object")
            conversations.append(Conversation(tuple(read(entry)), f"{name}, entry {number}"))
            unused.update(set(list_unused(entry)))
        except ValueError as error:
            left_out[f"entry {number}"] = str(error)
    if not conversations:
        why = (
            f"None of {len(entries):,} entries is valid: {_summarize_left_out(left_out)}."
            if entries
            else "The file is empty."
        )
        raise ToastError(
            f"{file} contains no conversation in the format '{format_name}'.",
            why,
            _suggest_format(entries, file, format_name),
            code="text.no-conversations",
        )
    return ConversationFile(name, conversations, len(entries), dict(unused.most_common()), left_out)


def _split_conversations(
    conversations: Sequence[Conversation], keys: Sequence[int], options: ConversationOptions
) -> dict[str, list[int]]:
    """Return the indices of each split of a file. Conversations with equal keys are in one if `group_copies` is set."""
    first = find_first_copies(keys[: len(conversations)] if options.group_copies else range(len(conversations)))
    kinds = sorted(set(first))
    names, seed = [conversations[i].name for i in kinds], options.split_seed
    kept, test = hold_out(names, [0] * len(kinds), options.get_fraction("test"), seed)
    train, val = hold_out([names[i] for i in kept], [0] * len(kept), options.get_fraction("val"), seed + 1)
    chosen = {"train": [kept[i] for i in train], "val": [kept[i] for i in val], "test": test}
    split_of = {kinds[place]: name for name, places in chosen.items() for place in places}
    parts: dict[str, list[int]] = {name: [] for name in chosen}
    for index, original in enumerate(first):
        parts[split_of[original]].append(index)
    return parts


def format_content(conversation: Conversation) -> str:
    """Return the roles and texts of a conversation as one text, to compare conversations."""
    return "\n".join(f"{turn.role}: {turn.whole}" for turn in conversation.turns)


def find_near_conversations(splits: Mapping[str, ConversationSplit], within: bool = False) -> NearTexts:
    """Find the conversations that are nearly the same as an earlier one: `part: name` of both.

    Parts that many conversations share, such as a system prompt or the name of a class, are not compared.
    """
    turns = (turn for split in splits.values() for text in split.conversations for turn in text.turns)
    common = Counter(hash(part) for turn in turns for part in (turn.text, turn.material))
    kept: dict[str, tuple[list[str], list[str]]] = {part: ([], []) for part in splits}
    for part, split in splits.items():
        for text in split.conversations:
            pieces = [piece for turn in text.turns for piece in (turn.text, turn.material)]
            if own := " ".join(piece for piece in pieces if common[hash(piece)] <= MAX_SHARING_CONVERSATIONS):
                kept[part][0].append(f"{part}: {text.name}")
                kept[part][1].append(own)
    return find_near_texts_by_split(kept, within)


def require_field(entry: dict[str, Any], name: str) -> Any:
    """Return the value of a field.

    Raises:
        ValueError: If the field is missing.
    """
    if name not in entry:
        found = ", ".join(f"'{field}'" for field in islice(entry, 5))
        raise ValueError(f"'{name}' is missing; found {found or 'no field'}")
    return entry[name]


def require_text(entry: dict[str, Any], name: str) -> str:
    """Return the text of a field.

    Raises:
        ValueError: If the field is missing, empty, not a string or not valid Unicode.
    """
    require_field(entry, name)
    if not isinstance(entry[name], str):
        raise ValueError(f"'{name}' is not a string")
    if not entry[name].strip():
        raise ValueError(f"'{name}' is empty")
    try:
        entry[name].encode()
    except UnicodeEncodeError:
        raise ValueError(f"'{name}' contains a lone surrogate, which is not valid Unicode") from None
    return entry[name]


def list_filled_fields(entry: Mapping[str, Any], used: Container[str], prefix: str = "") -> Iterator[str]:
    """Yield the fields of an entry that are not used, in quotation marks; fields without content do not count."""
    yield from (f"'{prefix}{name}'" for name, value in entry.items() if name not in used and value not in _EMPTY)


def _suggest_format(entries: Sequence[Any], path: Path, name: str) -> str:
    """Return what to do with a file without an entry in the format `name`; empty if its entries have the field."""
    first = next((entry for entry in entries if isinstance(entry, dict)), {})
    for other, field in FIELDS_BY_FORMAT.items():
        if field in first:
            return "" if other == name else f"Use --dataset {other}:{path}."
    if "messages" in first:
        return (
            "Rename 'messages' to 'conversations', and in each message 'role' to 'from' and 'content' to 'value'. Then "
            f"use --dataset sharegpt:{path}."
        )
    lists = [key for key, value in first.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(entries) == 1 and lists:
        query = shlex.quote(f".[{json.dumps(lists[0])}]")
        command = f"jq {query} {shlex.quote(str(path))} > entries.json"
        return f"The entries are in '{lists[0]}'. Save that list in a file of its own: {command}"
    known = " and ".join(f"'{field}' ({other})" for other, field in FIELDS_BY_FORMAT.items())
    return f"Known are entries with {known}; rename the fields, or convert the file."


def _summarize_left_out(left_out: Mapping[str, str], most: int = 3) -> str:
    more = f" and {len(left_out) - most:,} more" if len(left_out) > most else ""
    return f"{', '.join(f'{name} ({why})' for name, why in islice(left_out.items(), most))}{more}"
