"""Prompts with completions: `{"prompt": ..., "completion": ...}`, each a text or a list of messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from toast_cli.data.text.conversation_format import (
    ConversationFormat,
    is_blank,
    list_filled_fields,
    read_objects,
    require_field,
    require_text,
)
from toast_cli.data.text.formats.messages import list_unused_in_messages, parse_message_list, parse_tools
from toast_cli.data.text.turns import Role, Turn


def parse_pair(entry: Mapping[str, Any]) -> list[Turn]:
    """Convert an entry to turns: its tools, its system prompt, its prompt and, if it has one, its completion.

    Raises:
        ValueError: If a field has another type.
    """
    system = [] if is_blank(entry.get("system")) else [Turn("system", require_text(entry, "system"))]
    answer = [] if "completion" not in entry else _parse_side(entry, "completion", "assistant")
    return [*parse_tools(entry), *system, *_parse_side(entry, "prompt", "user"), *answer]


def _parse_side(entry: Mapping[str, Any], name: str, role: Role) -> list[Turn]:
    if isinstance(require_field(entry, name), list):
        return parse_message_list(read_objects(entry[name], name))
    return [Turn(role, require_text(entry, name))]


def _list_unused(entry: Mapping[str, Any]) -> Iterator[str]:
    yield from list_filled_fields(entry, ("prompt", "completion", "system", "tools", "functions"))
    if isinstance(entry["completion"], list):
        yield from list_unused_in_messages(entry["completion"], "completion")
    if isinstance(entry["prompt"], list):
        names = set(list_unused_in_messages(entry["prompt"], "prompt"))
        yield from sorted(names - {"the messages after the last answer"})


FORMAT = ConversationFormat(
    recognize=lambda entry: "prompt" in entry and "completion" in entry,
    parse=parse_pair,
    list_unused=_list_unused,
    fields=("prompt", "completion"),
    require_answer=lambda entry: require_field(entry, "completion"),
)
