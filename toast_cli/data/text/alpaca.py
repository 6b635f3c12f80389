"""`alpaca`: instructions with answers, in the format of Stanford Alpaca."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.text.conversation_split import (
    ConversationOptions,
    Turn,
    list_filled_fields,
    open_conversations,
    require_text,
)


class AlpacaOptions(ConversationOptions):
    """Options of an Alpaca file."""

    name: Literal["alpaca"] = Field("alpaca", description="the data set")


def parse_alpaca_entry(entry: dict[str, Any]) -> list[Turn]:
    """Convert an entry (`instruction`, `output`; optional `input`, `system`, `history`) to turns.

    Raises:
        ValueError: If a field is missing or empty, or has another type.
    """
    return [*parse_alpaca_prompt(entry), Turn("assistant", require_text(entry, "output"))]


def parse_alpaca_prompt(entry: dict[str, Any]) -> list[Turn]:
    """Convert an entry to turns, without its answer, which it need not have.

    `history` is a list of earlier questions with their answers, as in LLaMA-Factory.

    Raises:
        ValueError: If a field is missing or empty, or has another type.
    """
    turns = [Turn("system", require_text(entry, "system"))] if entry.get("system") not in (None, "") else []
    history = entry.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise ValueError("'history' is not a list of questions with their answers")
    for number, (question, answer) in enumerate(history, start=1):
        earlier = {f"history {number}": question, f"answer of history {number}": answer}
        asked, answered = (require_text(earlier, name) for name in earlier)
        turns += [Turn("user", asked), Turn("assistant", answered)]
    material = "" if entry.get("input") in (None, "") else require_text(entry, "input")
    return [*turns, Turn("user", require_text(entry, "instruction"), material)]


def _list_unused(entry: dict[str, Any]) -> Iterator[str]:
    return list_filled_fields(entry, ("instruction", "input", "output", "system", "history"))


def open_alpaca(options: AlpacaOptions, data_dir: Path | None) -> DataSet:
    """Read the file as a data set."""
    return open_conversations(options, data_dir, parse_alpaca_entry, _list_unused)


SOURCE = DataSource(
    AlpacaOptions,
    open_alpaca,
    "alpaca:FILE, a JSON list of objects with instruction and output, and optionally input, system and history",
    task="language",
    layout=('[{"instruction": "Name a bird.", "input": "", "output": "The wren."}, ...]'),
)
