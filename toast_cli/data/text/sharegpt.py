"""`sharegpt`: conversations with several turns, in the format of ShareGPT exports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.text.conversation_split import (
    ConversationOptions,
    Role,
    Turn,
    list_filled_fields,
    open_conversations,
    require_field,
    require_text,
)

ROLES_BY_SPEAKER: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


class ShareGptOptions(ConversationOptions):
    """Options of a ShareGPT file."""

    name: Literal["sharegpt"] = Field("sharegpt", description="the data set")


def parse_sharegpt_entry(entry: dict[str, Any]) -> list[Turn]:
    """Convert an entry (`conversations`, a list of `from` and `value`; optional `system`) to turns.

    Raises:
        ValueError: If the entry has another structure, a speaker is unknown or there is no answer.
    """
    turns = parse_sharegpt_turns(entry)
    if not any(turn.role == "assistant" for turn in turns):
        raise ValueError("it has no answer to learn")
    return turns


def parse_sharegpt_turns(entry: dict[str, Any]) -> list[Turn]:
    """Convert an entry to turns, which may have no answer. Answers before the first question are dropped.

    Raises:
        ValueError: If the entry has another structure or a speaker is unknown.
    """
    if "conversations" not in entry and "messages" in entry:
        raise ValueError(
            "'conversations' is missing, and 'messages' was found: rename it, and in each message 'role' to 'from' and "
            "'content' to 'value'"
        )
    messages = require_field(entry, "conversations")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError("'conversations' is not a list of objects")
    turns = []
    for message in messages:
        if (speaker := require_text(message, "from")) not in ROLES_BY_SPEAKER:
            raise ValueError(f"unknown speaker '{speaker}'; known: {', '.join(ROLES_BY_SPEAKER)}")
        turns.append(Turn(ROLES_BY_SPEAKER[speaker], require_text(message, "value")))
    while turns and turns[0].role == "assistant":  # the export begins in the middle of a conversation
        turns.pop(0)
    system = [Turn("system", require_text(entry, "system"))] if entry.get("system") not in (None, "") else []
    if turns[:1] != system:  # it is often given in both places
        turns = [*system, *turns]
    return turns


def _list_unused(entry: dict[str, Any]) -> Iterator[str]:
    yield from list_filled_fields(entry, ("conversations", "system"))
    messages = entry["conversations"]
    roles = [ROLES_BY_SPEAKER[message["from"]] for message in messages]
    for message in messages:
        yield from list_filled_fields(message, ("from", "value"), "conversations.")
    if roles[0] == "assistant":
        yield "the answer before the first question"
    if roles[-1] != "assistant":
        yield "the question after the last answer"


def open_sharegpt(options: ShareGptOptions, data_dir: Path | None) -> DataSet:
    """Read the file as a data set."""
    return open_conversations(options, data_dir, parse_sharegpt_entry, _list_unused)


SOURCE = DataSource(
    ShareGptOptions,
    open_sharegpt,
    "sharegpt:FILE, a JSON list of conversations",
    task="language",
    layout=(
        '[{"conversations": [{"from": "human", "value": "Name a bird."}, {"from": "gpt", "value": "The wren."}]}, ...]'
    ),
)
