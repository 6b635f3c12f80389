"""The part of a conversation that each of its tokens belongs to: the system turn, a turn, the format around them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from toast_cli.data.text.chat_templates import Segment, get_control_tokens, get_marker_tokens, split_into_segments
from toast_cli.data.text.control_tokens import ControlTokens
from toast_cli.data.text.turn_formats import ChatTemplateError, format_prompt
from toast_cli.data.text.turns import Turn

SPECIAL_TOKENS = "special tokens"
"""The part of the tokens with which the format marks the begin and the end of texts and turns."""
FORMAT_WORDS = "format"
"""The part of the other tokens of the format, such as headings, role names and line breaks."""
TEXT = "text"
"""The part of the tokens of a document."""
ROLE_PARTS = {"system": "system", "user": "user", "assistant": "answer", "tool": "tool"}
"""The part of a turn by its role; every role but the system's is numbered."""
PLACEHOLDER = "\ue000{}\ue001"
"""Text that stands for a turn when the format around the turns is looked for: code points of private use."""


def label_conversation_tokens(turns: Sequence[Turn], tokenizer: Any, template: str) -> list[list[str]]:
    """Return the part of every token, for every sample of `tokenize_conversation`.

    Parts are `system`, `user 1`, `answer 1`, `user 2` and so on, `tool 1`, `special tokens` and `format`. A token that
    belongs to two parts counts for the later one. Declarations of tools are part of the format.

    Raises:
        ChatTemplateError: see `tokenize_conversation`.
    """
    controls, markers = get_control_tokens(tokenizer, template), get_marker_tokens(tokenizer)
    labelled = []
    for segments in split_into_segments(turns, tokenizer, template):
        spans = find_turn_spans(segments[-1], tokenizer, template)
        labelled.append(
            [part for segment in segments for part in _label_segment(segment, spans, tokenizer, controls, markers)]
        )
    return labelled


def label_document_tokens(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Return the part of every token of running text: `text`, or `special tokens`."""
    markers = get_marker_tokens(tokenizer)
    return [SPECIAL_TOKENS if token in markers else TEXT for token in ids]


def find_turn_spans(last: Segment, tokenizer: Any, template: str) -> list[tuple[int, int, str]]:
    """Return where each turn is in the formatted text of a sample, in order: begin, end and part.

    `last` is the last segment of the sample.
    """
    whole = last.before + last.text
    names = _name_turns(last.turns)
    spans = _compare_with_placeholders(whole, last.turns, names, tokenizer, template)
    return _search_turns(whole, len(last.before), last.turns, names) if spans is None else spans


def _search_turns(whole: str, answer: int, turns: Sequence[Turn], names: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return the spans of the turns whose texts are in the formatted text, in order, if the format changes some.

    The last turn begins after `answer`, the others before it. A text that is only found after the next turn is another
    turn's, and is left out.
    """
    texts = [
        (text, name, answer if place == len(turns) - 1 else 0)
        for place, (turn, name) in enumerate(zip(turns, names, strict=True))
        for text in (turn.text.strip(), turn.material.strip())
        if text and turn.role != "tools"
    ]
    spans: list[tuple[int, int, str]] = []
    begin = 0
    for number, (text, name, start) in enumerate(texts):
        begin, end = max(begin, start), len(whole) if start else answer
        found = whole.find(text, begin, end)
        if found < 0:
            continue
        after = found + len(text)
        following = [each for each, _, place in texts[number + 1 : number + 2] if place == start]
        if any(whole.find(each, begin, end) >= 0 > whole.find(each, after, end) for each in following):
            continue
        begin = after
        spans.append((found, after, name))
    return spans


def _name_turns(turns: Sequence[Turn]) -> list[str]:
    """Return the part of every turn."""
    seen: Counter[str] = Counter()
    names = []
    for turn in turns:
        seen[turn.role] += 1
        part = ROLE_PARTS.get(turn.role, FORMAT_WORDS)
        names.append(part if turn.role in ("system", "tools") else f"{part} {seen[turn.role]}")
    return names


def _compare_with_placeholders(
    whole: str, turns: Sequence[Turn], names: Sequence[str], tokenizer: Any, template: str
) -> list[tuple[int, int, str]] | None:
    """Return the spans of the turns if the format writes the same around placeholders of them; otherwise None.

    The last turn is an answer, which follows the format of a prompt.
    """
    stand_ins = [
        turn
        if turn.role == "tools"
        else replace(
            turn,
            text=PLACEHOLDER.format(2 * place) if turn.text.strip() else "",
            material=PLACEHOLDER.format(2 * place + 1) if turn.material.strip() else "",
        )
        for place, turn in enumerate(turns[:-1])
    ]
    try:
        rest = format_prompt(stand_ins, tokenizer, template)
    except ChatTemplateError:
        return None
    spans: list[tuple[int, int, str]] = []
    written = ""
    for turn, stand_in, name in zip(turns[:-1], stand_ins, names[:-1], strict=True):
        for text, mark in ((turn.text, stand_in.text), (turn.material, stand_in.material)):
            if turn.role == "tools" or not mark:
                continue
            around, found, rest = rest.partition(mark)
            if not found:
                return None
            written += around
            text = text if whole.startswith(written + text) else text.strip()
            spans.append((len(written), len(written) + len(text), name))
            written += text
    written += rest
    if not whole.startswith(written):
        return None
    answer = turns[-1].text.strip()
    begin = whole.find(answer, len(written))
    return spans if begin < 0 else [*spans, (begin, begin + len(answer), names[-1])]


def _label_segment(
    segment: Segment,
    spans: Sequence[tuple[int, int, str]],
    tokenizer: Any,
    controls: ControlTokens,
    markers: frozenset[int],
) -> Iterator[str]:
    """Yield the part of every token of a segment."""
    offset, end = len(segment.before), len(segment.before) + len(segment.text)
    inside = [
        (max(first, offset), min(last, end), part) for first, last, part in spans if first < end and last > offset
    ]
    edges = sorted({edge - offset for first, last, _ in inside for edge in (first, last)})
    places = {edge: count_whole_tokens(segment, edge, tokenizer, controls) for edge in edges}
    parts: list[str] = [FORMAT_WORDS] * len(segment.ids)
    turn_tokens = set()
    for first, last, part in inside:
        for place in range(places[first - offset], places[last - offset]):
            parts[place] = part
            turn_tokens.add(place)
    for place, token in enumerate(segment.ids):
        if token in markers and place not in turn_tokens:
            parts[place] = SPECIAL_TOKENS
    yield from parts


def count_whole_tokens(segment: Segment, edge: int, tokenizer: Any, controls: ControlTokens) -> int:
    """Return how many tokens of a segment are wholly within its first `edge` characters."""
    if edge >= len(segment.text):
        return len(segment.ids)
    alone = controls.encode(segment.text[:edge], tokenizer, segment.context)
    begun = len(segment.ids) - len(controls.encode(segment.text, tokenizer, segment.context))  # a begin token
    common = 0
    for token, other in zip(alone, segment.ids[begun:], strict=False):
        if token != other:
            break
        common += 1
    return begun + common


def is_token_cut(segment: Segment, edge: int, tokenizer: Any, controls: ControlTokens) -> bool:
    """Return whether a token of a segment begins within its first `edge` characters and ends after them."""
    alone = controls.encode(segment.text[:edge], tokenizer, segment.context)
    begun = len(segment.ids) - len(controls.encode(segment.text, tokenizer, segment.context))
    return begun + len(alone) > count_whole_tokens(segment, edge, tokenizer, controls)
