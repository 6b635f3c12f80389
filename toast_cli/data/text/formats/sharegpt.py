"""`sharegpt`: conversations with several turns, in the format of ShareGPT exports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.text.conversation_format import (
    EMPTY,
    ConversationFormat,
    has_objects,
    is_blank,
    list_filled_fields,
    read_json_value,
    read_objects,
    require_field,
    require_text,
)
from toast_cli.data.text.conversation_split import ConversationOptions, open_conversations
from toast_cli.data.text.formats.messages import list_empty_turns, parse_call, parse_tools, parse_weight, read_content
from toast_cli.data.text.turns import Role, Turn, dump_json

ROLES_BY_SPEAKER: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}


class ShareGptOptions(ConversationOptions):
    """Options of a ShareGPT file."""

    name: Literal["sharegpt"] = Field("sharegpt", description="the data set")


def parse_sharegpt_turns(entry: dict[str, Any]) -> list[Turn]:
    """Convert an entry (`conversations`, a list of `from` and `value`; optional `system` and `tools`) to turns.

    Raises:
        ValueError: If the entry has another structure or a speaker is unknown.
    """
    turns = [_parse_turn(message) for message in read_objects(require_field(entry, "conversations"), "conversations")]
    turns = [turn for turn in turns if turn.role != "system" or turn.text.strip()]
    system = [] if is_blank(entry.get("system")) else [Turn("system", require_text(entry, "system"))]
    if turns[:1] != system:  # it is often given in both places
        turns = [*system, *turns]
    return [*parse_tools(entry), *turns]


def _parse_turn(message: Mapping[str, Any]) -> Turn:
    if (speaker := require_text(message, "from")) not in ROLES_BY_SPEAKER:
        raise ValueError(f"unknown speaker '{speaker}'; known: {', '.join(ROLES_BY_SPEAKER)}")
    trained = parse_weight(message)
    if speaker != "function_call":
        role = ROLES_BY_SPEAKER[speaker]
        return Turn(role, read_content(require_field(message, "value"), "value", role), trained=trained)
    value = read_json_value(require_field(message, "value"), "function_call")
    calls = read_objects(value if isinstance(value, list) else [value], "function_call")
    return Turn(
        "assistant", "", fields=dump_json({"tool_calls": [parse_call(call) for call in calls]}), trained=trained
    )


def _list_unused(entry: dict[str, Any]) -> Iterator[str]:
    yield from list_filled_fields(entry, ("conversations", "system", "tools", "functions"))
    messages = read_objects(entry["conversations"], "conversations")
    roles = [ROLES_BY_SPEAKER[message["from"]] for message in messages]
    for message, role in zip(messages, roles, strict=True):
        yield from list_empty_turns(role, message, "value")
        yield from list_filled_fields(message, ("from", "value", "weight"), "conversations.")
        if role != "assistant" and message.get("weight") not in (*EMPTY, 0):
            yield "'conversations.weight' of another speaker than the assistant"
    if roles[-1] != "assistant":
        yield "the question after the last answer"


def open_sharegpt(options: ShareGptOptions, data_dir: Path | None) -> DataSet:
    """Read the file as a data set."""
    return open_conversations(options, data_dir, "sharegpt")


FORMAT = ConversationFormat(
    recognize=lambda entry: has_objects(entry, "conversations", "from"),
    parse=parse_sharegpt_turns,
    list_unused=_list_unused,
    fields=("conversations",),
)

SOURCE = DataSource(
    ShareGptOptions,
    open_sharegpt,
    "sharegpt:FILE, conversations of from and value, and optionally system and tools",
    task="language",
    layout=(
        '[{"conversations": [{"from": "human", "value": "Name a bird."}, {"from": "gpt", "value": "The wren."}]}, ...]'
    ),
)
