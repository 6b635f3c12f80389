"""Loaders of tokenized texts: padded to the longest of the batch, packed, or cut into blocks of equal length."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from toast_cli.backbones.base import NO_TEXT_LIMITS, TextLimits
from toast_cli.data.sampler import SeededShuffleSampler, ShardedBatchSampler
from toast_cli.data.text.chat_templates import (
    encode_documents,
    find_end_text,
    find_end_tokens,
    find_prompt_ending,
    get_control_tokens,
    get_marker_tokens,
    list_end_markers,
    split_answers,
    tokenize_conversation,
)
from toast_cli.data.text.text_store import memory_map_tokens
from toast_cli.data.text.token_limits import TokenFindings, get_padding_token, limit_tokens, require_known_tokens
from toast_cli.data.text.turn_formats import ChatTemplateError, accepts_opening_answers, count_opening_answers
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from toast_cli.data.base import BatchOptions, LoaderOptions
    from toast_cli.data.text.conversation_split import ConversationSplit
    from toast_cli.data.text.documents import DocumentSplit

TOKENIZER_BATCH_DOCUMENTS, TOKENIZER_BATCH_CHARACTERS = 1000, 1_000_000
"""Limits of the documents per tokenizer call. Fast tokenizers process the documents of a call in parallel."""


@dataclass(frozen=True)
class TokenizedText:
    """A text or a block of packed texts: ids, labels, and the position of each token in its own text."""

    ids: list[int]
    labels: list[int]
    places: list[int]


class TokenizedTextDataset(Dataset[tuple[int, TokenizedText]]):
    """Texts with their index in the split."""

    def __init__(self, texts: Sequence[TokenizedText]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[int, TokenizedText]:
        return index, self.texts[index]


def collate_indexed_texts(items: Sequence[tuple[int, TokenizedText]], pad: int) -> dict[str, Tensor]:
    """Collate texts and add `index` `[B]` and `view` `[B]`, which is always 0 because texts are not augmented."""
    index = torch.tensor([number for number, _ in items])
    return {**collate_texts([text for _, text in items], pad), "index": index, "view": torch.zeros_like(index)}


class TextLoader:
    """Loader of tokenized `texts`. `notes` report truncated texts and texts that were left out.

    `findings` names them; it is None for documents. `origins` has, for every text, the index of its conversation in the
    split and the number of the sample of `tokenize_conversation`; it is empty for documents and packed blocks.
    """

    def __init__(
        self,
        texts: Sequence[TokenizedText],
        notes: tuple[str, ...],
        pad: int,
        seed: int,
        batches: BatchOptions,
        findings: TokenFindings | None = None,
        origins: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.notes, self.findings, self.origins = notes, findings, origins
        self.texts = texts
        self._arguments = (notes, pad, seed, batches, findings)
        self.skipped: dict[str, str] = {}  # unreadable texts raise an error earlier
        order = SeededShuffleSampler(len(texts), seed) if batches.shuffle else SequentialSampler(texts)
        self._share = ShardedBatchSampler(order, batches.batch_size, batches.process, batches.processes)
        self._loader: DataLoader[Any] = DataLoader(
            TokenizedTextDataset(texts),
            batch_sampler=self._share,
            collate_fn=lambda items: collate_indexed_texts(items, pad),
        )

    def __len__(self) -> int:
        return len(self._loader)

    @property
    def samples(self) -> int:
        """Number of texts or blocks."""
        return len(self.texts)

    @property
    def conversations(self) -> int | None:
        """Number of conversations with a text to learn; None for documents and packed blocks."""
        return len({index for index, _ in self.origins}) or None

    @property
    def longest(self) -> int:
        """Number of tokens of the longest text."""
        return max(len(text.ids) for text in self.texts)

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """Number of tokens and of learned tokens of every text or block."""
        return [
            (len(text.ids), len(text.labels) - 1 - text.labels[1:].count(IGNORE_INDEX))  # nothing predicts the first
            for text in self.texts
        ]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self._share.mask_surplus_labels(self._loader)

    def draw_texts(self, count: int | None, seed: int) -> TextLoader:
        """Return a loader of `count` randomly drawn texts, in their order; this one if there are not more."""
        if count is None or count >= len(self.texts):
            return self
        chosen = sorted(np.random.default_rng(seed).choice(len(self.texts), count, replace=False).tolist())
        origins = [self.origins[index] for index in chosen] if self.origins else ()
        return TextLoader([self.texts[index] for index in chosen], *self._arguments, origins)

    def set_epoch(self, epoch: int, begin: int = 0) -> None:
        """Use the order of an epoch, and skip its first `begin` batches."""
        self._share.set_epoch(epoch, begin)


def build_conversation_loader(
    split: ConversationSplit,
    tokenizer: Any,
    batches: BatchOptions,
    loader: LoaderOptions,
    limits: TextLimits = NO_TEXT_LIMITS,
) -> TextLoader:
    """Build a loader of conversations, of at most `max_tokens` tokens and the window of the model.

    Batches have `input_ids`, `attention_mask` and `labels`, all `[B, N]`. Batches of packed blocks have `position_ids`
    and `real` instead of `attention_mask`.

    Raises:
        ToastError: If the chat template rejects all texts, no text has a token to learn, or the model lacks a token.
    """
    options = split.options
    longest = min(options.max_tokens, limits.window or options.max_tokens)
    markers = get_marker_tokens(tokenizer)
    stops = find_end_tokens(tokenizer, options.template) | {tokenizer.eos_token_id}
    end_text = find_end_text(tokenizer, options.template)
    texts, origins, empty, error = [], list[tuple[int, int]](), 0, None
    findings = TokenFindings(longest)
    answers, endless = 0, []
    controls, spelled = get_control_tokens(tokenizer, options.template), 0
    ending = find_prompt_ending(tokenizer, options.template).strip()
    opened = asked = unopened = 0
    repeats = split.repeats if split.repeats and batches.augment else (1,) * len(split)
    used = [index for index, times in enumerate(repeats) if times]
    for index in used:
        conversation = split.load(index)
        try:
            samples = tokenize_conversation(conversation.turns, tokenizer, options.template)
        except ChatTemplateError as raised:
            error = error or raised
            findings.rejected[conversation.name] = f"{raised.what} {raised.why}".rstrip(". ")
            continue
        spelled += controls.is_spelled_in(*(f"{turn.whole}{turn.fields}" for turn in conversation.turns))
        opened += count_opening_answers(conversation.turns) > 0
        trained = [turn for turn in conversation.turns if turn.role == "assistant" and turn.trained]
        asked += len(trained)
        unopened += sum(not turn.text.lstrip().startswith(ending) for turn in trained)
        for number, (ids, labels) in enumerate(samples):
            require_known_tokens(ids, tokenizer, limits, conversation.name)
            for answer in split_answers(labels):
                answers += 1
                if not stops.isdisjoint(list_end_markers(answer, tokenizer, markers)):
                    continue
                if end_text is None or not tokenizer.decode(answer).rstrip().endswith(end_text):
                    endless.append(tokenizer.decode(answer[-3:]))
            findings.add(conversation.name, len(ids))
            ids, labels = ids[:longest], labels[:longest]
            after_first = labels[1:]  # nothing predicts the first token
            if after_first.count(IGNORE_INDEX) == len(after_first):
                empty += 1
                findings.unlearnable.append(conversation.name)
            else:
                texts += [TokenizedText(ids, labels, list(range(len(ids))))] * repeats[index]
                origins += [(index, number)] * repeats[index]
    rejected, total = len(findings.rejected), len(findings.lengths)
    if error is not None and rejected == len(used):
        raise error
    if not texts:
        raise ToastError(
            f"None of {len(used):,} texts has a token to learn within the first {longest} tokens.",
            what_to_do="Raise dataset.max_tokens." if longest == options.max_tokens else "Shorten the prompts.",
            code="text.nothing-to-learn",
        )
    notes = findings.describe_rejected(len(used))
    if total > len(used) - rejected:
        notes.append(
            f"{len(used) - rejected:,} conversations became {total:,} texts, because the chat template formats "
            "earlier turns differently once others follow. Every answer is learned after the prompt used in generation."
        )
    notes += _format_spelled_note(spelled, len(used))
    if ending:
        notes.append(
            f"The generation prompt of the chat template ends in {ending!r}, so answers are learned after it. "
            f"{unopened:,} of {asked:,} answers do not begin with {ending!r}: the model learns to give them at once."
        )
    if opened:
        kept = accepts_opening_answers(tokenizer, options.template)
        notes.append(
            f"{opened:,} of {len(used):,} conversations begin with an answer, which no prompt asks for: it is "
            + ("read, but not learned." if kept else "left out, because the chat template does not accept it.")
        )
    if endless:
        notes.append(
            f"{len(endless):,} of {answers:,} answers do not end with a token that ends answers, but with "
            f"{endless[0]!r}: generation cannot stop there, and continues to its limit of new tokens."
        )
    if end_text is not None:
        notes.append(
            f"Answers end with the text {end_text!r}, for which the tokenizer has no token: generation stops at this "
            "text."
        )
    limit = "dataset.max_tokens" if longest == options.max_tokens else "the positions that the model reads"
    notes += findings.describe_truncated(limit)
    if empty:
        notes.append(f"{empty:,} of {total:,} texts were left out, because they had no token to learn.")
    if options.packing and batches.augment:
        texts, origins = pack_texts(texts, longest), []
        notes.append(f"Packed into {len(texts):,} blocks of at most {longest} tokens.")
    pad = get_padding_token(tokenizer, limits)
    return TextLoader(texts, tuple(notes), pad, loader.seed, batches, findings, origins)


def build_document_loader(
    split: DocumentSplit,
    tokenizer: Any,
    batches: BatchOptions,
    loader: LoaderOptions,
    limits: TextLimits = NO_TEXT_LIMITS,
) -> TextLoader:
    """Build a loader of blocks of documents, in which every token is learned.

    Batches have `input_ids`, `attention_mask` and `labels`, all `[B, N]`, where N is `block_tokens`, or the window of
    the model if it is smaller. Documents are separated by the EOS token of the tokenizer. Documents in the same block
    attend to each other.

    Raises:
        ToastError: If there is less text than one block, or the model lacks a token.
    """
    length, note = limit_tokens(split.block_tokens, "dataset.block_tokens", limits)
    controls, spelled = get_control_tokens(tokenizer, None), 0

    def watch(texts: list[str]) -> None:
        nonlocal spelled
        spelled += sum(map(controls.is_spelled_in, texts))

    stream = memory_map_tokens(tokenize_documents(split, tokenizer, limits, watch))
    count = len(stream) // length
    if not count:
        raise ToastError(
            f"{len(split):,} documents have {len(stream):,} tokens, less than one block of {length}.",
            what_to_do="Lower dataset.block_tokens, or use more text.",
            code="text.less-than-one-block",
        )
    left = len(stream) - count * length
    notes = [] if note is None else [note]
    notes.append(
        f"{len(split):,} documents make {count:,} blocks of {length} tokens; the last {left:,} tokens are not used."
    )
    notes += _format_spelled_note(spelled, len(split))
    if tokenizer.eos_token_id is None:
        notes.append("The tokenizer has no end token, so nothing separates documents, and generation does not stop.")
    return TextLoader(TokenBlocks(stream, length, count), tuple(notes), 0, loader.seed, batches)


def _format_spelled_note(count: int, total: int) -> list[str]:
    """Return the note on texts that spell control tokens."""
    if not count:
        return []
    return [
        f"{count:,} of {total:,} texts contain control tokens of the tokenizer, such as an end token. They are encoded "
        "as ordinary text, which ends no turn and begins none."
    ]


def tokenize_documents(
    split: DocumentSplit, tokenizer: Any, limits: TextLimits, watch: Callable[[list[str]], object] = len
) -> Iterator[array[int]]:
    """Yield the tokens of every document, with BOS and EOS. Several documents are tokenized per call.

    `watch` is called with the documents of each call; the default ignores them.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    texts: list[str] = []
    characters = done = 0
    for index in range(len(split)):
        texts.append(split.load(index))
        characters += len(texts[-1])
        if (
            len(texts) < TOKENIZER_BATCH_DOCUMENTS
            and characters < TOKENIZER_BATCH_CHARACTERS
            and index < len(split) - 1
        ):
            continue
        watch(texts)
        for number, ids in enumerate(encode_documents(texts, tokenizer), start=done + 1):
            require_known_tokens([*ids, *end], tokenizer, limits, f"Document {number:,}")
            yield array("i", [*ids, *end])
        done += len(texts)
        texts, characters = [], 0


