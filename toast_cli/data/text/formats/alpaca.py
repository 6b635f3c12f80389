"""`alpaca`: instructions with answers, in the format of Stanford Alpaca."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.text.conversation_format import (
    EMPTY,
    EMPTY_ANSWER,
    ConversationFormat,
    is_blank,
    list_filled_fields,
    read_json_value,
    require_string,
    require_text,
)
from toast_cli.data.text.conversation_split import ConversationOptions, open_conversations
from toast_cli.data.text.formats.messages import parse_tools
from toast_cli.data.text.turns import Turn


class AlpacaOptions(ConversationOptions):
    """Options of an Alpaca file."""

    name: Literal["alpaca"] = Field("alpaca", description="the data set")


def parse_alpaca_entry(entry: dict[str, Any]) -> list[Turn]:
    """Convert an entry (`instruction`, `output`; optional `input`, `system`, `history`, `tools`) to turns.

    The answer may be missing. `history` is a list of earlier questions with their answers, as in LLaMA-Factory.

    Raises:
        ValueError: If a field is missing or empty, or has another type.
    """
    turns = [] if is_blank(entry.get("system")) else [Turn("system", require_text(entry, "system"))]
    history = [] if entry.get("history") in EMPTY else read_json_value(entry["history"], "history")
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise ValueError("'history' is not a list of questions with their answers")
    for number, (question, answer) in enumerate(history, start=1):
        earlier = {f"history {number}": question}
        asked = require_text(earlier, f"history {number}")
        answered = "" if answer is None else require_string(answer, f"answer of history {number}")
        turns += [Turn("user", asked), Turn("assistant", answered)]
    material = "" if is_blank(entry.get("input")) else require_text(entry, "input")
    output = [] if "output" not in entry else [Turn("assistant", require_text(entry, "output"))]
    return [*parse_tools(entry), *turns, Turn("user", require_text(entry, "instruction"), material), *output]


def _list_unused(entry: dict[str, Any]) -> Iterator[str]:
    yield from list_filled_fields(entry, ("instruction", "input", "output", "system", "history", "tools", "functions"))
    if any(is_blank(answer) for _, answer in read_json_value(entry.get("history") or [], "history")):
        yield EMPTY_ANSWER


def open_alpaca(options: AlpacaOptions, data_dir: Path | None) -> DataSet:
    """Read the file as a data set."""
    return open_conversations(options, data_dir, "alpaca")


FORMAT = ConversationFormat(
    recognize=lambda entry: "instruction" in entry,
    parse=parse_alpaca_entry,
    list_unused=_list_unused,
    fields=("instruction", "output"),
    require_answer=lambda entry: require_text(entry, "output"),
)

SOURCE = DataSource(
    AlpacaOptions,
    open_alpaca,
    "alpaca:FILE, objects with instruction and output, and optionally input, system, history and tools",
    task="language",
    layout=('[{"instruction": "Name a bird.", "input": "", "output": "The wren."}, ...]'),
)
