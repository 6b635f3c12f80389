"""The tokens with which the format of a run ends answers."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from toast_cli.data.text.chat_templates import (
    find_end_text,
    find_end_tokens,
    split_answers,
    tokenize_conversation,
)
from toast_cli.data.text.turns import Turn
from toast_cli.utils.errors import ToastError

_ANSWERS = ("2", "Yes.")


def find_answer_ends(tokenizer: Any, template: str | None) -> tuple[tuple[int, ...], ...]:
    """Return the sequences of tokens with which a format ends answers in training: a token, or those of a text.

    They are empty for documents (`template` is None), for a format that ends answers with nothing but blanks, and for
    one that cannot format a plain question; loading the texts reports that.
    """
    if tokenizer is None or template is None:
        return ()
    try:
        if ends := find_end_tokens(tokenizer, template):
            return tuple((token,) for token in sorted(ends))
        if find_end_text(tokenizer, template) is None:
            return ()
        first, second = (_tokenize_answer(text, tokenizer, template) for text in _ANSWERS)
    except ToastError:
        return ()
    same = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(first), reversed(second), strict=False))
    ending = [token for token, _ in same][::-1]
    while ending and not tokenizer.decode(ending[-1:]).strip():
        ending.pop()
    return (tuple(ending),) if ending else ()


def _tokenize_answer(text: str, tokenizer: Any, template: str) -> list[int]:
    (_, labels), *_ = tokenize_conversation([Turn("user", "1"), Turn("assistant", text)], tokenizer, template)
    return split_answers(labels)[-1]
