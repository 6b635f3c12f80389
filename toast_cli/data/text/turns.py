"""Turns and conversations: what every format becomes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool", "tools"]
"""Who speaks: also a tool that answers a call, and the declaration of the tools of a conversation, its first turn."""


@dataclass(frozen=True, repr=False)
class Turn:
    """A turn of a conversation.

    Attributes:
        role: who speaks.
        text: content of the turn; for `tools`, JSON text of a list of descriptions.
        material: the separate input of an instruction; empty if it has none.
        fields: further fields of the message for chat templates, such as `tool_calls`, as JSON text; may be empty.
        trained: whether an answer is learned.
    """

    role: Role
    text: str
    material: str = ""
    fields: str = ""
    trained: bool = True

    def __repr__(self) -> str:
        """Return the fields that are set: hashes of splits are those of this text."""
        further = f", fields={self.fields!r}" if self.fields else ""
        further += "" if self.trained else ", trained=False"
        return f"Turn(role={self.role!r}, text={self.text!r}, material={self.material!r}{further})"

    @property
    def whole(self) -> str:
        """Text and material, separated by a blank line."""
        return "\n\n".join(part for part in (self.text, self.material) if part)

    @property
    def extra(self) -> dict[str, Any]:
        """The further fields of the message."""
        return dict(json.loads(self.fields)) if self.fields else {}


@dataclass(frozen=True)
class Conversation:
    """Turns in order. `name` identifies the conversation in messages."""

    turns: tuple[Turn, ...]
    name: str


def dump_json(value: Any) -> str:
    """Return a value as JSON text, as the filter `tojson` of chat templates writes it."""
    return json.dumps(value, ensure_ascii=False)


def to_messages(turns: Sequence[Turn]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return turns as messages of chat APIs, and the tools that they declare."""
    tools = [tool for turn in turns if turn.role == "tools" for tool in json.loads(turn.text)]
    messages = [{"role": turn.role, "content": turn.whole, **turn.extra} for turn in turns if turn.role != "tools"]
    return messages, tools


def add_system_turn(turns: Sequence[Turn], text: str | None) -> list[Turn]:
    """Return turns that begin with a system turn; unchanged if `text` is None, or they have a system turn.

    A declaration of tools stays the first turn.
    """
    if text is None or any(turn.role == "system" for turn in turns):
        return list(turns)
    declared = sum(turn.role == "tools" for turn in turns[:1])
    return [*turns[:declared], Turn("system", text), *turns[declared:]]
