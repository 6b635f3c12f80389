"""Emphasis of words of a prompt: xi is set from their tokens while a language model answers (an experiment)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from toast_cli.model.model import Model
from toast_cli.steering.emphasis import compute_token_direction, replace_xi
from toast_cli.steering.steering import BaseSteering, run_first_pass
from toast_cli.utils.errors import UsageError


@contextmanager
def emphasize_tokens(
    model: Model, prompts: Sequence[Sequence[int]], marked: Sequence[Sequence[bool]], beams: int = 1
) -> Iterator[None]:
    """Select by the marked tokens of each prompt within the context, for the prompt and all tokens after it.

    xi of a prompt is the normalized mean direction of its marked tokens in the first pass. It does not change while
    tokens are generated, so cached keys and values stay valid.

    Args:
        model: A language model with a feedback path.
        prompts: The token ids of each prompt of a batch, without padding.
        marked: Which tokens of each prompt are marked; at least one.
        beams: Number of rows of each prompt in the batch that is generated, which are next to each other.

    Raises:
        UsageError: The model has no feedback path, or no token selection.
    """
    steering = require_feedback_path(model)
    xi = torch.stack([compute_prompt_xi(model, ids, tokens) for ids, tokens in zip(prompts, marked, strict=True)])
    with replace_xi(steering, xi[0] if len(xi) == 1 else xi.repeat_interleave(beams, dim=0)):
        yield


def require_feedback_path(model: Model) -> BaseSteering:
    """Return the steering of a model.

    Raises:
        UsageError: The model has no feedback path.
    """
    steering = model.adapted.steering
    if steering is None:
        raise UsageError(
            "Words can only be emphasized in a model with a feedback path.",
            "Emphasis sets ξ, and this model was not tuned by TOAST or TOAST-Lite.",
            "Choose another --run, or leave the emphasis out.",
            code="method.no-feedback-path",
        )
    return steering


@torch.no_grad()
def compute_prompt_xi(model: Model, ids: Sequence[int], marked: Sequence[bool]) -> Tensor:
    """Return the normalized mean direction `[d]` of the marked tokens of one prompt in the first pass.

    A prompt is computed by itself, so padding has no effect.
    """
    steering, backbone = require_feedback_path(model), model.backbone
    tokens = torch.tensor([list(ids)], device=next(model.parameters()).device)
    inputs: dict[str, Any] = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    _, first, _ = run_first_pass(backbone, steering.levels, inputs)
    return compute_token_direction(first, torch.tensor([list(marked)]), backbone.channel_dim)[0]
