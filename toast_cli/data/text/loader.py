"""Batches of texts: token ids padded to the longest of their batch, packed, or running on in equal blocks."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from toast_cli.data.images.loader import SeededShuffleSampler
from toast_cli.data.sampler import ShardedBatchSampler
from toast_cli.data.text.chat_templates import ChatTemplateError, tokenize_conversation
from toast_cli.data.text.text_store import memory_map_tokens
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    import numpy as np

    from toast_cli.data.base import BatchOptions, LoaderOptions
    from toast_cli.data.text.conversations import ConversationSplit
    from toast_cli.data.text.documents import DocumentSplit

TOKENIZER_BATCH_DOCUMENTS, TOKENIZER_BATCH_CHARACTERS = 1000, 1_000_000
"""Given to the tokenizer together, until either is reached: fast ones then use every core."""


@dataclass(frozen=True)
class TokenizedText:
    """One text, or one block of several: ids, labels, and each token's place in its own text."""

    ids: list[int]
    labels: list[int]
    places: list[int]


class TokenizedTextDataset(Dataset[tuple[int, TokenizedText]]):
    """Texts with their places in the split."""

    def __init__(self, texts: Sequence[TokenizedText]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[int, TokenizedText]:
        return index, self.texts[index]


def collate_indexed_texts(items: Sequence[tuple[int, TokenizedText]], pad: int) -> dict[str, Tensor]:
    """A batch with `index` `[B]`, and `view` `[B]`, which is 0: texts are looked at in one way only."""
    index = torch.tensor([number for number, _ in items])
    return {**collate_texts([text for _, text in items], pad), "index": index, "view": torch.zeros_like(index)}


class TextLoader:
    """Batches of tokenized texts; `notes` say what was cut and what was left out."""

    def __init__(
        self, texts: Sequence[TokenizedText], notes: tuple[str, ...], pad: int, seed: int, batches: BatchOptions
    ) -> None:
        self.notes = notes
        self._texts = texts
        self.skipped: dict[str, str] = {}  # a text that cannot be read was refused before
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
        """Texts, or blocks of text."""
        return len(self._texts)

    @property
    def longest(self) -> int:
        """Tokens of the longest."""
        return max(len(text.ids) for text in self._texts)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self._share.fill(self._loader)

    def set_epoch(self, epoch: int, begin: int = 0) -> None:
        """Shuffle as in this epoch, and leave its first `begin` batches out."""
        self._share.set_epoch(epoch, begin)


def build_conversation_loader(
    split: ConversationSplit, tokenizer: Any, batches: BatchOptions, loader: LoaderOptions
) -> TextLoader:
    """`input_ids`, `attention_mask` and `labels`, all `[B, N]`; packed blocks have `position_ids` and `real` besides.

    Raises:
        ToastError: no text leaves anything to learn.
    """
    options = split.options
    texts, cut, empty, total, refused = [], 0, 0, 0, []
    for index in range(len(split)):
        try:
            found = tokenize_conversation(split.load(index).turns, tokenizer, options.template)
        except ChatTemplateError as error:
            refused.append(error)
            continue
        total += len(found)
        for ids, labels in found:
            cut += len(ids) > options.max_tokens
            ids, labels = ids[: options.max_tokens], labels[: options.max_tokens]
            if all(label == IGNORE_INDEX for label in labels[1:]):
                empty += 1
            else:
                texts.append(TokenizedText(ids, labels, list(range(len(ids)))))
    if len(refused) == len(split):
        raise refused[0]
    if not texts:
        raise ToastError(
            f"None of {len(split):,} texts leaves anything to learn within {options.max_tokens} tokens.",
            what_to_do="Raise dataset.max_tokens.",
            code="text.nothing-to-learn",
        )
    notes = []
    if refused:
        why = f"{refused[0].what} {refused[0].why}".rstrip(". ")
        notes.append(f"{len(refused):,} of {len(split):,} texts were left out: {why}.")
    if total > len(split) - len(refused):
        notes.append(
            f"{len(split) - len(refused):,} conversations are {total:,} texts: the chat template writes earlier turns "
            "otherwise once others follow, so what is learned of an answer is learned as it will be asked for."
        )
    if cut:
        notes.append(f"{cut:,} of {total:,} texts were longer than {options.max_tokens} tokens and were cut.")
    if empty:
        notes.append(f"{empty:,} of {total:,} texts were left out: no token to be learned was left in them.")
    if options.packing and batches.augment:
        texts = pack_texts(texts, options.max_tokens)
        notes.append(f"Packed into {len(texts):,} blocks of at most {options.max_tokens} tokens.")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    return TextLoader(texts, tuple(notes), pad, loader.seed, batches)


def build_document_loader(
    split: DocumentSplit, tokenizer: Any, batches: BatchOptions, loader: LoaderOptions
) -> TextLoader:
    """`input_ids`, `attention_mask` and `labels`, all `[B, block_tokens]`: running text, every token learned.

    Documents follow one another with the tokenizer's end between them, and see each other within a block.

    Raises:
        ToastError: there is less text than one block.
    """
    length = split.block_tokens
    stream = memory_map_tokens(_tokenize_documents(split, tokenizer))
    count = len(stream) // length
    if not count:
        raise ToastError(
            f"{len(split):,} documents are {len(stream):,} tokens, less than one block of {length}.",
            what_to_do="Lower dataset.block_tokens, or give more text.",
            code="text.less-than-one-block",
        )
    left = len(stream) - count * length
    note = f"{len(split):,} documents are {count:,} blocks of {length} tokens; the last {left:,} tokens fill none."
    return TextLoader(TokenBlocks(stream, length, count), (note,), 0, loader.seed, batches)


def _tokenize_documents(split: DocumentSplit, tokenizer: Any) -> Iterator[array[int]]:
    """The documents' tokens in order, each document between the tokenizer's begin and end, several at a time."""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    texts: list[str] = []
    characters = 0
    for index in range(len(split)):
        texts.append(split.load(index))
        characters += len(texts[-1])
        if (
            len(texts) < TOKENIZER_BATCH_DOCUMENTS
            and characters < TOKENIZER_BATCH_CHARACTERS
            and index < len(split) - 1
        ):
            continue
        for ids in tokenizer(texts, add_special_tokens=False).input_ids:
            yield array("i", [*start, *ids, *end])
        texts, characters = [], 0


@dataclass(frozen=True)
class TokenBlocks(Sequence[TokenizedText]):
    """Equal stretches of one long row of tokens, cut out when they are asked for."""

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
    """Texts in order, as many to a block as fit in whole; the first token of each is not learned any more.

    What comes before it would be another text.
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
    """A batch, padded on the right.

    Several texts in one block are kept apart by their positions, which begin again: transformers builds their mask from
    that, where no other mask is given. Padding then counts as one more text.
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
