"""Prompts given to the Python API: a text, or the messages of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from toast_cli.data.text.formats.messages import ROLES, parse_message, parse_tools
from toast_cli.data.text.turns import Turn
from toast_cli.utils.errors import UsageError

Message: TypeAlias = "Mapping[str, Any]"
"""A chat message as in transformers: `role` ("system", "user", "assistant" or "tool") and `content`."""


def to_turns(prompt: str | Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None) -> list[Turn]:
    """Convert a text or a list of messages to turns, after one that declares the tools.

    Raises:
        UsageError: The prompt is neither, or a message or a tool is invalid.
    """
    if not isinstance(prompt, str | Sequence):
        raise UsageError(
            f"Expected a text or a list of messages, got {type(prompt).__name__}.",
            what_to_do='Pass "..." or [{"role": "user", "content": "..."}].',
            code="text.not-a-prompt",
        )
    messages = [Turn("user", prompt)] if isinstance(prompt, str) else [_to_turn(message) for message in prompt]
    try:
        declared = parse_tools({"tools": [dict(tool) for tool in tools or ()]})
    except ValueError as error:
        raise UsageError(
            f"Invalid tools: {error}.",
            what_to_do='Write a tool as {"type": "function", "function": {"name": ..., "parameters": ...}}.',
            code="text.not-a-tool",
        ) from error
    return [*declared, *messages]


def to_texts(emphasize: str | Sequence[str]) -> list[str]:
    """Return the texts to emphasize, given one or several.

    Raises:
        UsageError: They are not texts.
    """
    texts = [emphasize] if isinstance(emphasize, str) else emphasize
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise UsageError(
            f"Expected a text or a list of texts, got emphasize={emphasize!r}.",
            what_to_do='Pass emphasize="..." or emphasize=["...", "..."].',
            code="text.not-a-text",
        )
    return list(texts)


def _to_turn(message: Message) -> Turn:
    role = message.get("role") if isinstance(message, Mapping) else None
    if isinstance(role, str) and role not in ROLES:
        raise UsageError(
            f"Unknown role '{role}'.", what_to_do=f"Known roles: {', '.join(ROLES)}.", code="text.unknown-role"
        )
    try:
        return parse_message(dict(message))
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"Invalid message: {message!r}.",
            f"{error}." if isinstance(error, ValueError) else "",
            'Write it as {"role": "user", "content": "..."}.',
            code="text.not-a-message",
        ) from error
