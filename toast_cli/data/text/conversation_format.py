"""Formats of conversations: how an entry of a file is recognized and becomes turns. One registration per format."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from toast_cli import registry

if TYPE_CHECKING:
    from toast_cli.data.text.turns import Turn

EMPTY: tuple[Any, ...] = (None, "", [], {})
"""Values of fields without content."""

EMPTY_ANSWER = "an empty answer, which is read but not learned,"
"""What is not used of an entry with an answer without content."""


@dataclass(frozen=True)
class ConversationFormat:
    """A registered format of conversations.

    Attributes:
        recognize: returns whether an entry, or a prompt in the manner of one, has the fields of the format.
        parse: converts an entry to turns; the answer at the end may be missing. Raises ValueError for an invalid entry.
        list_unused: yields what `parse` does not use of a valid entry.
        fields: the fields that an entry must have, for messages.
        require_answer: checks that an entry has an answer. Raises ValueError if it has none.
    """

    recognize: Callable[[Mapping[str, Any]], bool]
    parse: Callable[[dict[str, Any]], Sequence[Turn]]
    list_unused: Callable[[dict[str, Any]], Iterable[str]]
    fields: tuple[str, ...]
    require_answer: Callable[[dict[str, Any]], object] = lambda entry: None


def load_formats() -> dict[str, ConversationFormat]:
    """Return all registered formats by name."""
    return registry.load_all(registry.CONVERSATION_FORMATS)


def load_format(name: str) -> ConversationFormat:
    """Return a registered format.

    Raises:
        UsageError: There is no such format.
    """
    loaded: ConversationFormat = registry.load_entry(registry.CONVERSATION_FORMATS, name)
    return loaded


def detect_format(entry: Mapping[str, Any], formats: Mapping[str, ConversationFormat]) -> str:
    """Return the name of the format of an entry.

    Raises:
        ValueError: The entry has the fields of no format, or of several.
    """
    found = [name for name, each in formats.items() if each.recognize(entry)]
    if len(found) > 1:
        raise ValueError(f"it has the fields of several formats: {', '.join(found)}; set dataset.format to one of them")
    if not found:
        fields = (name for form in formats.values() for name in form.fields)
        if (
            blank := next(
                (name for name in fields if name in entry and (is_blank(entry[name]) or entry[name] == "[]")), None
            )
        ) is not None:
            raise ValueError(f"'{blank}' is empty")
        raise ValueError(f"it has the fields of no known format; found {list_fields(entry)}")
    return found[0]


def describe_formats(formats: Mapping[str, ConversationFormat]) -> str:
    """Return the fields of all formats, for messages."""
    listed = (f"{' and '.join(map(repr, each.fields))} ({name})" for name, each in formats.items())
    return ", ".join(listed)


def parse_trained(entry: dict[str, Any], form: ConversationFormat) -> tuple[Turn, ...]:
    """Convert an entry with an answer to turns.

    Answers that a conversation begins with are not trained, because no prompt asks for them. Empty ones are not either.

    Raises:
        ValueError: The entry is invalid, or has no answer to learn.
    """
    form.require_answer(entry)
    turns = list(form.parse(entry))
    answers = [turn for turn in turns if turn.role == "assistant"]
    if not answers:
        raise ValueError("it has no answer to learn")
    if not any(turn.trained for turn in answers):
        raise ValueError("every answer has the weight 0")
    asked = all(turn.role in ("assistant", "tools") for turn in turns)
    for place, turn in enumerate(turns):
        if turn.role == "assistant" and not (asked and (turn.text.strip() or turn.fields)):
            turns[place] = replace(turn, trained=False)
        asked = asked or turn.role not in ("assistant", "tools")
    if not any(turn.trained for turn in turns if turn.role == "assistant"):
        empty = all(not turn.text.strip() for turn in answers)
        raise ValueError("its answer is empty" if empty else "it has no answer to a question to learn")
    return tuple(turns)


def require_field(entry: Mapping[str, Any], name: str) -> Any:
    """Return the value of a field.

    Raises:
        ValueError: If the field is missing.
    """
    if name not in entry:
        raise ValueError(f"'{name}' is missing; found {list_fields(entry)}")
    return entry[name]


def require_text(entry: Mapping[str, Any], name: str) -> str:
    """Return the text of a field.

    Raises:
        ValueError: If the field is missing, empty, not a string or not valid Unicode.
    """
    text = require_string(require_field(entry, name), name)
    if not text.strip():
        raise ValueError(f"'{name}' is empty")
    return text


def require_string(value: Any, name: str) -> str:
    """Return a value that is a string.

    Raises:
        ValueError: If it is not a string, or not valid Unicode.
    """
    if value is None:
        raise ValueError(f"'{name}' has no value")
    if not isinstance(value, str):
        raise ValueError(f"'{name}' is not a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"'{name}' contains a lone surrogate, which is not valid Unicode") from None
    return value


def read_json_value(value: Any, name: str) -> Any:
    """Return a value that may be JSON text, as in tables, whose cells hold texts only.

    Raises:
        ValueError: If it is text but not valid JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(require_string(value, name))
    except (ValueError, RecursionError):
        raise ValueError(f"'{name}' is not valid JSON") from None


def read_objects(value: Any, name: str) -> list[dict[str, Any]]:
    """Return a list of objects, given as such or as JSON text.

    Raises:
        ValueError: If it is neither.
    """
    objects = read_json_value(value, name)
    if not isinstance(objects, list) or not all(isinstance(each, dict) for each in objects):
        raise ValueError(f"'{name}' is not a list of objects")
    return objects


def is_blank(value: Any) -> bool:
    """Return whether a field has no content: no value, an empty list, or nothing but spaces."""
    return value in EMPTY or (isinstance(value, str) and not value.strip())


def has_objects(entry: Mapping[str, Any], name: str, field: str) -> bool:
    """Return whether a field of an entry is a list of objects, or JSON text of one, whose first has another field."""
    try:
        objects = read_objects(entry.get(name), name)
    except ValueError:
        return False
    return bool(objects) and field in objects[0]


def list_fields(entry: Mapping[str, Any]) -> str:
    """Return the first fields of an entry in quotation marks."""
    return ", ".join(f"'{field}'" for field in islice(entry, 5)) or "no field"


def list_filled_fields(entry: Mapping[str, Any], used: Container[str], prefix: str = "") -> Iterator[str]:
    """Yield the fields of an entry that are not used, in quotation marks; fields without content do not count."""
    yield from (f"'{prefix}{name}'" for name, value in entry.items() if name not in used and value not in EMPTY)
