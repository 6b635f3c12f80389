"""Checks of token ids against what a language model accepts, its embedding and its positions, and their findings."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from toast_cli.backbones.base import TextLimits
from toast_cli.utils.errors import ToastError, UsageError


def require_known_tokens(ids: Sequence[int], tokenizer: Any, limits: TextLimits, where: str) -> None:
    """Check that the embedding of the model has a row for every token.

    Raises:
        ToastError: A token is beyond the embedding; `where` says which text it is in.
    """
    if limits.vocabulary is not None and ids and max(ids) >= limits.vocabulary:
        beyond = max(ids)
        raise ToastError(
            f"{where} has the token '{tokenizer.convert_ids_to_tokens(beyond)}' (number {beyond:,}), which the model "
            "does not have.",
            f"The tokenizer has {len(tokenizer):,} tokens, and the embedding of the model has {limits.vocabulary:,}.",
            "Use the tokenizer that belongs to the model, or a model with an embedding for every token "
            "(resize_token_embeddings of transformers).",
            code="text.token-beyond-embedding",
        )


def require_room(prompt: Sequence[int], limits: TextLimits, name: str = "The prompt", answer: bool = True) -> None:
    """Check that a prompt fits into the positions of the model; with `answer`, with room for a token after it.

    Raises:
        UsageError: It does not fit.
    """
    if limits.window is not None and len(prompt) + answer > limits.window:
        raise UsageError(
            f"{name} has {len(prompt):,} tokens, and the model accepts {limits.window:,} at most"
            + (", including the answer." if answer else "."),
            what_to_do="Shorten the prompt.",
            code="text.prompt-too-long",
        )


def get_padding_token(tokenizer: Any, limits: TextLimits) -> int:
    """Return a token to pad with, which the model masks: the tokenizer's own if the embedding has it."""
    vocabulary = limits.vocabulary
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in known if token is not None and (vocabulary is None or token < vocabulary))


def limit_tokens(wanted: int, option: str, limits: TextLimits) -> tuple[int, str | None]:
    """Return the largest number of tokens of a training text, and a note if the model has fewer positions."""
    if limits.window is None or wanted <= limits.window:
        return wanted, None
    return limits.window, (
        f"{option}={wanted:,} is more than the {limits.window:,} positions that the model reads. "
        f"Texts have {limits.window:,} tokens at most."
    )


@dataclass
class TokenFindings:
    """The lengths of the conversations of a split in tokens, and the names of those that are not learned whole.

    Attributes:
        limit: maximum number of tokens of a text.
        lengths: number of tokens of every text, before it is truncated. A conversation may become several texts.
        truncated: number of tokens of the texts that are longer than `limit`, by the name of the conversation.
        rejected: error of the chat template, by the name of the conversation.
        unlearnable: conversations with a text that has no token to learn within `limit`.
    """

    limit: int
    lengths: array[int] = field(default_factory=lambda: array("q"))
    truncated: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    unlearnable: list[str] = field(default_factory=list)

    def add(self, name: str, tokens: int) -> None:
        """Add a text of a conversation."""
        self.lengths.append(tokens)
        if tokens > self.limit:
            self.truncated[name] = max(tokens, self.truncated.get(name, 0))

    def describe_truncated(self, reason: str) -> list[str]:
        """Return a note on the texts that are truncated; `reason` names what sets the limit."""
        truncated = sum(length > self.limit for length in self.lengths)
        if not truncated:
            return []
        return [
            f"{truncated:,} of {len(self.lengths):,} texts were truncated to {self.limit:,} tokens ({reason}); the "
            f"longest has {max(self.lengths):,}."
        ]

    def describe_rejected(self, total: int) -> list[str]:
        """Return a note on the conversations, of `total`, that the chat template rejects."""
        if not self.rejected:
            return []
        why = next(iter(self.rejected.values()))
        return [f"{len(self.rejected):,} of {total:,} texts were left out: {why}."]
