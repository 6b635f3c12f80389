"""Control tokens that texts spell, such as `</s>`, which are encoded as ordinary text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

BREAK = "\U0010fffe"
"""A code point that texts do not contain: Unicode reserves it for use within programs."""
CONTEXT_CHARACTERS = 64
"""Largest number of characters before a text that its tokens may depend on."""
CONTEXTS = ("\n", "a", "1", ".")
"""Texts to encode a text after if its first token would merge with what is really before it."""


@dataclass(frozen=True)
class ControlTokens:
    """The tokens of a tokenizer that only a format may write: a pattern with one group, and their numbers."""

    pattern: re.Pattern[str]
    ids: frozenset[int]
    _known: dict[str, list[int]] = field(default_factory=dict, compare=False, repr=False)

    def is_spelled_in(self, *texts: str) -> bool:
        """Return whether a text spells a control token."""
        return any(self.pattern.search(text) for text in texts)

    def break_spelled(self, text: str) -> str:
        """Return a text with `BREAK` after the first character of every control token that it spells."""
        while self.pattern.search(text):
            text = self.pattern.sub(lambda match: match[0][0] + BREAK + match[0][1:], text)
        return text

    def encode(self, text: str, tokenizer: Any, before: str = "") -> list[int]:
        """Return the token ids of a text as it continues `before`, whose own tokens stay as they are.

        Broken control tokens become ordinary text, whole ones control tokens. Many tokenizers put a blank before what
        they encode. A text that continues another has none: only its own, and that of a tokenizer that puts one after
        every control token.
        """
        if BREAK not in text:
            return self._continue(text, self._get_context(before), tokenizer)
        ids = []
        for number, part in enumerate(self.pattern.split(text)):
            if number % 2 or BREAK not in part:  # control tokens of the format are at odd places
                ids += self._continue(part, self._get_context(before), tokenizer)
            else:
                ids += self._encode_as_text(part, before, tokenizer)
            before += part
        return ids

    def _encode_as_text(self, text: str, before: str, tokenizer: Any) -> list[int]:
        """Return the token ids of a text that spells control tokens, which are broken."""
        context = before[-1:]
        if (marked := self._get_context(before)) and self.pattern.fullmatch(marked):
            context = "" if self._continue("a", marked, tokenizer) == _tokenize("a", tokenizer) else CONTEXTS[0]
        ids = self._continue(text.replace(BREAK, ""), context, tokenizer, split_special_tokens=True)
        if self.ids.isdisjoint(ids):
            return ids
        # Tokenizers keep added tokens whole that are not special, and some keep all.
        ids = []
        for part in text.split(BREAK):
            ids += self._continue(part, context, tokenizer, split_special_tokens=True)
            context = part[-1:]
        return ids

    def _get_context(self, before: str) -> str:
        """Return the end of a text on which the tokens of its continuation depend: its last control token or character.

        What follows the control token is part of it, if it is short.
        """
        end = before[-CONTEXT_CHARACTERS:]
        start = max((match.start() for match in self.pattern.finditer(end)), default=len(end) - 1)
        return before[-1:] if BREAK in end[start:] else end[max(start, 0) :]

    def _continue(self, text: str, context: str, tokenizer: Any, **options: Any) -> list[int]:
        """Return the token ids of a text after a context: all without one, or if its tokens merge with every one."""
        if not text:
            return []
        for earlier in (context, *CONTEXTS) if context else ():
            if earlier not in self._known:
                self._known[earlier] = _tokenize(earlier, tokenizer)
            known = self._known[earlier]
            ids = _tokenize(earlier + text, tokenizer, **options)
            if ids[: len(known)] == known:
                return ids[len(known) :]
        return _tokenize(text, tokenizer, **options)


def _tokenize(text: str, tokenizer: Any, **options: Any) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False, verbose=False, **options))


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
