"""The lengths of the texts that a plan is made for: measured in the data, estimated, or given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median_low
from typing import Any

from toast_cli.backbones.base import Backbone
from toast_cli.data.base import BatchOptions, get_split_kind
from toast_cli.data.text.token_limits import limit_tokens
from toast_cli.model.recipe_data import build_batches, open_data
from toast_cli.recipe.schema import Recipe
from toast_cli.utils.errors import UsageError

MAX_TOKENIZED_TEXTS = 1000
"""Number of texts that are tokenized to find the typical length, and of the longest ones to find the longest."""
BYTES_PER_TOKEN = 3
"""Bytes of text per token where there is no tokenizer: English has about four, code and other languages fewer."""


@dataclass(frozen=True)
class TextLength:
    """The tokens of a text, and how many of them are learned."""

    tokens: int
    learned: int


@dataclass(frozen=True)
class TextLengths:
    """The lengths of a typical and of the longest text of training, and a note on where they come from."""

    typical: TextLength
    longest: TextLength
    note: str


def give_text_length(tokens: int, backbone: Backbone) -> TextLengths:
    """Return the lengths of texts that all have so many tokens, as far as the model reads them."""
    tokens, note = limit_tokens(tokens, "--tokens", backbone.text_limits)
    every = TextLength(tokens, tokens - 1)
    return TextLengths(every, every, note or f"Texts of {tokens:,} tokens, all of which are learned (--tokens).")


def measure_text_lengths(recipe: Recipe, backbone: Backbone) -> tuple[TextLengths, tuple[str, ...]]:
    """Return the lengths of the texts of the training split, and the messages of the data set.

    The longest texts and a sample of the others are tokenized, not all of them. Without a tokenizer, the lengths are
    estimated from the bytes of the texts.

    Raises:
        UsageError: the data set does not contain texts.
        ToastError: the data set cannot be read, or has no text to learn.
    """
    data = open_data(recipe)
    split: Any = data.splits["train"]
    kind = get_split_kind(split)
    if kind == "documents":
        tokens, _ = limit_tokens(split.block_tokens, "dataset.block_tokens", backbone.text_limits)
        block = TextLength(tokens, tokens - 1)
        return TextLengths(block, block, f"Documents are cut into blocks of {tokens:,} tokens."), data.messages
    if kind != "conversations":
        raise UsageError(
            f"'{recipe.dataset.name}' contains images, and {recipe.backbone.name} takes texts.",
            what_to_do="Give a data set of texts (--dataset alpaca:FILE), or the length of texts (--tokens 512).",
            code="backbone.not-for-images",
        )
    limit, _ = limit_tokens(split.options.max_tokens, "dataset.max_tokens", backbone.text_limits)
    if split.options.packing:
        block = TextLength(limit, limit - 1)
        return TextLengths(block, block, f"Texts are packed into blocks of {limit:,} tokens."), data.messages
    sizes = [sum(len(turn.whole.encode()) for turn in split.load(at).turns) for at in range(len(split))]
    if backbone.tokenizer is None:
        return _estimate_lengths(sizes, limit), data.messages
    longest_first = sorted(range(len(split)), key=lambda at: -sizes[at])
    longest = max(_tokenize(split, longest_first[:MAX_TOKENIZED_TEXTS], recipe, backbone), key=lambda text: text.tokens)
    spread = range(0, len(split), -(-len(split) // MAX_TOKENIZED_TEXTS))
    sample = _tokenize(split, spread, recipe, backbone)
    middle = median_low(text.tokens for text in sample)
    typical = next(text for text in sample if text.tokens == middle)
    note = f"{len(split):,} texts: {middle:,} tokens typically (the median), {longest.tokens:,} at most"
    cut = f", to which dataset.max_tokens={split.options.max_tokens} or the model cuts longer ones"
    return TextLengths(typical, longest, f"{note}{cut if longest.tokens == limit else ''}."), data.messages


def _tokenize(split: Any, indices: Sequence[int], recipe: Recipe, backbone: Backbone) -> list[TextLength]:
    chosen = replace(split, conversations=tuple(split.load(index) for index in indices))
    loader: Any = build_batches(chosen, recipe, backbone, BatchOptions(1))
    return [TextLength(*length) for length in loader.lengths]


def _estimate_lengths(sizes: Sequence[int], limit: int) -> TextLengths:
    typical, longest = (
        TextLength(tokens, tokens - 1)
        for tokens in (max(2, min(limit, -(-size // BYTES_PER_TOKEN))) for size in (median_low(sizes), max(sizes)))
    )
    note = (
        f"There is no tokenizer of the model on this machine, so a token is taken for {BYTES_PER_TOKEN} bytes: "
        f"{typical.tokens:,} tokens typically, {longest.tokens:,} at most. --tokens sets the length of texts."
    )
    return TextLengths(typical, longest, note)
