"""Prompts to answer, from a text file with one per line or from a JSON file of prompts or conversations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toast_cli.data.images.files import read_text_file
from toast_cli.data.text.conversation_format import detect_format, load_formats
from toast_cli.data.text.json_lines import make_encoding_error, read_json_list
from toast_cli.data.text.turns import Turn, to_messages
from toast_cli.utils.errors import ToastError
from toast_cli.utils.names import format_json

JSON_SUFFIXES = frozenset({".json", ".jsonl"})
EXPECTED_FIELDS = "'prompt', 'messages', 'instruction' or 'conversations'"


@dataclass(frozen=True)
class Prompt:
    """A prompt: its name, such as `prompts.txt:3`, the turns before the answer, or why it cannot be used.

    `entry` is the JSON object that it was read from; `prompt` with the text, if it was none.
    """

    name: str
    turns: tuple[Turn, ...]
    error: str | None = None
    entry: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def text(self) -> str:
        """The user's text if it is all; otherwise all turns as JSON, in the format of `messages`."""
        if len(self.turns) == 1 and self.turns[0].role == "user":
            return self.turns[0].whole
        messages, tools = to_messages(self.turns)
        return format_json({"messages": messages, "tools": tools} if tools else messages) if self.turns else ""


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
    """Return the turns without a final answer: up to the last turn that the assistant has not written.

    Calls of tools and their results stay, so that the answer after a result is the next one.

    Raises:
        ValueError: the user has no turn.
    """
    if not any(turn.role == "user" for turn in turns):
        raise ValueError("it has no turn of the user")
    last = max(place for place, turn in enumerate(turns) if turn.role != "assistant")
    return tuple(turns[: last + 1])


def _read_lines(path: Path) -> Iterator[Prompt]:
    try:
        lines = read_text_file(path).splitlines()
    except UnicodeDecodeError as error:
        raise make_encoding_error(path, error.object, error.start) from error
    except OSError as error:
        raise ToastError(f"Cannot read {path}.", error.strerror or str(error), code="data.unreadable-file") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield Prompt(f"{path}:{number}", (Turn("user", line),), entry={"prompt": line})


def _parse_entries(path: Path) -> Iterator[Prompt]:
    for number, entry in enumerate(read_json_list(path), start=1):
        try:
            turns = drop_answer(_parse_entry(entry))
            yield Prompt(f"{path}:{number}", turns, entry=entry if isinstance(entry, dict) else {"prompt": entry})
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
    formats = load_formats()
    return formats["pairs" if "prompt" in entry else detect_format(entry, formats)].parse(entry)
