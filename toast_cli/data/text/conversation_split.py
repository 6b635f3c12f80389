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
    compute_text_key,
    count_copies_across_splits,
    find_first_copies,
    find_near_texts_across_splits,
    format_copies_note,
)
from toast_cli.data.text.json_lines import read_json_list
from toast_cli.utils.config import LOCAL_PATH, NamedOptions
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.hashing import hash_text

Role = Literal["system", "user", "assistant"]

MAX_SHARING_CONVERSATIONS = 3
"""Number of conversations that may share a part verbatim for it to count in the search for near-duplicates."""

FIELDS_BY_FORMAT = {"alpaca": "instruction", "sharegpt": "conversations"}
"""The field that tells a format of conversations from others."""

_EMPTY: tuple[Any, ...] = (None, "", [], {})
"""Values of fields without content."""


class ConversationOptions(NamedOptions):
    """Options of a file of conversations."""

    path: str = Field(
        min_length=1,
        examples=["answers.json"],
        json_schema_extra=LOCAL_PATH,
        description="the file: a JSON list or JSON lines; relative to the data folder, or absolute",
    )
    val_fraction: float = Field(0.05, ge=0, lt=1, description="share of the conversations held out to select the epoch")
    test_fraction: float = Field(0.05, ge=0, lt=1, description="share of the conversations held out for testing")
    split_seed: int = Field(0, ge=0, examples=[1], description="seed of the splits, independent of the seed of the run")
    group_copies: bool = Field(
        False, description="keep copies of a text, which may differ in case and spaces, in one split"
    )
    max_tokens: int = Field(
        2048,
        ge=8,
        description="maximum number of tokens, within those that the model reads; longer texts are cut and counted",
    )
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
    """Read a file of conversations as a data set.

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
    path = Path(options.path).expanduser()
    path = path if path.is_absolute() or data_dir is None else data_dir / path
    if not path.is_file():
        raise UsageError(
            f"The file {path} does not exist.",
            what_to_do="Check the path after the name of the data set.",
            code="data.missing-file",
        )
    entries = read_json_list(path)
    left_out: dict[str, str] = {}
    unused: Counter[str] = Counter()
    conversations = []
    for number, entry in enumerate(entries, start=1):
        try:
            if not isinstance(entry, dict):
                raise ValueError("it is not a JSON object")
            conversations.append(Conversation(tuple(read(entry)), f"{path.name}, entry {number}"))
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
            f"{path} contains no conversation in the format '{options.name}'.",
            why,
            _suggest_format(entries, path, options.name),
            code="text.no-conversations",
        )
    keys = [compute_text_key(format_content(text)) for text in conversations]
    parts = _split_conversations(conversations, keys, options)
    if not parts["train"]:
        raise ToastError(f"{path} contains no conversation to train on.", code="text.no-training-text")
    contents = [repr(text.turns) for text in conversations]  # not the entry numbers, which do not change with an edit
    held = ", ".join(
        f"{len(indices):,} {name} (split {compute_split_hash([contents[i] for i in indices], [0] * len(indices))})"
        for name, indices in parts.items()
    )
    notes = [f"{path.name}: {held}, seed {options.split_seed}"]
    if unused:
        fields = ", ".join(f"{name} of {count:,} entries" for name, count in unused.most_common())
        notes.append(f"Not used in {path.name}: {fields}.")
    repeated = count_copies_across_splits({name: [keys[i] for i in indices] for name, indices in parts.items()})
    notes += format_copies_note(repeated, path.name)
    splits = {
        name: ConversationSplit(tuple(conversations[i] for i in indices), options)
        for name, indices in parts.items()
        if indices
    }
    if near := find_near_conversations(splits):
        later, earlier = next(iter(near.items()))
        count = f"{len(near):,} {'texts of val and test are' if len(near) > 1 else 'text of val and test is'}"
        notes.append(
            f"{count} nearly the same as one of an earlier split, for example {later} and {earlier}. Results on them "
            "say little about new texts; 'toast data check' lists them."
        )
    if left_out:
        notes.append(
            f"{len(left_out):,} of {len(entries):,} entries of {path.name} were left out: "
            f"{_summarize_left_out(left_out)}."
        )
    return DataSet(classes=(), splits=splits, notes=tuple(notes), left_out=left_out)


def _split_conversations(
    conversations: Sequence[Conversation], keys: Sequence[int], options: ConversationOptions
) -> dict[str, list[int]]:
    """Return the indices of each split. Conversations with equal keys are in one split if `group_copies` is set."""
    first = find_first_copies(keys if options.group_copies else range(len(keys)))
    kinds = sorted(set(first))
    names, seed = [conversations[i].name for i in kinds], options.split_seed
    kept, test = hold_out(names, [0] * len(kinds), options.test_fraction, seed)
    train, val = hold_out([names[i] for i in kept], [0] * len(kept), options.val_fraction, seed + 1)
    chosen = {"train": [kept[i] for i in train], "val": [kept[i] for i in val], "test": test}
    split_of = {kinds[place]: name for name, places in chosen.items() for place in places}
    parts: dict[str, list[int]] = {name: [] for name in chosen}
    for index, original in enumerate(first):
        parts[split_of[original]].append(index)
    return parts


def format_content(conversation: Conversation) -> str:
    """Return the roles and texts of a conversation as one text, to compare conversations."""
    return "\n".join(f"{turn.role}: {turn.whole}" for turn in conversation.turns)


def find_near_conversations(splits: Mapping[str, ConversationSplit]) -> dict[str, str]:
    """Return the conversations that are nearly the same as one of an earlier split: `part: name` of both.

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
    return find_near_texts_across_splits(kept)


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
