"""Texts as data: conversations read from a JSON file, divided once, and written out as a model is to read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from toast_cli.data.source import Asked, Batches, DataSet
from toast_cli.data.split import hold_out, split_hash
from toast_cli.errors import ToastError, UsageError
from toast_cli.options import Named

if TYPE_CHECKING:
    from toast_cli.backbone import Backbone
    from toast_cli.recipe.schema import Recipe

Role = Literal["system", "user", "assistant"]


class TextOptions(Named):
    """What a source of conversations can be told."""

    path: str = Field(
        min_length=1, description="the file: a JSON list, or JSON lines; relative to the data folder, or absolute"
    )
    val_fraction: float = Field(0.05, ge=0, lt=1, description="share of the file held out to choose the epoch by")
    test_fraction: float = Field(0.05, ge=0, lt=1, description="share of the file held out to be measured once")
    split_seed: int = Field(0, ge=0, description="seed of both, apart from the run's own seed")
    max_tokens: int = Field(512, ge=8, description="longer texts are cut here, and counted")
    template: Literal["auto", "chat", "plain"] = Field(
        "auto", description="how turns are marked: the tokenizer's chat template, or plain headings; auto: chat if any"
    )
    packing: bool = Field(False, description="fill blocks of max_tokens with several texts that do not see each other")


@dataclass(frozen=True)
class Turn:
    """What one side said."""

    role: Role
    text: str


@dataclass(frozen=True)
class Conversation:
    """Turns in order; `name` is what an error calls it."""

    turns: tuple[Turn, ...]
    name: str


@dataclass(frozen=True)
class TextSplit:
    """Conversations in order."""

    conversations: tuple[Conversation, ...]
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
    options: TextOptions, data_dir: Path | None, read: Callable[[dict[str, Any]], Sequence[Turn]]
) -> DataSet:
    """A file of conversations as a data set; `read` turns one entry into turns, or raises KeyError or ValueError.

    Raises:
        UsageError: there is no such file.
        ToastError: it is not JSON, an entry is not as it should be, or too few are left to train on.
    """
    path = Path(options.path).expanduser()
    path = path if path.is_absolute() or data_dir is None else data_dir / path
    conversations = []
    for number, entry in enumerate(_entries(path), start=1):
        name = f"{path.name}, entry {number}"
        try:
            turns = tuple(read(entry))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            why = f"there is no {error}" if isinstance(error, KeyError) else str(error)
            raise ToastError(f"{name} is not in the format of '{options.name}'.", f"{why}.") from error
        conversations.append(Conversation(turns, name))
    names, labels = [text.name for text in conversations], [0] * len(conversations)
    kept, test = hold_out(names, labels, options.test_fraction, options.split_seed)
    train, val = hold_out([names[i] for i in kept], [0] * len(kept), options.val_fraction, options.split_seed + 1)
    parts = {"train": [kept[i] for i in train], "val": [kept[i] for i in val], "test": test}
    if not parts["train"]:
        raise ToastError(f"{path} holds no conversation to train on.")
    held = ", ".join(
        f"{len(indices):,} {name} (split {split_hash([names[i] for i in indices], [0] * len(indices))})"
        for name, indices in parts.items()
    )
    return DataSet(
        classes=(),
        splits={
            name: TextSplit(tuple(conversations[i] for i in indices)) for name, indices in parts.items() if indices
        },
        notes=(f"{path.name}: {held}, seed {options.split_seed}",),
        batches=_batches,
    )


def _batches(split: TextSplit, recipe: Recipe, backbone: Backbone, asked: Asked) -> Batches:
    from toast_cli.data.text_loading import text_batches

    return text_batches(split, recipe, backbone, asked)


def _entries(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UsageError(f"There is no file {path}.", what_to_do="Check the path after the data set's name.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.lstrip()[:1]
        entries = json.loads(text) if first == "[" else [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ToastError(f"{path} cannot be read.", f"{type(error).__name__}: {error}") from error
    return entries
