"""Control tokens that texts spell, such as `</s>`, which are encoded as ordinary text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

BREAK = "\U0010fffe"
"""A code point that texts do not contain: Unicode reserves it for use within programs."""


@dataclass(frozen=True)
class ControlTokens:
    """The tokens of a tokenizer that only a format may write: a pattern with one group, and their numbers."""

    pattern: re.Pattern[str]
    ids: frozenset[int]

    def is_spelled_in(self, *texts: str) -> bool:
        """Return whether a text spells a control token."""
        return any(self.pattern.search(text) for text in texts)

    def break_spelled(self, text: str) -> str:
        """Return a text with `BREAK` after the first character of every control token that it spells."""
        while self.pattern.search(text):
            text = self.pattern.sub(lambda match: match[0][0] + BREAK + match[0][1:], text)
        return text

    def encode(self, text: str, tokenizer: Any) -> list[int]:
        """Return the token ids of a text: broken control tokens as ordinary text, whole ones as control tokens."""
        if BREAK not in text:
            return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
        ids = []
        for number, part in enumerate(self.pattern.split(text)):
            if number % 2 or BREAK not in part:  # control tokens of the format are at odd places
                ids += tokenizer(part, add_special_tokens=False, verbose=False).input_ids
            else:
                ids += self._encode_as_text(part, tokenizer)
        return ids

    def _encode_as_text(self, text: str, tokenizer: Any) -> list[int]:
        joined = text.replace(BREAK, "")
        ids = list(tokenizer(joined, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids)
        if self.ids.isdisjoint(ids):
            return ids
        # Tokenizers keep added tokens whole that are not special, and some keep all.
        return [
            token
            for part in text.split(BREAK)
            for token in tokenizer(part, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
        ]


def find_control_tokens(tokenizer: Any, written: str, chat_template: str) -> ControlTokens:
    """Return the special tokens of a tokenizer, and other added tokens that are in `written`, the text of a format.

    Tokens that the chat template looks for in turns, such as `<think>`, belong to the turns. So does the token for
    unknown characters: data sets of words contain it in place of rare words.
    """
    texts = {str(token) for token in tokenizer.all_special_tokens}
    for token in tokenizer.added_tokens_decoder.values():
        read = any(code in chat_template for code in (f"'{token}' in ", f"split('{token}')"))
        if token.special or (str(token) in written and not read):
            texts.add(str(token))
    if tokenizer.unk_token not in (tokenizer.bos_token, tokenizer.eos_token):
        texts.discard(str(tokenizer.unk_token))
    longest_first = sorted((text for text in texts if len(text) > 1), key=len, reverse=True)
    pattern = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
    return ControlTokens(pattern, frozenset(tokenizer.convert_tokens_to_ids(longest_first)))
