"""Prompts to answer, from a text file with one per line or from a file of prompts or conversations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toast_cli.data.text.conversation_format import detect_format, is_blank, load_formats
from toast_cli.data.text.entry_files import EntryOptions, is_entry_file, read_entry_file
from toast_cli.data.text.json_lines import read_bytes, require_utf8
from toast_cli.data.text.turns import Turn, to_messages
from toast_cli.utils.errors import ToastError
from toast_cli.utils.names import format_json

EXPECTED_FIELDS = "'prompt', 'messages', 'instruction' or 'conversations'"
ANSWER_FIELDS = ("completion", "output")
"""Fields with the answer of an entry, which may be blank in a file of prompts."""


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

    JSON, JSON Lines, CSV and Parquet files are read as the files of conversations of a run are, also compressed ones.
    They have texts, or objects with `prompt` (a text or messages), `messages` (of `role` and `content`), `instruction`
    (alpaca) or `conversations` (sharegpt). An answer at the end is left out. Every line of another file that is not
    blank is a prompt.

    Raises:
        ToastError: the file cannot be read, is not UTF-8 text or not valid, or has no prompt.
    """
    has_entries = is_entry_file(path)
    prompts = list(_parse_entries(path) if has_entries else _read_lines(path))
    if not prompts:
        hint = f"Write a list of objects with {EXPECTED_FIELDS}." if has_entries else "Write one prompt per line."
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
    require_utf8(path)
    for number, line in enumerate(read_bytes(path).decode().splitlines(), start=1):
        if line.strip():
            yield Prompt(f"{path}:{number}", (Turn("user", line),), entry={"prompt": line})


def _parse_entries(path: Path) -> Iterator[Prompt]:
    entries, _ = read_entry_file(path, path.name, EntryOptions(), _is_prompt)
    for number, entry in enumerate(entries, start=1):
        try:
            turns = drop_answer(_parse_entry(entry))
            yield Prompt(f"{path}:{number}", turns, entry=entry if isinstance(entry, dict) else {"prompt": entry})
        except ValueError as error:
            yield Prompt(f"{path}:{number}", (), str(error))


def _is_prompt(entry: Mapping[str, Any]) -> bool:
    """Return whether an object is a prompt, not a file with a list of them."""
    return "prompt" in entry or any(form.recognize(entry) for form in load_formats().values())


def _parse_entry(entry: Any) -> Sequence[Turn]:
    """Return the turns of an entry.

    Raises:
        ValueError: it is no prompt.
    """
    if isinstance(entry, str):
        entry = {"prompt": entry}
    if not isinstance(entry, dict):
        raise ValueError(f"expected a text or an object with {EXPECTED_FIELDS}")
    entry = {name: value for name, value in entry.items() if name not in ANSWER_FIELDS or not is_blank(value)}
    formats = load_formats()
    return formats["pairs" if "prompt" in entry else detect_format(entry, formats)].parse(entry)
