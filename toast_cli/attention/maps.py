"""Maps over what a model looks at: a level's attention in either pass, and the similarity that selection used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from toast_cli.attention.validation import AttentionChecks, check_attention_maps
from toast_cli.backbones.base import Backbone, Trace
from toast_cli.model.model import Model
from toast_cli.steering.steering import PassOutputs
from toast_cli.utils.errors import UsageError

HeadSelection: TypeAlias = "int | Literal['mean', 'max', 'rollout']"
"""One head by its number, the mean or the maximum over heads, or what all levels so far hand on (`rollout`)."""


@dataclass
class AttentionOutput:
    """What the model made of one batch, with one level's map in each pass; `last` is None with a single pass.

    `kind` says what the maps are of: attention, or the energy of features where there is no attention. `checks` say
    what the maps were held against; None where they were not.
    """

    logits: Tensor
    passes: PassOutputs
    first: Tensor
    last: Tensor | None
    similarity: Tensor | None
    kind: str = "attention"
    checks: AttentionChecks | None = None

    def maps(self) -> dict[str, Tensor]:
        """Return the maps that there are, by name, each `[B, rows, columns]`."""
        named = {"pass_one": self.first, "similarity": self.similarity, "pass_two": self.last}
        return {name: map for name, map in named.items() if map is not None}


@dataclass
class AttentionRecorder:
    """Runs a model so that the attention of one level (default: the last) is kept in both passes.

    Maps are checked, unless `checked` is off (where a graph is traced): each against what fused attention puts out, and
    that of the first steered level against the other pass's, which has the same q and k.

    Raises:
        UsageError: the backbone has no attention, no such level, or no such head.
    """

    model: Model
    level: int = -1
    head: HeadSelection = "mean"
    checked: bool = True
    levels: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        backbone = self.model.backbone
        if not backbone.has_attention:
            raise UsageError("This backbone has no attention to show.", code="attention.no-maps")
        self.level = resolve_level(backbone, self.level)
        self.levels = frozenset(range(self.level + 1)) if self.head == "rollout" else frozenset({self.level})

    @torch.no_grad()
    def record(self, inputs: object) -> AttentionOutput:
        """Run the model on images `[B, 3, H, W]` or a batch of texts, and return logits, passes and maps.

        Raises:
            ToastError: a map is not what the model attends with.
        """
        model, backbone = self.model, self.model.backbone
        steering = model.adapted.steering
        recorded = self.levels | {steering.levels.start} if steering is not None and self.checked else self.levels
        first, last = (Trace(attention_of=recorded) for _ in range(2))
        logits, passes = model.forward_passes(inputs, first, last)
        checks = None
        if self.checked:
            checks = check_attention_maps(first, last, None if steering is None else steering.levels.start)
        grid = backbone.grid(inputs)
        similarity = passes.similarity
        return AttentionOutput(
            logits=logits,
            passes=passes,
            first=self._map(first, grid),
            last=self._map(last, grid) if last.attention else None,
            similarity=None if similarity is None else similarity[:, backbone.prefix_tokens :].unflatten(1, grid),
            checks=checks,
        )

    def _map(self, trace: Trace, grid: tuple[int, int]) -> Tensor:
        attention = [trace.attention[level].float() for level in sorted(self.levels)]
        rolled_out = self.head == "rollout"
        weights = compute_attention_rollout(attention) if rolled_out else reduce_heads(attention[-1], self.head)
        return compute_attention_map(weights[:, None], self.model.backbone, grid)


def resolve_level(backbone: Backbone, level: int) -> int:
    """Return a level counted from 0, given one that may be counted from the end.

    Raises:
        UsageError: there is none.
    """
    depth = len(backbone.levels)
    if not -depth <= level < depth:
        raise UsageError(
            f"There is no layer {level}.",
            what_to_do=f"Layers count from 0 to {depth - 1}, or from the end as -1, -2, …",
            code="attention.unknown-layer",
        )
    return level % depth


def reduce_heads(attention: Tensor, head: HeadSelection) -> Tensor:
    """Return one head of attention `[B, heads, N, N]`, or the mean or maximum over all: `[B, N, N]`.

    Raises:
        UsageError: there is no such head.
    """
    if head == "mean":
        return attention.mean(1)
    if head == "max":
        return attention.amax(1)
    heads = attention.shape[1]
    if not isinstance(head, int) or not 0 <= head < heads:
        raise UsageError(
            f"There is no head {head}.",
            what_to_do=f"Heads count from 0 to {heads - 1}; or say mean, max or rollout.",
            code="attention.unknown-head",
        )
    return attention[:, head]


def compute_attention_rollout(attention: list[Tensor]) -> Tensor:
    """Return how much of each input token every token holds after these levels (first level first), `[B, N, N]`.

    Attention rollout (Abnar and Zuidema, ACL 2020): a level hands on the mean of its heads and, by its residual
    connection, each token itself, half and half; levels multiply. What an MLP does is not in it.
    """
    N = attention[0].shape[-1]
    identity = torch.eye(N, device=attention[0].device)
    rolled = identity
    for heads in attention:
        handed = (heads.mean(1) + identity) / 2
        rolled = (handed / handed.sum(-1, keepdim=True)) @ rolled
    return rolled


def compute_attention_map(attention: Tensor, backbone: Backbone, grid: tuple[int, int]) -> Tensor:
    """Return attention `[B, heads, N, N]` as a map `[B, rows, columns]` that sums to one over the image.

    The class token's row (or, without one, every token's), averaged over heads as in the paper's figure 1; what falls
    on prefix tokens has no place in the image and is left out before normalising.
    """
    rows = attention.float()[:, :, backbone.query_tokens()].mean(dim=(1, 2))
    patches = rows[:, backbone.prefix_tokens :]
    return (patches / patches.sum(-1, keepdim=True)).unflatten(1, grid)
