"""Attention of an answer over the conversation: a number per token in both passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from toast_cli.attention.map_validation import AttentionChecks
from toast_cli.attention.maps import AttentionRecorder
from toast_cli.utils.errors import UsageError


@torch.no_grad()
def compute_answer_attention(
    recorder: AttentionRecorder, ids: Sequence[int], begin: int
) -> tuple[dict[str, Tensor], AttentionChecks | None]:
    """Return the maps of an answer over a text, each `[N]`, and the result of their validation.

    `pass_one` and `pass_two` are the attention of the tokens that predict a token of the answer, averaged over them:
    that is the last token before the answer, and all tokens of the answer but its last one. Each sums to 1; tokens of
    the answer also attend to the answer so far. `difference` is pass two less pass one, and `similarity` the share of
    each token that selection keeps. With a single pass, there is only `pass_one`.

    Args:
        recorder: The recorder of a language model, which selects the level and the head.
        ids: The tokens of the conversation and of the answer, without padding.
        begin: Index of the first token of the answer.

    Raises:
        UsageError: The answer has no tokens, or nothing is before it.
        ToastError: A map differs from the attention that the model uses.
    """
    if not 0 < begin < len(ids):
        raise UsageError(
            "There is no answer to explain.",
            f"The text has {len(ids):,} tokens, and the answer would begin at token {begin:,}.",
            "Ask for an answer that has at least one token.",
            code="attention.no-answer",
        )
    batch = torch.tensor([list(ids)], device=next(recorder.model.parameters()).device)
    weights = recorder.record_weights({"input_ids": batch, "attention_mask": torch.ones_like(batch)})
    passes = {"pass_one": weights.first, "pass_two": weights.last}
    asking = slice(begin - 1, len(ids) - 1)
    maps = {name: each[0, asking].float().mean(0).cpu() for name, each in passes.items() if each is not None}
    if "pass_two" in maps:
        maps["difference"] = maps["pass_two"] - maps["pass_one"]
    if weights.similarity is not None:
        maps["similarity"] = weights.similarity[0].float().cpu()
    return maps, weights.checks
