"""Conversations as the text a model reads, and which of its tokens are to be learned: the answers alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from toast_cli.data.text import Turn
from toast_cli.errors import ToastError
from toast_cli.labels import IGNORED

HEADINGS = {"system": "### System:\n", "user": "### Instruction:\n", "assistant": "### Response:\n"}
"""What marks a turn where there is no chat template."""


def uses_chat(tokenizer: Any, template: str) -> bool:
    """Whether turns are marked by the tokenizer's chat template.

    Raises:
        ToastError: it was asked for and there is none.
    """
    if template == "chat" and not tokenizer.chat_template:
        raise ToastError("This tokenizer has no chat template.", what_to_do="Use dataset.template=plain.")
    return template != "plain" and bool(tokenizer.chat_template)


def prompt_text(turns: Sequence[Turn], tokenizer: Any, template: str) -> str:
    """Everything up to where the next answer begins."""
    if uses_chat(tokenizer, template):
        return _chat(turns, tokenizer, add_generation_prompt=True)
    return _plain(turns, tokenizer) + HEADINGS["assistant"]


def tokens(turns: Sequence[Turn], tokenizer: Any, template: str) -> tuple[list[int], list[int]]:
    """Token ids of a conversation and their labels, which are `IGNORED` outside the assistant's answers.

    Every answer is tokenized by itself, after a prompt that was: so it is met again when the model writes.

    Raises:
        ToastError: the chat template changes what it wrote before when a turn is added.
    """
    ids: list[int] = []
    labels: list[int] = []

    def write(text: str, learned: bool) -> None:
        new = tokenizer(text, add_special_tokens=False).input_ids
        ids.extend(new)
        labels.extend(new if learned else [IGNORED] * len(new))

    chat = uses_chat(tokenizer, template)
    if not chat and tokenizer.bos_token_id is not None:
        ids.append(tokenizer.bos_token_id)
        labels.append(IGNORED)
    before = ""
    for index, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        head = prompt_text(turns[:index], tokenizer, template)
        whole = _chat(turns[: index + 1], tokenizer) if chat else _plain(turns[: index + 1], tokenizer)
        if not (head.startswith(before) and whole.startswith(head)):
            raise ToastError(
                "This tokenizer's chat template rewrites earlier turns when one is added.",
                what_to_do="Use dataset.template=plain.",
            )
        write(head[len(before) :], learned=False)
        write(whole[len(head) :], learned=True)
        before = whole
    return ids, labels


def _chat(turns: Sequence[Turn], tokenizer: Any, add_generation_prompt: bool = False) -> str:
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)


def _plain(turns: Sequence[Turn], tokenizer: Any) -> str:
    ends = {"assistant": tokenizer.eos_token or "\n\n"}
    return "".join(f"{HEADINGS[turn.role]}{turn.text}{ends.get(turn.role, chr(10) * 2)}" for turn in turns)


def begun(ids: list[int], tokenizer: Any) -> list[int]:
    """A prompt's tokens behind the one that begins a text, where the tokenizer has one and it is not there yet."""
    bos = tokenizer.bos_token_id
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]
