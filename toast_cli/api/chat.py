"""Prompts given to the Python API: a text, or the messages of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast, get_args

from toast_cli.data.text.conversation_split import Role, Turn
from toast_cli.utils.errors import UsageError

Message: TypeAlias = "Mapping[str, str]"
"""A chat message as in transformers: `role` ("system", "user" or "assistant") and `content`."""


def to_turns(prompt: str | Sequence[Message]) -> list[Turn]:
    """Convert a text or a list of messages to turns.

    Raises:
        UsageError: The prompt is neither, or a message is invalid.
    """
    if not isinstance(prompt, str | Sequence):
        raise UsageError(
            f"Expected a text or a list of messages, got {type(prompt).__name__}.",
            what_to_do='Pass "..." or [{"role": "user", "content": "..."}].',
            code="text.not-a-prompt",
        )
    return [Turn("user", prompt)] if isinstance(prompt, str) else [_to_turn(message) for message in prompt]


def _to_turn(message: Message) -> Turn:
    try:
        role, text = message["role"], message["content"]
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"Invalid message: {message!r}.",
            what_to_do='Write it as {"role": "user", "content": "..."}.',
            code="text.not-a-message",
        ) from error
    if role not in get_args(Role):
        raise UsageError(
            f"Unknown role '{role}'.", what_to_do=f"Known roles: {', '.join(get_args(Role))}.", code="text.unknown-role"
        )
    return Turn(cast("Role", role), text)
