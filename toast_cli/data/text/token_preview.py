"""Texts as the tokens that a model is trained on, to be shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toast_cli.data.base import BatchOptions, DataSet, LoaderOptions
from toast_cli.data.text.chat_templates import get_marker_tokens
from toast_cli.data.text.conversation_split import ConversationSplit
from toast_cli.data.text.loader import build_conversation_loader, tokenize_documents
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import ToastError, UsageError

if TYPE_CHECKING:
    from toast_cli.backbones.base import Backbone, TextLimits
    from toast_cli.data.text.documents import DocumentSplit


NOT_USED = "not used"
"""In the place of a split, of an entry that is left out."""

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

    chosen = np.sort(np.random.default_rng(seed).choice(len(split), min(count, len(split)), replace=False)).tolist()
    return _show_texts(split, chosen, backbone)


def preview_entries(data: DataSet, backbone: Backbone, entries: Sequence[str]) -> list[tuple[str, ShownText]]:
    """Return chosen entries of a data set as tokens, each with its split; `NOT_USED` for one that is left out.

    An entry is given as its number, `N`, or as `FILE:N` if several files have one, or by its name in messages.

    Raises:
        UsageError: there is no such entry, or several files have it.
        ToastError: the model has no tokenizer.
    """
    places: dict[str, list[tuple[str, int | str]]] = {}
    for part, each in data.splits.items():
        split: Any = each
        for index in range(len(split)):
            name = split.names[index] if isinstance(split, ConversationSplit) else split.get_name(index)
            places.setdefault(name, []).append((part, index))
    for name, why in data.left_out.items():
        places.setdefault(name, []).append((NOT_USED, f"It is left out: {why}."))
    shown = []
    for entry in entries:
        name = _find_entry(entry, list(places))
        for part, place in places[name]:
            texts = (
                [ShownText(name, error=place)]
                if isinstance(place, str)
                else _show_texts(data.splits[part], [place], backbone)  # type: ignore[arg-type]
            )
            shown += [(part, text) for text in texts]
    return shown


def _find_entry(entry: str, names: Sequence[str]) -> str:
    """Return the one of `names` that an entry means.

    Raises:
        UsageError: it is none, or several.
    """
    file, _, number = entry.rpartition(":")
    number = f"{int(number):,}" if number.isascii() and number.isdigit() else ""
    found = [entry] if entry in names else []
    for name in () if found or not number else names:
        place, _, last = name.rpartition(" ")
        place = place.removesuffix("entry").removesuffix("document").rstrip(", ")
        if last.replace(",", "") == number.replace(",", "") and (
            not file or place == file or place.endswith(f"/{file}")
        ):
            found.append(name)
    if len(found) == 1:
        return found[0]
    listed = ", ".join(map(repr, found[:3])) + (", ..." if len(found) > 3 else "")
    raise UsageError(
        f"There is no entry '{entry}'." if not found else f"Several files have an entry '{entry}': {listed}.",
        what_to_do="Give the number of an entry, or FILE:NUMBER, as 'toast data check' names it.",
        code="text.no-such-entry",
    )


def _show_texts(
    split: ConversationSplit | DocumentSplit, indices: Sequence[int], backbone: Backbone
) -> list[ShownText]:
    """Return the texts at `indices` of a split as tokens."""
    tokenizer, limits = backbone.require_tokenizer(), backbone.text_limits
    show = _show_conversation if isinstance(split, ConversationSplit) else _show_document
    return [text for index in indices for text in show(split, index, tokenizer, limits)]  # type: ignore[arg-type]


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
