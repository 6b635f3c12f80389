"""Decoding token by token outside `generate` of transformers, with everything that `generate` prepares for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import Cache


@dataclass(frozen=True)
class DecodingPlan:
    """How a prompt is continued, as `generate` of transformers prepares it.

    Attributes:
        prompt: token ids of the prompt.
        max_new_tokens: largest number of new tokens; the prompt and they fit into the window of the model.
        end_tokens: tokens that end the text; they are not part of it.
        stop_texts: texts that end it, which are not part of it either.
        processors: what changes the scores before a token is chosen: penalties, temperature, top-k and top-p.
        sampled: whether tokens are sampled; otherwise the most likely one is chosen.
        cache: an empty cache of keys and values for the prompt, of all passes of the model; None once it is in use.
        cache_argument: name of the cache in the model's `forward`.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    end_tokens: frozenset[int]
    stop_texts: tuple[str, ...]
    processors: Any
    sampled: bool
    cache: Cache | None
    cache_argument: str

    def choose_token(self, scores: Tensor, generated: Sequence[int], random: torch.Generator) -> int:
        """Return the next token, given its scores `[vocabulary]` in float32 and the tokens generated so far."""
        scores = scores.unsqueeze(0)
        if self.processors:
            scores = self.processors(torch.tensor([[*self.prompt, *generated]], device=scores.device), scores)
        if not self.sampled:
            return int(scores.argmax())
        return int(torch.multinomial(scores.softmax(dim=-1), 1, generator=random))

    @property
    def takes_best(self) -> bool:
        """Return whether the next token is the one with the largest score, whatever came before."""
        return not self.sampled and not self.processors


def build_decoding_plan(
    generator: Any,
    prompt: Sequence[int],
    settings: dict[str, Any],
    end_tokens: frozenset[int],
    stop_texts: Sequence[str],
) -> DecodingPlan:
    """Let `generate` of transformers prepare the continuation of a prompt, up to the loop over tokens.

    `settings` are generation settings of transformers with `max_new_tokens` and without `stop_strings`.

    Raises:
        ValueError: A setting is invalid.
    """
    from transformers import Cache  # takes as long as torch itself

    prepared: dict[str, Any] = {}

    def record(model: Any, input_ids: Tensor, **arguments: Any) -> Tensor:
        prepared.update(arguments)
        return input_ids

    ids = torch.tensor([list(prompt)], device=next(generator.parameters()).device)
    fixed = {"stop_strings": None, "use_cache": True}
    generator.generate(ids, attention_mask=torch.ones_like(ids), custom_generate=record, **{**settings, **fixed})
    name, cache = next((name, value) for name, value in prepared.items() if isinstance(value, Cache))
    return DecodingPlan(
        prompt=tuple(prompt),
        max_new_tokens=settings["max_new_tokens"],
        end_tokens=end_tokens,
        stop_texts=tuple(stop_texts),
        processors=prepared["logits_processor"],
        sampled=bool(prepared["generation_config"].do_sample),
        cache=cache,
        cache_argument=name,
    )
