"""Tokens of a prompt in which given texts occur, such as words that a user marks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from toast_cli.data.text.chat_templates import Segment, encode_documents, get_control_tokens, split_prompt
from toast_cli.data.text.control_tokens import BREAK
from toast_cli.data.text.text_parts import count_whole_tokens, find_turn_spans, is_token_cut
from toast_cli.data.text.turns import Turn
from toast_cli.utils.errors import UsageError


def mark_occurrences(
    turns: Sequence[Turn], tokenizer: Any, template: str | None, texts: Sequence[str], name: str = "The prompt"
) -> list[bool]:
    """Return, for every token of `encode_prompt`, whether a part of it belongs to an occurrence of one of the texts.

    Texts are searched in the turns, not in what the chat template writes around them; without a template, in the text
    of the last turn. Case and blanks matter. If a text begins or ends within a token, the whole token is marked.

    Args:
        turns: The conversation.
        tokenizer: The tokenizer of the language model.
        template: The format of the prompt, as for `encode_prompt`.
        texts: The texts to find.
        name: Name of the prompt in errors.

    Raises:
        UsageError: One of the texts is blank, or does not occur.
    """
    segments, spans = _split(turns, tokenizer, template)
    whole = "".join(segment.text for segment in segments)
    marked = [[False] * len(segment.ids) for segment in segments]
    offsets = [get_token_offsets(segment, tokenizer) for segment in segments]
    controls = get_control_tokens(tokenizer, template)
    for text in texts:
        for begin, end in _find_text(text, whole, spans, name):
            for place, segment in enumerate(segments):
                first, last = (min(max(edge - len(segment.before), 0), len(segment.text)) for edge in (begin, end))
                if first < last:
                    for token in _find_tokens(segment, first, last, offsets[place], tokenizer, controls):
                        marked[place][token] = True
    return [each for tokens in marked for each in tokens]


def _split(turns: Sequence[Turn], tokenizer: Any, template: str | None) -> tuple[list[Segment], list[tuple[int, int]]]:
    """Return the segments of a prompt, and where its turns are in their texts: begin and end."""
    if template is None:
        text = turns[-1].whole
        ids = encode_documents([text], tokenizer)[0]
        broken = get_control_tokens(tokenizer, None).break_spelled(text)
        return [Segment(broken, "", "", ids, tuple(turns))], [(0, len(broken))]
    segments = split_prompt(turns, tokenizer, template)
    last = segments[-1]
    head = last.before + last.text
    answer = Segment("", head, head, [], (*last.turns, Turn("assistant", "")))
    return segments, [(begin, end) for begin, end, _ in find_turn_spans(answer, tokenizer, template)]


def _find_text(text: str, whole: str, spans: Sequence[tuple[int, int]], name: str) -> list[tuple[int, int]]:
    """Return begin and end of every occurrence of a text within one of the spans.

    Raises:
        UsageError: It is blank, or does not occur.
    """
    if not text.strip():
        raise UsageError(
            "The text to emphasize is empty.", what_to_do="Pass words of the prompt.", code="text.empty-emphasis"
        )
    pattern = re.compile(f"{BREAK}?".join(map(re.escape, text)))  # the whole text has breaks in spelled control tokens
    found = [match.span() for begin, end in spans for match in pattern.finditer(whole, begin, end)]
    if not found:
        raise UsageError(
            f"{name} does not contain {text!r}, which is to be emphasized.",
            "Upper and lower case, blanks and punctuation must be the same as in the prompt.",
            "Copy the text from the prompt.",
            code="text.not-in-prompt",
        )
    return found


def _find_tokens(
    segment: Segment, begin: int, end: int, offsets: Sequence[tuple[int, int]] | None, tokenizer: Any, controls: Any
) -> range:
    """Return the tokens of a segment that have a part of its characters from `begin` to `end`."""
    if offsets is not None:
        inside = [place for place, (first, last) in enumerate(offsets) if first < end and last > begin]
        return range(inside[0], inside[-1] + 1) if inside else range(0)
    first, last = (count_whole_tokens(segment, edge, tokenizer, controls) for edge in (begin, end))
    return range(first, last + is_token_cut(segment, end, tokenizer, controls))


def get_token_offsets(segment: Segment, tokenizer: Any) -> list[tuple[int, int]] | None:
    """Return begin and end of every token in the text of a segment, as the tokenizer gives them.

    A begin token has no text. None: The tokenizer is no fast one, or gives other tokens, because the text spells
    control tokens.
    """
    if not tokenizer.is_fast or BREAK in segment.text:
        return None
    encoded = tokenizer(
        segment.context + segment.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    begun = max(len(segment.ids) - len(encoded.input_ids), 0)  # a begin token that has no context
    known = len(encoded.input_ids) - (len(segment.ids) - begun)
    if begun > 1 or encoded.input_ids[known:] != segment.ids[begun:]:
        return None
    before = len(segment.context)
    return [(0, 0)] * begun + [
        (max(first - before, 0), max(last - before, 0)) for first, last in encoded.offset_mapping[known:]
    ]
