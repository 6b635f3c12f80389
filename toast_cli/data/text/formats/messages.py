"""`messages`: conversations in the format of chat APIs, with tools and weights; the source detects other formats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from toast_cli.data.base import DataSet, DataSource
from toast_cli.data.text.conversation_format import (
    EMPTY,
    EMPTY_ANSWER,
    ConversationFormat,
    has_objects,
    is_blank,
    list_filled_fields,
    read_json_value,
    read_objects,
    require_field,
    require_string,
    require_text,
)
from toast_cli.data.text.conversation_split import ConversationOptions, open_conversations
from toast_cli.data.text.turns import Role, Turn, dump_json

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
"""The role of a turn by that of its message."""

PASSED_FIELDS = ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking")
"""Fields of messages that chat templates read, beside `role` and `content`."""

LISTS = ("messages", "conversations", "conversation")
"""Fields that hold the messages of an entry."""


class MessagesOptions(ConversationOptions):
    """Options of conversations in any format."""

    name: Literal["messages"] = Field("messages", description="the data set")
    format: str = Field(
        "auto",
        examples=["pairs"],
        description="the format of the entries: messages, pairs, sharegpt or alpaca; auto: detected for every entry",
    )


def parse_messages(entry: Mapping[str, Any]) -> list[Turn]:
    """Convert an entry (`messages` of `role` and `content`; optional `tools`) to turns.

    Raises:
        ValueError: If a message is invalid.
    """
    name = _find_list(entry)
    messages = read_objects(require_field(entry, name), name)
    return [*parse_tools(entry), *parse_message_list(messages)]


def parse_message_list(messages: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """Convert messages to turns. Those of the system without content are left out.

    Raises:
        ValueError: If a message is invalid.
    """
    turns = map(parse_message, messages)
    return [turn for turn in turns if turn.role != "system" or turn.text.strip()]


def parse_message(message: Mapping[str, Any]) -> Turn:
    """Convert a message to a turn.

    Raises:
        ValueError: If it is invalid.
    """
    if (role := require_text(message, "role")) not in ROLES:
        raise ValueError(f"unknown role '{role}'; known: {', '.join(ROLES)}")
    passed = {name: message[name] for name in PASSED_FIELDS if message.get(name) not in EMPTY}
    if "function_call" in message and message["function_call"] not in EMPTY:  # the format before `tool_calls`
        passed["tool_calls"] = [message["function_call"]]
    calls = passed.get("tool_calls")
    if calls is not None:
        if ROLES[role] != "assistant":
            raise ValueError(f"a message of the role '{role}' has 'tool_calls'")
        passed["tool_calls"] = [parse_call(call) for call in read_objects(calls, "tool_calls")]
    if message.get("content") in EMPTY and calls is not None:
        text = ""
    else:
        text = read_content(require_field(message, "content"), "content", ROLES[role])
    fields = dump_json(passed) if passed else ""
    return Turn(ROLES[role], text, fields=fields, trained=parse_weight(message))


def parse_weight(message: Mapping[str, Any]) -> bool:
    """Return whether an answer is trained: its `weight` is 1, which is the default, or 0.

    Raises:
        ValueError: If it is another value.
    """
    weight = message.get("weight")
    if weight in (None, ""):
        return True
    if str(weight) not in ("0", "1", "0.0", "1.0", "True", "False"):
        raise ValueError(f"'weight' is {weight!r}, expected 0 or 1")
    return str(weight) in ("1", "1.0", "True")


def parse_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a call of a function, with or without the wrapper of chat APIs, to the form that chat templates read.

    Raises:
        ValueError: If it has no name, or its arguments are not an object.
    """
    function = call.get("function", call)
    if not isinstance(function, dict):
        raise ValueError("a call of a tool has no 'function'")
    name = require_text(function, "name")
    arguments = read_json_value(function.get("arguments") or {}, "arguments")
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of the call of '{name}' are not an object")
    kept = {key: call[key] for key in ("id",) if call.get(key) not in EMPTY}
    return {**kept, "type": "function", "function": {"name": name, "arguments": arguments}}


