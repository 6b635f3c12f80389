"""Prompts to answer, from a text file with one per line or from a JSON file of prompts or conversations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from toast_cli.data.images.files import read_text_file
from toast_cli.data.text.alpaca import parse_alpaca_prompt
from toast_cli.data.text.conversation_split import Role, Turn, require_text
from toast_cli.data.text.json_lines import read_json_list
from toast_cli.data.text.sharegpt import parse_sharegpt_turns
from toast_cli.utils.errors import ToastError
from toast_cli.utils.names import format_json

JSON_SUFFIXES = frozenset({".json", ".jsonl"})
EXPECTED_FIELDS = "'prompt', 'messages', 'instruction' or 'conversations'"


@dataclass(frozen=True)
class Prompt:
    """A prompt: its name, such as `prompts.txt:3`, the turns up to the user's last one, or why it cannot be used."""

    name: str
    turns: tuple[Turn, ...]
    error: str | None = None

    @property
    def text(self) -> str:
        """The user's text if it is all; otherwise all turns as JSON, in the format of `messages`."""
        if len(self.turns) == 1 and self.turns[0].role == "user":
            return self.turns[0].whole
        return format_json([{"role": turn.role, "content": turn.whole} for turn in self.turns]) if self.turns else ""


def read_prompts(path: Path) -> list[Prompt]:
    """Return the prompts of a file; an entry that is no prompt has an `error`.

    A `.json` or `.jsonl` file has texts, or objects with `prompt` (a text or messages), `messages` (of `role` and
    `content`), `instruction` (alpaca) or `conversations` (sharegpt). An answer at the end is left out. Every line of
    another file that is not blank is a prompt.

    Raises:
        ToastError: the file cannot be read, is not UTF-8 text or not valid JSON, or has no prompt.
    """
    is_json = path.suffix.lower() in JSON_SUFFIXES
    prompts = list(_parse_entries(path) if is_json else _read_lines(path))
    if not prompts:
        hint = f"Write a list of objects with {EXPECTED_FIELDS}." if is_json else "Write one prompt per line."
        raise ToastError(f"{path} contains no prompt.", what_to_do=hint, code="text.no-prompts")
    return prompts


def drop_answer(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Return the turns up to the user's last one.

    Raises:
        ValueError: the user has no turn.
    """
    last = max((place for place, turn in enumerate(turns) if turn.role == "user"), default=None)
    if last is None:
        raise ValueError("it has no turn of the user")
    return tuple(turns[: last + 1])


def _read_lines(path: Path) -> Iterator[Prompt]:
    try:
        lines = read_text_file(path).splitlines()
    except UnicodeDecodeError as error:
        raise ToastError(
            f"{path} is not UTF-8 text.", what_to_do="Save it as UTF-8.", code="data.unreadable-file"
        ) from error
    except OSError as error:
        raise ToastError(f"Cannot read {path}.", error.strerror or str(error), code="data.unreadable-file") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield Prompt(f"{path}:{number}", (Turn("user", line),))


def _parse_entries(path: Path) -> Iterator[Prompt]:
    for number, entry in enumerate(read_json_list(path), start=1):
        try:
            yield Prompt(f"{path}:{number}", drop_answer(_parse_entry(entry)))
        except ValueError as error:
            yield Prompt(f"{path}:{number}", (), str(error))


def _parse_entry(entry: Any) -> Sequence[Turn]:
    """Return the turns of an entry.

    Raises:
        ValueError: it is no prompt.
    """
    if isinstance(entry, str):
        entry = {"prompt": entry}
    if not isinstance(entry, dict):
        raise ValueError(f"expected a text or an object with {EXPECTED_FIELDS}")
    if "prompt" in entry and not isinstance(entry["prompt"], list):
        return [Turn("user", require_text(entry, "prompt"))]
    if "prompt" in entry or "messages" in entry:
        return list(_parse_messages(entry["prompt"] if "prompt" in entry else entry["messages"]))
    if "instruction" in entry:
        return parse_alpaca_prompt(entry)
    if "conversations" in entry:
        return parse_sharegpt_turns(entry)
    raise ValueError(f"it has no {EXPECTED_FIELDS}; it has {', '.join(map(str, entry)) or 'no field'}")


def _parse_messages(messages: Any) -> Iterator[Turn]:
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise ValueError("its messages are not a list of objects with 'role' and 'content'")
    for message in messages:
        if (role := require_text(message, "role")) not in get_args(Role):
            raise ValueError(f"unknown role '{role}'; known: {', '.join(get_args(Role))}")
        yield Turn(cast("Role", role), require_text(message, "content"))
