"""`sharegpt`: conversations of several turns, in the layout of ShareGPT's exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, Source
from toast_cli.data.text.conversations import Role, TextOptions, Turn, open_conversations, text_of

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


class Options(TextOptions):
    """A file of conversations."""

    name: Literal["sharegpt"] = Field("sharegpt", description="the data set")


def read(entry: dict[str, Any]) -> list[Turn]:
    """`conversations`, a list of `from` and `value`; what an answer comes before is not learned, and left out."""
    said = entry.get("conversations")
    if not isinstance(said, list) or not all(isinstance(turn, dict) for turn in said):
        raise ValueError("there is no list of 'conversations'")
    turns = []
    for turn in said:
        if (speaker := text_of(turn, "from")) not in ROLES:
            raise ValueError(f"'{speaker}' is nobody; speakers are {', '.join(ROLES)}")
        turns.append(Turn(ROLES[speaker], text_of(turn, "value")))
    while turns and turns[0].role == "assistant":  # an export that begins in the middle
        turns.pop(0)
    if not any(turn.role == "assistant" for turn in turns):
        raise ValueError("it has no answer to learn from")
    return turns


def open_source(options: Options, data_dir: Path | None) -> DataSet:
    """The file as a data set."""
    return open_conversations(options, data_dir, read)


SOURCE = Source(Options, open_source, "sharegpt:FILE, a JSON list of conversations", task="language")