def parse_tools(entry: Mapping[str, Any]) -> list[Turn]:
    """Return the turn that declares the tools of an entry; none if it has no tools.

    `tools` is a list, or JSON text of one. Descriptions of functions may lack the wrapper of chat APIs.

    Raises:
        ValueError: If a tool has no name.
    """
    given = entry.get("tools") if entry.get("tools") not in EMPTY else entry.get("functions")
    if given in EMPTY or (tools := read_objects(given, "tools")) == []:
        return []
    wrapped: list[dict[str, Any]] = [
        tool if isinstance(tool.get("function"), dict) else {"type": "function", "function": tool} for tool in tools
    ]
    for tool in wrapped:
        require_text(tool["function"], "name")
    return [Turn("tools", dump_json(wrapped))]


def list_unused(entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield what `parse_messages` does not use of an entry."""
    name = _find_list(entry)
    messages = read_objects(entry[name], name)
    yield from list_filled_fields(entry, (name, "tools", "functions"))
    yield from list_unused_in_messages(messages, name)


def list_unused_in_messages(messages: Sequence[Mapping[str, Any]], name: str) -> Iterator[str]:
    """Yield what `parse_message` does not use of the messages in the field `name`."""
    for message in messages:
        yield from list_empty_turns(ROLES[message["role"]], message)
        yield from list_filled_fields(
            message, ("role", "content", "weight", "function_call", *PASSED_FIELDS), f"{name}."
        )
        if message["role"] != "assistant" and message.get("weight") not in (*EMPTY, 0):
            yield f"'{name}.weight' of another role than assistant"
    if messages[-1]["role"] != "assistant":
        yield "the messages after the last answer"


def _find_list(entry: Mapping[str, Any]) -> str:
    return next((name for name in LISTS if has_objects(entry, name, "role")), LISTS[0])


def list_empty_turns(role: Role, message: Mapping[str, Any], name: str = "content") -> Iterator[str]:
    """Yield what is not used of a message that has no content."""
    if role == "system" and is_blank(message[name]):
        yield "an empty system message"
    calls = message.get("tool_calls") or message.get("function_call")
    if role == "assistant" and is_blank(message.get(name)) and not calls:
        yield EMPTY_ANSWER


def read_content(content: Any, name: str, role: Role) -> str:
    """Return the text of a message: a string, or a list of parts, of which only texts are supported.

    Only the user's may not be empty. What a tool returns may be any value of JSON.

    Raises:
        ValueError: If it is something else.
    """
    if role != "user" and content in EMPTY:
        return ""
    if role == "tool" and not isinstance(content, str) and not _has_parts(content):
        return dump_json(content)
    if not isinstance(content, list):
        text = require_string(content, name)
    else:
        for part in content:
            kind = part.get("type", "text") if isinstance(part, dict) else "text"
            if kind not in ("text", "input_text", "output_text"):
                raise ValueError(f"'content' has a part of the type '{kind}'; only text is supported")
        parts = [require_string(part.get("text") if isinstance(part, dict) else part, "text") for part in content]
        text = "".join(parts)
    if role == "user" and not text.strip():
        raise ValueError(f"'{name}' is empty")
    return text


def _has_parts(content: Any) -> bool:
    """Return whether the content of a message is a list of typed parts."""
    return isinstance(content, list) and all(isinstance(part, dict) and "type" in part for part in content)


def open_messages(options: MessagesOptions, data_dir: Path | None) -> DataSet:
    """Read the conversations as a data set."""
    return open_conversations(options, data_dir, None if options.format == "auto" else options.format)


FORMAT = ConversationFormat(
    recognize=lambda entry: any(has_objects(entry, name, "role") for name in LISTS),
    parse=parse_messages,
    list_unused=list_unused,
    fields=("messages",),
)

SOURCE = DataSource(
    MessagesOptions,
    open_messages,
    "messages:PATH, conversations in any known format (messages, prompt and completion, ShareGPT, Alpaca): a JSON, "
    "JSON Lines, CSV or Parquet file, a folder, or a Hugging Face data set",
    task="language",
    layout=(
        '{"messages": [{"role": "user", "content": "Name a bird."}, {"role": "assistant", "content": "The wren."}]}\n'
        '{"messages": [...], "tools": [...]}              tools, tool_calls and answers of tools\n'
        '{"prompt": "Name a bird.", "completion": "The wren."}'
    ),
)
