"""Texts as the tokens that a model is trained on, to be shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toast_cli.data.base import BatchOptions, LoaderOptions
from toast_cli.data.text.chat_templates import get_marker_tokens
from toast_cli.data.text.conversation_split import ConversationSplit
from toast_cli.data.text.loader import build_conversation_loader, tokenize_documents
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from toast_cli.backbones.base import Backbone, TextLimits
    from toast_cli.data.text.documents import DocumentSplit


ERRORS_OF_ONE_TEXT = (
    "text.refused-by-chat-template",
    "text.inconsistent-chat-template",
    "text.omitted-by-chat-template",
    "text.nothing-to-learn",
)
"""Codes of errors that concern a single conversation; others concern the model or its chat template."""


@dataclass(frozen=True)
class ShownToken:
    """A token: its number, its part of the text, whether it is trained, and whether ordinary text cannot contain it."""

    id: int
    text: str
    trained: bool
    special: bool


@dataclass(frozen=True)
class ShownText:
    """A training text, or a conversation that gives none, with the reason in `error`.

    `whole` is its number of tokens before it is truncated.
    """

    name: str
    tokens: tuple[ShownToken, ...] = ()
    whole: int = 0
    error: str | None = None


def preview_texts(
    split: ConversationSplit | DocumentSplit, backbone: Backbone, count: int, seed: int
) -> list[ShownText]:
    """Return `count` texts of a split, drawn by the seed, as tokens. A conversation may become several texts.

    They are not packed, and documents are not cut into blocks.

    Raises:
        ToastError: the model has no tokenizer.
    """
    import numpy as np

    tokenizer, limits = backbone.require_tokenizer(), backbone.text_limits
    chosen = np.sort(np.random.default_rng(seed).choice(len(split), min(count, len(split)), replace=False)).tolist()
    show = _show_conversation if isinstance(split, ConversationSplit) else _show_document
    return [text for index in chosen for text in show(split, index, tokenizer, limits)]  # type: ignore[arg-type]


def _show_conversation(split: ConversationSplit, index: int, tokenizer: Any, limits: TextLimits) -> Iterator[ShownText]:
    """Yield the texts of a conversation as its loader makes them."""
    conversation = split.load(index)
    alone = ConversationSplit((conversation,), split.options)
    try:
        loader = build_conversation_loader(alone, tokenizer, BatchOptions(1), LoaderOptions(), limits)
    except ToastError as error:
        if error.code not in ERRORS_OF_ONE_TEXT:
            raise
        yield ShownText(conversation.name, error=" ".join(part for part in (error.what, *error.reasons) if part))
        return
    findings = loader.findings
    assert findings is not None  # of conversations
    limit, whole = findings.limit, findings.truncated.get(conversation.name, 0)
    for text in loader.texts:
        trained = [label != IGNORE_INDEX for label in text.labels]
        tokens = _mark_tokens(text.ids, trained, tokenizer)
        yield ShownText(conversation.name, tokens, whole if len(tokens) == limit and whole else len(tokens))
    for _ in findings.unlearnable:
        yield ShownText(conversation.name, error=f"It has a text with no token to learn within {limit:,} tokens.")


def _show_document(split: DocumentSplit, index: int, tokenizer: Any, limits: TextLimits) -> Iterator[ShownText]:
    """Yield a document, of which no more than a block is shown. All of its tokens are trained."""
    for ids in tokenize_documents(split.take([index]), tokenizer, limits):
        shown = ids[: split.block_tokens]
        yield ShownText(split.get_name(index), _mark_tokens(shown, [True] * len(shown), tokenizer), len(ids))


def _mark_tokens(ids: Sequence[int], trained: Sequence[bool], tokenizer: Any) -> tuple[ShownToken, ...]:
    special = get_marker_tokens(tokenizer)
    texts = split_token_texts(ids, tokenizer)
    return tuple(
        ShownToken(number, text, learned, number in special)
        for number, text, learned in zip(ids, texts, trained, strict=True)
    )


def split_token_texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Return the part of the text that each token adds; the last of the tokens of a character has the character.

    Decoding token by token would lose the spaces of SentencePiece, and characters of several tokens.
    """
    texts = []
    begin = done = 0  # tokens before `done` are in the text; those from `begin` are the context of the next ones
    for end in range(1, len(ids) + 1):
        before, after = (tokenizer.decode(list(ids[begin:stop])) for stop in (done, end))
        if after.endswith("\ufffd") and end < len(ids):
            texts.append("")
            continue
        texts.append(after[len(before) :])
        begin, done = done, end
    return texts
