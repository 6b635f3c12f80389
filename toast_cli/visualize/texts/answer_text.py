"""A conversation with its answer, whose tokens are coloured by the attention of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from toast_cli.attention.answer_attention import compute_answer_attention
from toast_cli.attention.map_validation import AttentionChecks
from toast_cli.attention.maps import AttentionRecorder
from toast_cli.data.text.chat_templates import (
    Segment,
    encode_documents,
    get_marker_tokens,
    split_into_segments,
)
from toast_cli.data.text.turns import Turn
from toast_cli.model.occurrences import get_token_offsets, mark_occurrences
from toast_cli.model.prompt_emphasis import emphasize_tokens
from toast_cli.utils.formatting import get_templates
from toast_cli.visualize.texts.text_figure import build_text_scales
from toast_cli.visualize.texts.text_page import build_page_maps

ANSWER_MAP_DESCRIPTIONS = {
    "pass_two": "What the answer attends to, pass two",
    "pass_one": "What it would attend to without steering, pass one",
    "difference": "Pass two less pass one",
    "similarity": "Similarity to ξ: the share of each token that selection keeps",
}
"""Descriptions of the maps of an answer, in display order."""


@dataclass(frozen=True)
class AnswerView:
    """The maps of an answer: the tokens of conversation and answer as text, and `maps` `[tokens]` by name.

    The answer begins at the token `begin`.
    """

    tokens: list[str]
    maps: dict[str, Tensor]
    begin: int
    checks: AttentionChecks | None


def compute_answer_view(
    recorder: AttentionRecorder, turns: Sequence[Turn], answer: str, template: str | None, emphasize: Sequence[str] = ()
) -> AnswerView:
    """Compute what an answer attends to.

    Args:
        recorder: The recorder of a language model, which selects the level and the head.
        turns: The conversation before the answer.
        answer: The answer.
        template: The format of the conversation; None continues the text of the last turn.
        emphasize: The texts of the conversation that were emphasized while the answer was generated.

    Raises:
        UsageError: The answer is empty, or a text to emphasize does not occur or has no feedback path.
        ToastError: The chat template rejects the conversation, or a map differs from the attention that the model uses.
    """
    model = recorder.model
    tokenizer = model.backbone.require_tokenizer()
    segments = _split(turns, answer, tokenizer, template)
    ids = [token for segment in segments for token in segment.ids]
    begin = len(ids) - len(segments[-1].ids)
    markers = get_marker_tokens(tokenizer)
    while len(ids) > begin and (ids[-1] in markers or not tokenizer.decode(ids[-1:]).strip()):
        ids.pop()  # what the format writes after an answer
    marking: AbstractContextManager[None] = nullcontext()
    if emphasize:
        marked = mark_occurrences(turns, tokenizer, template, emphasize)
        marking = emphasize_tokens(model, [ids[:begin]], [marked])
    with marking:
        maps, checks = compute_answer_attention(recorder, ids, begin)
    tokens = [token for segment in segments for token in _write_tokens(segment, tokenizer)]
    return AnswerView(tokens[: len(ids)], maps, begin, checks)


def _split(turns: Sequence[Turn], answer: str, tokenizer: Any, template: str | None) -> list[Segment]:
    """Return the segments of a conversation; the last one is the answer."""
    if template is not None:
        return split_into_segments([*turns, Turn("assistant", answer)], tokenizer, template)[-1]
    text = turns[-1].whole
    prompt = encode_documents([text], tokenizer)[0]
    whole = encode_documents([text + answer], tokenizer)[0]
    own = whole[len(prompt) :] if whole[: len(prompt)] == prompt else tokenizer.encode(answer, add_special_tokens=False)
    return [Segment(text, "", "", prompt, tuple(turns)), Segment(answer, text, text, own, tuple(turns))]


def _write_tokens(segment: Segment, tokenizer: Any) -> list[str]:
    """Return the text of each token of a segment, or its name if it has no text of its own.

    A character that consists of several tokens appears at the last of them; the others are shown as dots.
    """
    names: list[str] = tokenizer.convert_ids_to_tokens(segment.ids)
    offsets = get_token_offsets(segment, tokenizer)
    if offsets is None:
        return [tokenizer.decode([token]) or name for token, name in zip(segment.ids, names, strict=True)]
    following = [first for first, _ in offsets[1:]] + [len(segment.text)]
    return [
        name if first == last else "·" if last > after else segment.text[first:last]
        for name, (first, last), after in zip(names, offsets, following, strict=True)
    ]


def render_answer_maps(view: AnswerView, names: Sequence[str] = tuple(ANSWER_MAP_DESCRIPTIONS)) -> str:
    """Render the maps of an answer as a part of an HTML page, with the styles that it needs."""
    scales = build_text_scales([view], "attention of the answer")
    descriptions = {name: ANSWER_MAP_DESCRIPTIONS[name] for name in ANSWER_MAP_DESCRIPTIONS if name in names}
    template = get_templates().get_template("visualize/templates/answer_text.html")
    return template.render(maps=build_page_maps(view, scales, descriptions))
