"""Attention maps: the attention of one level in both passes, and the similarity that selection uses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from toast_cli.attention.map_validation import AttentionChecks, check_attention_maps
from toast_cli.backbones.base import Backbone, Trace
from toast_cli.model.model import Model
from toast_cli.steering.steering import PassOutputs
from toast_cli.utils.errors import UsageError

HeadSelection: TypeAlias = "int | Literal['mean', 'max', 'rollout']"
"""The number of a head, the mean or maximum over heads, or attention rollout over all levels up to this one."""


@dataclass
class AttentionOutput:
    """The outputs of a model for a batch, with the maps of one level in each pass; `last` is None with a single pass.

    `kind` is attention or, for a backbone without attention, feature energy. `checks` describes the validation of the
    maps; None if they were not validated.
    """

    logits: Tensor
    passes: PassOutputs
    first: Tensor
    last: Tensor | None
    similarity: Tensor | None
    kind: str = "attention"
    checks: AttentionChecks | None = None

    def get_maps(self) -> dict[str, Tensor]:
        """Return the available maps by name, each `[B, rows, columns]`."""
        named = {"pass_one": self.first, "similarity": self.similarity, "pass_two": self.last}
        return {name: map for name, map in named.items() if map is not None}


@dataclass
class AttentionWeights:
    """The weights of one level in each pass, `[B, N, N]`: a row per attending token. `last` is None with one pass.

    `similarity` `[B, N]` is that of selection; None without a second pass.
    """

    first: Tensor
    last: Tensor | None
    checks: AttentionChecks | None = None
    similarity: Tensor | None = None


@dataclass
class AttentionRecorder:
    """A recorder of the attention of one level (default: the last) in both passes.

    Unless `checked` is False (as for tracing a graph), maps are validated: each map against the output of fused
    attention, and the map of the first steered level against that of the other pass, which has the same q and k.

    Raises:
        UsageError: the backbone has no attention, or the level or head does not exist.
    """

    model: Model
    level: int = -1
    head: HeadSelection = "mean"
    checked: bool = True
    levels: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        backbone = self.model.backbone
        if not backbone.has_attention:
            raise UsageError("The backbone has no attention.", code="attention.no-maps")
        self.level = resolve_level(backbone, self.level)
        self.levels = frozenset(range(self.level + 1)) if self.head == "rollout" else frozenset({self.level})

    @torch.no_grad()
    def record(self, inputs: object) -> AttentionOutput:
        """Run the model on images `[B, 3, H, W]` or a batch of texts; return logits, passes and maps.

        Raises:
            ToastError: a map differs from the attention that the model uses.
        """
        logits, passes, first, last, checks = self._run(inputs)
        backbone = self.model.backbone
        grid = backbone.grid(inputs)
        similarity = passes.similarity
        return AttentionOutput(
            logits=logits,
            passes=passes,
            first=self.compute_level_map(first, grid),
            last=self.compute_level_map(last, grid) if last.attention else None,
            similarity=None if similarity is None else similarity[:, backbone.prefix_tokens :].unflatten(1, grid),
            checks=checks,
        )

    @torch.no_grad()
    def record_weights(self, inputs: object) -> AttentionWeights:
        """Run the model on a batch and return the weights of all tokens instead of maps.

        Raises:
            ToastError: a map differs from the attention that the model uses.
        """
        _, passes, first, last, checks = self._run(inputs)
        return AttentionWeights(
            self._reduce_levels(first),
            self._reduce_levels(last) if last.attention else None,
            checks,
            passes.similarity,
        )

    def _run(self, inputs: object) -> tuple[Tensor, PassOutputs, Trace, Trace, AttentionChecks | None]:
        """Return the logits, the passes, their traces and the result of the validation."""
        model, steering = self.model, self.model.adapted.steering
        recorded = self.levels | {steering.levels.start} if steering is not None and self.checked else self.levels
        first, last = (Trace(attention_of=recorded) for _ in range(2))
        logits, passes = model.forward_passes(inputs, first, last)
        checks = None
        if self.checked:
            checks = check_attention_maps(first, last, None if steering is None else steering.levels.start)
        return logits, passes, first, last, checks

    def compute_level_map(self, trace: Trace, grid: tuple[int, int]) -> Tensor:
        """Return the map `[B, rows, columns]` of a trace that recorded `levels`."""
        return compute_attention_map(self._reduce_levels(trace)[:, None], self.model.backbone, grid)

    def _reduce_levels(self, trace: Trace) -> Tensor:
        """Return one matrix per sample, `[B, N, N]`, of the selected head and level, or rolled out."""
        attention = [trace.attention[level].float() for level in sorted(self.levels)]
        rolled_out = self.head == "rollout"
        return compute_attention_rollout(attention) if rolled_out else reduce_heads(attention[-1], self.head)


def resolve_level(backbone: Backbone, level: int) -> int:
    """Return the index of a level from 0; a negative `level` counts from the end.

    Raises:
        UsageError: the level does not exist.
    """
    depth = len(backbone.levels)
    if not -depth <= level < depth:
        raise UsageError(
            f"There is no layer {level}.",
            what_to_do=f"Use 0 to {depth - 1}, or -1, -2, … from the end.",
            code="attention.unknown-layer",
        )
    return level % depth


def reduce_heads(attention: Tensor, head: HeadSelection) -> Tensor:
    """Reduce attention `[B, heads, N, N]` to `[B, N, N]`: one head, or the mean or maximum over heads.

    Raises:
        UsageError: the head does not exist.
    """
    if head == "mean":
        return attention.mean(1)
    if head == "max":
        return attention.amax(1)
    heads = attention.shape[1]
    if not isinstance(head, int) or not 0 <= head < heads:
        raise UsageError(
            f"There is no head {head}.",
            what_to_do=f"Use 0 to {heads - 1}, mean, max or rollout.",
            code="attention.unknown-head",
        )
    return attention[:, head]


def compute_attention_rollout(attention: list[Tensor]) -> Tensor:
    """Return the attention rollout over levels, first level first: the share of each input in every token, `[B, N, N]`.

    Abnar and Zuidema (ACL 2020): the matrix of a level is half the mean of its heads and half the identity, for the
    residual connection, and the matrices of the levels are multiplied. MLPs are ignored.
    """
    N = attention[0].shape[-1]
    identity = torch.eye(N, device=attention[0].device)
    rolled = identity
    for heads in attention:
        level = (heads.mean(1) + identity) / 2
        rolled = (level / level.sum(-1, keepdim=True)) @ rolled
    return rolled


def compute_attention_map(attention: Tensor, backbone: Backbone, grid: tuple[int, int]) -> Tensor:
    """Return attention `[B, heads, N, N]` as a map `[B, rows, columns]` that sums to one over the image.

    The map is the class token's row (or, without a class token, the mean of all rows), averaged over heads as in the
    paper's figure 1. Attention to prefix tokens is removed before normalization.
    """
    return compute_map_of_rows(attention[:, :, backbone.query_tokens()], backbone.prefix_tokens, grid)


def compute_map_of_rows(rows: Tensor, prefix_tokens: int, grid: tuple[int, int]) -> Tensor:
    """Return rows `[B, heads, queries, N]` of attention as a map `[B, rows, columns]`; see `compute_attention_map`."""
    patches = rows.float().mean(dim=(1, 2))[:, prefix_tokens:]
    return (patches / patches.sum(-1, keepdim=True)).unflatten(1, grid)
