"""Tokens of conversations, and training labels for the answers."""

from __future__ import annotations

from collections.abc import Container, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import groupby, takewhile
from operator import ne
from typing import Any

from toast_cli.data.text.control_tokens import ControlTokens, find_control_tokens
from toast_cli.data.text.turn_formats import (
    JINJA_TEMPLATES,
    ChatTemplateError,
    fix_date,
    format_chat,
    format_prompt,
    format_turns,
    get_chat_template,
    uses_chat_template,
)
from toast_cli.data.text.turns import Turn
from toast_cli.utils.constants import IGNORE_INDEX


def encode_prompt(turns: Sequence[Turn], tokenizer: Any, template: str | None) -> list[int]:
    """Return the token ids before the next answer: the tokens that precede it in `tokenize_conversation`.

    If `template` is None, the text of the last turn is encoded as it is, as the start of a document.

    Raises:
        ChatTemplateError: If the chat template rejects the turns.
    """
    if template is None:
        return encode_documents([turns[-1].whole], tokenizer)[0]
    ids, _ = _encode_turns(turns, tokenizer, template, prompt=True)[-1]
    return ids


def encode_documents(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Return the token ids of texts, each with the begin token of the tokenizer, if it has one, before it.

    Control tokens that the texts spell are encoded as ordinary text.
    """
    controls = get_control_tokens(tokenizer, None)
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
    return [
        _add_begin(
            controls.encode(controls.break_spelled(text), tokenizer) if controls.is_spelled_in(text) else ids, tokenizer
        )
        for text, ids in zip(texts, encoded, strict=True)
    ]


def get_control_tokens(tokenizer: Any, template: str | None) -> ControlTokens:
    """Return the tokens that only the format may write: special tokens, and others with which it separates turns.

    Args:
        tokenizer: the tokenizer of a language model.
        template: the format of conversations; None for documents.
    """
    chat = template is not None and uses_chat_template(tokenizer, template)
    own = tokenizer.chat_template if chat else ""
    return _find_control_tokens(tokenizer, "\n".join(map(str, own.values())) if isinstance(own, dict) else str(own))


@lru_cache(maxsize=4)
def _find_control_tokens(tokenizer: Any, chat_template: str) -> ControlTokens:
    written = ""
    if chat_template:
        with suppress(ChatTemplateError):  # special tokens are known without it
            written = format_chat(_PROBE[:3], tokenizer, prompt=False)
    return find_control_tokens(tokenizer, written, chat_template)


def _add_begin(ids: list[int], tokenizer: Any) -> list[int]:
    begin = tokenizer.bos_token_id
    return ids if begin is None or ids[:1] == [begin] else [begin, *ids]


def tokenize_conversation(turns: Sequence[Turn], tokenizer: Any, template: str) -> list[tuple[list[int], list[int]]]:
    """Return the token ids and labels of a conversation, one pair per training sample.

    Labels are `IGNORE_INDEX` outside the answers of the assistant that are trained. Every answer follows the tokens of
    `encode_prompt`. A text begins with what the chat template writes, which is what models with one were trained on.
    The other formats begin with the begin token of the tokenizer, if it has one. Prompts and answers are tokenized one
    by one, because a model generates from the tokens of a prompt, not from its text. Control tokens that a turn spells
    are encoded as ordinary text: they neither end a turn nor begin one.

    A conversation usually gives one sample. Some chat templates format earlier turns differently once others follow;
    for example, they drop the reasoning in earlier answers. If the prompt of an answer does not continue the text so
    far, the answer starts a new sample, with the turns before it as its prompt.

    The generation prompt of some chat templates ends in text that they leave out of earlier answers, such as the
    `<think>` of DeepSeek-R1. An answer is learned after it, because that is where generation begins, and without the
    same text at its own begin.

    An answer before the first question is not learned if the chat template has no prompt for it.

    Raises:
        ChatTemplateError: If the chat template rejects the turns, or its generation prompt is not the prefix of a
            formatted answer.
    """
    samples = [sample for sample in _encode_turns(turns, tokenizer, template, prompt=False) if _has_target(sample)]
    if not samples and any(turn.role == "assistant" and turn.trained for turn in turns):
        raise ChatTemplateError(
            "The chat template of this tokenizer rejects the conversation.",
            "It has no prompt for an answer before the first question.",
            "Change the turns, or use dataset.template=plain.",
            code="text.refused-by-chat-template",
        )
    return samples


def _has_target(sample: tuple[list[int], list[int]]) -> bool:
    return sample[1].count(IGNORE_INDEX) < len(sample[1])


@dataclass(frozen=True)
class Segment:
    """A piece of a formatted conversation that is encoded by itself: a prompt or an answer.

    Attributes:
        text: its text, with `BREAK` in control tokens that turns spell.
        before: the text of the sample before it.
        context: the text that it was encoded after; that of the begin token, if nothing is before it.
        ids: its tokens.
        turns: the turns up to its end.
    """

    text: str
    before: str
    context: str
    ids: list[int]
    turns: tuple[Turn, ...]


def split_into_segments(turns: Sequence[Turn], tokenizer: Any, template: str) -> list[list[Segment]]:
    """Return the segments of every sample of `tokenize_conversation`, whose tokens are those of the sample in order.

    Raises:
        ChatTemplateError: see `tokenize_conversation`.
    """
    segments: list[list[Segment]] = []
    samples = _encode_turns(turns, tokenizer, template, prompt=False, segments=segments)
    return [found for sample, found in zip(samples, segments, strict=True) if _has_target(sample)]


def split_prompt(turns: Sequence[Turn], tokenizer: Any, template: str) -> list[Segment]:
    """Return the segments of a prompt, whose tokens are those of `encode_prompt` in order.

    Raises:
        ChatTemplateError: If the chat template rejects the turns.
    """
    segments: list[list[Segment]] = []
    _encode_turns(turns, tokenizer, template, prompt=True, segments=segments)
    return segments[-1]


def _encode_turns(
    turns: Sequence[Turn],
    tokenizer: Any,
    template: str,
    prompt: bool,
    segments: list[list[Segment]] | None = None,
) -> list[tuple[list[int], list[int]]]:
    """Return the samples of a conversation; with `prompt`, the last one ends before the next answer.

    The segments of every sample are added to `segments`.
    """
    chat = uses_chat_template(tokenizer, template)
    controls = get_control_tokens(tokenizer, template)
    begin = "" if chat else tokenizer.bos_token or ""
    turns = [
        replace(
            turn,
            text=controls.break_spelled(turn.text),
            material=controls.break_spelled(turn.material),
            fields=controls.break_spelled(turn.fields),
        )
        for turn in turns
    ]
    samples: list[tuple[list[int], list[int]]] = []
    before: str | None = None

    def add_segment(text: str, earlier: str, context: str, ids: list[int], end: int) -> None:
        if segments is not None:
            segments[-1].append(Segment(text, earlier, context, ids, tuple(turns[:end])))

    def write_prompt(head: str, end: int) -> None:
        if before is not None and head.startswith(before):
            ids, labels = samples[-1]
            new = controls.encode(head[len(before) :], tokenizer, before)
            add_segment(head[len(before) :], before, before, new, end)
        else:
            samples.append(([], []))
            if segments is not None:
                segments.append([])
            ids, labels = samples[-1]
            new = controls.encode(head, tokenizer, begin)
            new = _add_begin(new, tokenizer) if begin else new
            add_segment(head, "", begin, new, end)
        ids.extend(new)
        labels.extend([IGNORE_INDEX] * len(new))

    for index, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        try:
            head = format_prompt(turns[:index], tokenizer, template)
            answer = _format_answer(turns[: index + 1], head, tokenizer, template)
        except ChatTemplateError:
            if not prompt and not _is_opening(turns, index):
                raise
            before = None  # cannot be trained on, but the template may still format the whole conversation
            continue
        write_prompt(head, index)
        ids = controls.encode(answer, tokenizer, head)
        add_segment(answer, head, head, ids, index + 1)
        samples[-1][0].extend(ids)
        samples[-1][1].extend(ids if turn.trained else [IGNORE_INDEX] * len(ids))
        before = head + answer
    if prompt:
        write_prompt(format_prompt(turns, tokenizer, template), len(turns))
    return samples


def _is_opening(turns: Sequence[Turn], index: int) -> bool:
    """Return whether a turn is before the first question of a conversation that has one."""
    first = next((place for place, turn in enumerate(turns) if turn.role in ("user", "tool")), -1)
    return index < first


def _format_answer(turns: Sequence[Turn], head: str, tokenizer: Any, template: str) -> str:
    """Return the text of the last turn, an answer, as it follows the prompt `head`, with what ends it.

    Raises:
        ChatTemplateError: If the chat template rejects the turns, or writes answers after another text than `head`.
    """
    whole = format_turns(turns, tokenizer, template)
    if whole.startswith(head):
        return whole[len(head) :]
    opening, end = _probe_answer(turns, head, tokenizer, template)
    if opening and end and not turns[-1].fields:
        text = turns[-1].whole
        same = next((each for each in (opening.lstrip(), opening.strip()) if text.lstrip().startswith(each)), "")
        return (text.lstrip().removeprefix(same) if same else text) + end
    raise ChatTemplateError(
        "The chat template of this tokenizer does not begin answers with its generation prompt.",
        "Prompt and answer cannot be separated.",
        "Use dataset.template=plain.",
        code="text.inconsistent-chat-template",
    )


def _probe_answer(turns: Sequence[Turn], head: str, tokenizer: Any, template: str) -> tuple[str, str]:
    """Return what a generation prompt `head` has after the place where the format writes the answer, and its end."""
    probed = format_turns([*turns[:-1], replace(turns[-1], text=_ANSWER, material="")], tokenizer, template)
    begin, _, end = probed.partition(_ANSWER)
    return (head[len(begin) :] if head.startswith(begin) else "", end)


def find_prompt_ending(tokenizer: Any, template: str) -> str:
    """Return the text that ends generation prompts and that the chat template leaves out of answers; often empty."""
    if not uses_chat_template(tokenizer, template):
        return ""
    try:
        head = format_prompt(_PROBE[:1], tokenizer, template)
        whole = format_turns(_PROBE[:2], tokenizer, template)
        return "" if whole.startswith(head) else _probe_answer(_PROBE[:2], head, tokenizer, template)[0]
    except ChatTemplateError:
        return ""


_ANSWER = "\ue002answer\ue003"
"""Text that stands for an answer when the format around it is looked for: code points of private use."""
_PROBE = (Turn("user", "1"), Turn("assistant", "2"), Turn("user", "3"), Turn("assistant", "4"))
"""A conversation that shows how a format ends answers."""


def set_chat_template(tokenizer: Any, template: str | None) -> Any:
    """Return a tokenizer whose chat template is the format of the run; the given one if it has that already."""
    if template is None:
        return tokenizer
    if uses_chat_template(tokenizer, template):
        get_chat_template(tokenizer)  # of several, one is the default
        own = tokenizer.chat_template
        chosen = {name: fix_date(each) for name, each in own.items()} if isinstance(own, dict) else fix_date(own)
        if chosen == own:
            return tokenizer
    else:
        chosen = JINJA_TEMPLATES["stanford" if template == "stanford" else "plain"]
    exported = deepcopy(tokenizer)
    exported.chat_template = chosen
    return exported


def find_end_tokens(tokenizer: Any, template: str) -> frozenset[int]:
    """Return the tokens with which the format ends an answer in training, so that generation can stop at them.

    They are empty if it ends answers with ordinary text, or rejects a plain conversation.
    """
    try:
        samples = tokenize_conversation(_PROBE, tokenizer, template)
    except ChatTemplateError:
        return frozenset()
    markers = get_marker_tokens(tokenizer)
    endings = (
        list_end_markers(answer, tokenizer, markers) for _, labels in samples for answer in split_answers(labels)
    )
    return frozenset(ending[0] for ending in endings if ending)


def find_end_text(tokenizer: Any, template: str | None) -> str | None:
    """Return the text with which the format ends an answer; None if that is a token, or nothing but blanks.

    A tokenizer without the tokens of its chat template, such as one to which a template was added, spells them.
    """
    if template is None or find_end_tokens(tokenizer, template):
        return None
    try:
        answers = [
            format_turns(_PROBE[: number + 1], tokenizer, template).removeprefix(
                format_prompt(_PROBE[:number], tokenizer, template)
            )
            for number in (1, 3)
        ]
    except ChatTemplateError:
        return None
    first, second = (reversed(answer) for answer in answers)
    common = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return "".join(character for character, _ in common)[::-1].strip() or None


def split_answers(labels: Sequence[int]) -> list[list[int]]:
    """Return the learned tokens of every answer."""
    return [list(run) for learned, run in groupby(labels, partial(ne, IGNORE_INDEX)) if learned]


def list_end_markers(answer: Sequence[int], tokenizer: Any, markers: Container[int]) -> list[int]:
    """Return the tokens of `markers` after the text of an answer, in their order."""
    ending = takewhile(lambda token: token in markers or not tokenizer.decode([token]).strip(), reversed(answer))
    return [token for token in ending if token in markers][::-1]


def get_marker_tokens(tokenizer: Any) -> frozenset[int]:
    """Return the special and added tokens of a tokenizer, which ordinary text does not contain."""
    return frozenset((*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder))
