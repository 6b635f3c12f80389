"""Text from tokens, piece by piece: whole characters only, and nothing from a stop text on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\ufffd"
"""The character that tokenizers write for bytes that are not, or not yet, a character."""

MOST_UNFINISHED = 8
"""Number of replacement characters up to which they may be a character whose last bytes are still missing."""

BYTES_MISSING = 3
"""Number of bytes that the beginning of a character has at most."""


class TextStream:
    """Converts tokens to text as they come.

    A character whose bytes are split over several tokens is passed on once it is complete. What may be the beginning of
    a stop text is held back until the next tokens decide. Decoding a token takes the tokens since the last but one
    complete character, so its cost does not grow with the text.

    Args:
        tokenizer: Tokenizer of the model.
        stops: Texts that end the answer. The answer ends before the first of them.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._tokens: list[int] = []
        self._start = self._boundary = 0
        self._decoded = 0
        self._passed, self._held = "", ""

    @property
    def text(self) -> str:
        """The text of all tokens, up to the first stop text."""
        if self.stopped:
            return self._passed
        return self._decode(self._tokens)

    def add(self, token: int) -> str:
        """Return the text that can be passed on after another token; `stopped` is set if a stop text is complete."""
        self._tokens.append(token)
        text = self._decode(self._tokens[self._start :])
        unfinished = len(text) - len(text.rstrip(REPLACEMENT))
        ready = text[: len(text) - (unfinished if unfinished <= MOST_UNFINISHED else BYTES_MISSING)]
        piece, self._decoded = ready[self._decoded :], max(self._decoded, len(ready))
        if piece and not unfinished:
            self._start, self._boundary = self._boundary, len(self._tokens)
            self._decoded = len(self._decode(self._tokens[self._start :]))
        return self._pass_on(piece)

    def finish(self) -> str:
        """Return the rest of the text after the last token."""
        if self.stopped:
            return ""
        rest = self._decode(self._tokens[self._start :])[self._decoded :]
        piece = self._pass_on(rest)
        if not self.stopped:
            piece, self._held = piece + self._held, ""
        return piece

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def _pass_on(self, piece: str) -> str:
        text, self._held = self._held + piece, ""
        found = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if found:
            self.stopped, text = True, text[: min(found)]
        else:
            begun = max((_count_begun(text, stop) for stop in self._stops), default=0)
            text, self._held = text[: len(text) - begun], text[len(text) - begun :]
        self._passed += text
        return text


def _count_begun(text: str, stop: str) -> int:
    """Return the number of characters at the end of a text that may be the beginning of a stop text."""
    return next((count for count in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:count])), 0)
