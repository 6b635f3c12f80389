"""Texts as data: conversations read from a JSON file, divided once, and written out as a model is to read them."""

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

Role = Literal["system", "user", "assistant"]


class ConversationOptions(NamedOptions):
    """What a source of conversations can be told."""

    path: str = Field(
        min_length=1, description="the file: a JSON list, or JSON lines; relative to the data folder, or absolute"
    )
    val_fraction: float = Field(0.05, ge=0, lt=1, description="share of the file held out to choose the epoch by")
    test_fraction: float = Field(0.05, ge=0, lt=1, description="share of the file held out to be measured once")
    split_seed: int = Field(0, ge=0, description="seed of both, apart from the run's own seed")
    max_tokens: int = Field(512, ge=8, description="longer texts are cut here, and counted")
    template: Literal["auto", "chat", "plain", "stanford"] = Field(
        "auto",
        description="how turns are marked: the tokenizer's chat template, plain headings, or Stanford Alpaca's words; "
        "auto: chat if there is one, else plain",
    )
    packing: bool = Field(False, description="fill blocks of max_tokens with several texts that do not see each other")


@dataclass(frozen=True)
class Turn:
    """What one side said; `material` is what an instruction is about, where that is given apart from it."""

    role: Role
    text: str
    material: str = ""

    @property
    def whole(self) -> str:
        """Text and material."""
        return "\n\n".join(part for part in (self.text, self.material) if part)


@dataclass(frozen=True)
class Conversation:
    """Turns in order; `name` is what an error calls it."""

    turns: tuple[Turn, ...]
    name: str


@dataclass(frozen=True)
class ConversationSplit:
    """Conversations in order, and the options by which they are written out."""

    kind: ClassVar[SplitKind] = "conversations"

    conversations: tuple[Conversation, ...]
    options: ConversationOptions
    has_masks: bool = False

    @property
    def names(self) -> list[str]:
        """What an error calls every conversation."""
        return [conversation.name for conversation in self.conversations]

    def __len__(self) -> int:
        return len(self.conversations)

    def load(self, index: int) -> Conversation:
        """One conversation."""
        return self.conversations[index]


def open_conversations(
    options: ConversationOptions, data_dir: Path | None, read: Callable[[dict[str, Any]], Sequence[Turn]]
) -> DataSet:
    """A file of conversations as a data set.

    `read` turns one entry into turns, or raises a ValueError that says why it cannot be used: it is then left out,
    counted and named in the notes.

    Raises:
        UsageError: there is no such file.
        ToastError: it is not JSON, no entry can be used, or too few are left to train on.
    """
    path = Path(options.path).expanduser()
    path = path if path.is_absolute() or data_dir is None else data_dir / path
    if not path.is_file():
        raise UsageError(
            f"There is no file {path}.",
            what_to_do="Check the path after the data set's name.",
            code="data.missing-file",
        )
    entries, left_out = read_json_list(path), []
    conversations = []
    for number, entry in enumerate(entries, start=1):
        try:
            if not isinstance(entry, dict):
                raise ValueError("it is no object")
            conversations.append(Conversation(tuple(read(entry)), f"{path.name}, entry {number}"))
        except ValueError as error:
            left_out.append(f"entry {number} ({error})")
    if not conversations:
        why = (
            f"None of {len(entries):,} entries can be used: {_summarize_left_out(left_out)}."
            if entries
            else "It is empty."
        )
        raise ToastError(
            f"{path} holds no conversation in the format of '{options.name}'.", why, code="text.no-conversations"
        )
    names, labels = [text.name for text in conversations], [0] * len(conversations)
    kept, test = hold_out(names, labels, options.test_fraction, options.split_seed)
    train, val = hold_out([names[i] for i in kept], [0] * len(kept), options.val_fraction, options.split_seed + 1)
    parts = {"train": [kept[i] for i in train], "val": [kept[i] for i in val], "test": test}
    if not parts["train"]:
        raise ToastError(f"{path} holds no conversation to train on.", code="text.no-training-text")
    said = [repr(text.turns) for text in conversations]  # not the entries' numbers, which an edit leaves as they are
    held = ", ".join(
        f"{len(indices):,} {name} (split {compute_split_hash([said[i] for i in indices], [0] * len(indices))})"
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
    """A text that an entry must hold; a ValueError says what is there instead."""
    if name not in entry:
        raise ValueError(f"there is no '{name}'")
    if not isinstance(entry[name], str):
        raise ValueError(f"'{name}' is no text")
    if not entry[name].strip():
        raise ValueError(f"'{name}' is empty")
    try:
        entry[name].encode()
    except UnicodeEncodeError:
        raise ValueError(f"'{name}' holds half a character (a lone surrogate)") from None
    return entry[name]


def _summarize_left_out(left_out: Sequence[str], most: int = 3) -> str:
    more = f" and {len(left_out) - most:,} more" if len(left_out) > most else ""
    return f"{', '.join(left_out[:most])}{more}"