@dataclass(frozen=True)
class TokenBlocks(Sequence[TokenizedText]):
    """Blocks of equal length, cut from a stream of tokens on access."""

    stream: np.ndarray
    length: int
    blocks: int

    def __len__(self) -> int:
        return self.blocks

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self.blocks:
            raise IndexError(index)
        ids = self.stream[index * self.length : (index + 1) * self.length].tolist()
        return TokenizedText(ids, ids, list(range(self.length)))


def pack_texts(texts: Sequence[TokenizedText], length: int) -> list[TokenizedText]:
    """Pack texts in order into blocks of at most `length` tokens, without splitting a text.

    The first token of a text is not learned, because the token before it belongs to another text.
    """
    blocks: list[TokenizedText] = []
    for text in texts:
        if not blocks or len(blocks[-1].ids) + len(text.ids) > length:
            blocks.append(TokenizedText([], [], []))
        block = blocks[-1]
        block.ids.extend(text.ids)
        block.labels.extend([IGNORE_INDEX, *text.labels[1:]])
        block.places.extend(text.places)
    return blocks


def collate_texts(texts: Sequence[TokenizedText], pad: int) -> dict[str, Tensor]:
    """Collate texts into a batch, padded on the right.

    In packed blocks, positions restart at every text. If no attention mask is given, transformers derives one from the
    positions that separates the texts. Padding then counts as another text.
    """
    longest = max(len(text.ids) for text in texts)

    def table(rows: list[list[int]], filler: int) -> Tensor:
        return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])

    real = table([[1] * len(text.ids) for text in texts], 0)
    batch = {
        "input_ids": table([text.ids for text in texts], pad),
        "labels": table([text.labels for text in texts], IGNORE_INDEX),
    }
    if all(text.places[-1] == len(text.places) - 1 for text in texts):
        return {**batch, "attention_mask": real}
    places = [[*text.places, *range(longest - len(text.places))] for text in texts]
    return {**batch, "position_ids": torch.tensor(places), "real": real.bool()}
