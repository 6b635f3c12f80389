"""`alpaca`: instructions with answers, in the format of Stanford Alpaca."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.text.conversation_split import ConversationOptions, Turn, open_conversations, require_text


class AlpacaOptions(ConversationOptions):
    """Options of an Alpaca file."""

    name: Literal["alpaca"] = Field("alpaca", description="the data set")


def parse_alpaca_entry(entry: dict[str, Any]) -> list[Turn]:
    """Convert an entry (`instruction`, optional `input`, `output`) to a user turn and an assistant turn.

    Raises:
        ValueError: If a field is missing, empty or not a string.
    """
    material = "" if entry.get("input") in (None, "") else require_text(entry, "input")
    return [
        Turn("user", require_text(entry, "instruction"), material),
        Turn("assistant", require_text(entry, "output")),
    ]


def open_alpaca(options: AlpacaOptions, data_dir: Path | None) -> DataSet:
    """Read the file as a data set."""
    return open_conversations(options, data_dir, parse_alpaca_entry)


SOURCE = DataSource(
    AlpacaOptions,
    open_alpaca,
    "alpaca:FILE, a JSON list of objects with instruction, input and output",
    task="language",
)
