"""`sharegpt`: conversations of several turns, in the layout of ShareGPT's exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.text.conversations import ConversationOptions, Role, Turn, open_conversations, require_text

ROLES_BY_SPEAKER: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


class ShareGptOptions(ConversationOptions):
    """A file of conversations."""

    name: Literal["sharegpt"] = Field("sharegpt", description="the data set")


def parse_sharegpt_entry(entry: dict[str, Any]) -> list[Turn]:
    """`conversations`, a list of `from` and `value`; what an answer comes before is not learned, and left out."""
    said = entry.get("conversations")
    if not isinstance(said, list) or not all(isinstance(turn, dict) for turn in said):
        raise ValueError("there is no list of 'conversations'")
    turns = []
    for turn in said:
        if (speaker := require_text(turn, "from")) not in ROLES_BY_SPEAKER:
            raise ValueError(f"'{speaker}' is nobody; speakers are {', '.join(ROLES_BY_SPEAKER)}")
        turns.append(Turn(ROLES_BY_SPEAKER[speaker], require_text(turn, "value")))
    while turns and turns[0].role == "assistant":  # an export that begins in the middle
        turns.pop(0)
    if not any(turn.role == "assistant" for turn in turns):
        raise ValueError("it has no answer to learn from")
    return turns


def open_sharegpt(options: ShareGptOptions, data_dir: Path | None) -> DataSet:
    """The file as a data set."""
    return open_conversations(options, data_dir, parse_sharegpt_entry)


SOURCE = DataSource(ShareGptOptions, open_sharegpt, "sharegpt:FILE, a JSON list of conversations", task="language")
