"""Conversations from a JSON file, and their splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, SplitKind
from toast_cli.data.splits import compute_split_hash, hold_out
from toast_cli.data.text.json_lines import read_json_list
from toast_cli.utils.config import NamedOptions
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.hashing import hash_text

Role = Literal["system", "user", "assistant"]


class ConversationOptions(NamedOptions):
    """Options of a file of conversations."""

    path: str = Field(
        min_length=1, description="the file: a JSON list or JSON lines; relative to the data folder, or absolute"
    )
    val_fraction: float = Field(0.05, ge=0, lt=1, description="share of the conversations held out to select the epoch")
    test_fraction: float = Field(0.05, ge=0, lt=1, description="share of the conversations held out for testing")
    split_seed: int = Field(0, ge=0, description="seed of the splits, independent of the seed of the run")
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
    options: ConversationOptions, data_dir: Path | None, read: Callable[[dict[str, Any]], Sequence[Turn]]
) -> DataSet:
    """Read a file of conversations as a data set.

    Args:
        options: The options of the file.
        data_dir: The folder that a relative path refers to; None for the current folder.
        read: Converts an entry to turns. If it raises ValueError, the entry is left out and counted in the notes.

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
    entries, left_out = read_json_list(path), []
    conversations = []
    for number, entry in enumerate(entries, start=1):
        try:
            if not isinstance(entry, dict):
                raise ValueError("it is not a JSON object")
            conversations.append(Conversation(tuple(read(entry)), f"{path.name}, entry {number}"))
        except ValueError as error:
            left_out.append(f"entry {number} ({error})")
    if not conversations:
        why = (
            f"None of {len(entries):,} entries is valid: {_summarize_left_out(left_out)}."
            if entries
            else "The file is empty."
        )
        raise ToastError(
            f"{path} contains no conversation in the format '{options.name}'.", why, code="text.no-conversations"
        )
    names, labels = [text.name for text in conversations], [0] * len(conversations)
    kept, test = hold_out(names, labels, options.test_fraction, options.split_seed)
    train, val = hold_out([names[i] for i in kept], [0] * len(kept), options.val_fraction, options.split_seed + 1)
    parts = {"train": [kept[i] for i in train], "val": [kept[i] for i in val], "test": test}
    if not parts["train"]:
        raise ToastError(f"{path} contains no conversation to train on.", code="text.no-training-text")
    contents = [repr(text.turns) for text in conversations]  # not the entry numbers, which do not change with an edit
    held = ", ".join(
        f"{len(indices):,} {name} (split {compute_split_hash([contents[i] for i in indices], [0] * len(indices))})"
        for name, indices in parts.items()
    )
    notes = [f"{path.name}: {held}, seed {options.split_seed}"]
    if left_out:
        notes.append(
            f"{len(left_out):,} of {len(entries):,} entries of {path.name} were left out: "
            f"{_summarize_left_out(left_out)}."
        )
    return DataSet(
        classes=(),
        splits={
            name: ConversationSplit(tuple(conversations[i] for i in indices), options)
            for name, indices in parts.items()
            if indices
        },
        notes=tuple(notes),
    )


def require_text(entry: dict[str, Any], name: str) -> str:
    """Return the text of a field.

    Raises:
        ValueError: If the field is missing, empty, not a string or not valid Unicode.
    """
    if name not in entry:
        raise ValueError(f"'{name}' is missing")
    if not isinstance(entry[name], str):
        raise ValueError(f"'{name}' is not a string")
    if not entry[name].strip():
        raise ValueError(f"'{name}' is empty")
    try:
        entry[name].encode()
    except UnicodeEncodeError:
        raise ValueError(f"'{name}' contains a lone surrogate, which is not valid Unicode") from None
    return entry[name]


def _summarize_left_out(left_out: Sequence[str], most: int = 3) -> str:
    more = f" and {len(left_out) - most:,} more" if len(left_out) > most else ""
    return f"{', '.join(left_out[:most])}{more}"
