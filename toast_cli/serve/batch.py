"""The running batch of a model: texts join it after their prompt was read, and leave it with their last token."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from toast_cli.model.generation import TextGenerator
from toast_cli.serve.cache_rows import append_rows, select_rows, supports_padding, supports_rows
from toast_cli.serve.sequence import Sequence

PROMPT_TOKENS = 2048
"""Largest number of tokens, with padding, of several prompts that are read together."""


class DecodingBatch:
    """Texts of one model that are generated together, one token of each in a step.

    Rows of the cache are aligned on the right (see `cache_rows`). Both passes of the model have keys and values in it.

    `is_damaged` tells that an error has left the cache in an unknown state, so that all its texts are lost.

    Args:
        model: The generator of the model.
    """

    def __init__(self, model: TextGenerator) -> None:
        self.sequences: list[Sequence] = []
        self.is_damaged = False
        self._model = model
        self._cache: Any = None

    def can_join(self, sequence: Sequence, group: Items[Sequence] = ()) -> bool:
        """Return whether a text can be generated together with those of the batch and of a group that joins it."""
        others = [*self.sequences, *group]
        if not others:
            return True
        cache = sequence.plan.cache
        if sequence.needs_own_batch or any(other.needs_own_batch for other in others) or not supports_rows(cache):
            return False
        if not group:
            return True
        longest = max(len(other.prompt) for other in (*group, sequence))
        return supports_padding(cache) and longest * (len(group) + 1) <= PROMPT_TOKENS

    def join(self, group: Items[Sequence]) -> None:
        """Read the prompts of a group, choose the first token of each, and add those that go on to the batch."""
        self.remove_ended()
        lengths = [len(sequence.prompt) for sequence in group]
        caches = [sequence.take_cache() for sequence in group]
        longest, cache = max(lengths), caches[0]
        ids = [[*[0] * (longest - length), *each.prompt] for length, each in zip(lengths, group, strict=True)]
        positions = [[*[0] * (longest - length), *range(length)] for length in lengths]
        scores = self._compute(ids, positions, lengths, group, cache)
        _choose_tokens(scores, group)
        going_on = [row for row, sequence in enumerate(group) if not sequence.finished]
        if not going_on:
            return
        if len(going_on) < len(group):
            longest = max(lengths[row] for row in going_on)
            select_rows(cache, torch.tensor(going_on, device=scores.device), longest)
        if self._cache is None:
            self._cache = cache
        else:
            with self._note_damage():
                append_rows(self._cache, cache, max(longest, self._count_columns()))
        self.sequences += [group[row] for row in going_on]

    def step(self) -> None:
        """Choose the next token of every text, and remove those that it ends."""
        self.remove_ended()
        if self.sequences:
            with self._note_damage():
                self._step()

    def _step(self) -> None:
        lengths = [sequence.cached_tokens for sequence in self.sequences]
        ids = [[sequence.tokens[-1]] for sequence in self.sequences]
        scores = self._compute(
            ids, [[each] for each in lengths], [each + 1 for each in lengths], self.sequences, self._cache
        )
        _choose_tokens(scores, self.sequences)
        self.remove_ended()

    def remove_ended(self) -> None:
        """Remove the texts that are finished or cancelled, and the columns that only they needed."""
        rows = [row for row, each in enumerate(self.sequences) if not (each.finished or each.cancelled)]
        if len(rows) == len(self.sequences):
            return
        self.sequences = [self.sequences[row] for row in rows]
        if rows:
            select_rows(self._cache, torch.tensor(rows, device=self._model.device), self._count_columns())
        else:
            self._cache = None

    def clear(self) -> list[Sequence]:
        """Remove all texts from the batch, and return them."""
        removed, self.sequences, self._cache, self.is_damaged = self.sequences, [], None, False
        return removed

    @contextmanager
    def _note_damage(self) -> Iterator[None]:
        self.is_damaged = True
        yield
        self.is_damaged = False

    def _count_columns(self) -> int:
        return max(sequence.cached_tokens for sequence in self.sequences)

    def _compute(
        self,
        ids: list[list[int]],
        positions: list[list[int]],
        lengths: list[int],
        sequences: Items[Sequence],
        cache: Any,
    ) -> Tensor:
        """Return the scores `[B, vocabulary]` after new tokens; `lengths` count the tokens of each row with them."""
        device, longest = self._model.device, max(lengths)
        mask = None
        if min(lengths) < longest:  # without padding, attention needs no mask and is faster
            columns = torch.arange(longest, device=device)
            mask = (columns >= longest - torch.tensor(lengths, device=device)[:, None]).long()
        return self._model.compute_next_scores(
            torch.tensor(ids, device=device),
            mask,
            torch.tensor(positions, device=device),
            cache,
            sequences[0].plan.cache_argument,
        )


def _choose_tokens(scores: Tensor, sequences: Items[Sequence]) -> None:
    """Choose the next token of each text from its scores; a text whose scores are no numbers fails alone."""
    best: list[int] = scores.argmax(dim=-1).tolist()
    for row, sequence in enumerate(sequences):
        try:
            token = best[row] if sequence.plan.takes_best else sequence.choose_token(scores[row])
        except RuntimeError:  # of sampling, from probabilities that are not finite
            sequence.fail("The scores of the next token are not finite.")
            continue
        sequence.accept(token)
