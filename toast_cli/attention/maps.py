"""Maps over the image: a layer's attention in either pass, and the similarity that selection used."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from toast_cli.backbone import Backbone, Trace
from toast_cli.errors import UsageError
from toast_cli.model import Model
from toast_cli.steering.steering import Passes


@dataclass
class Look:
    """One batch seen by the model, with one level's attention in each pass; `last` is None with a single pass."""

    logits: Tensor
    passes: Passes
    first: Tensor
    last: Tensor | None
    similarity: Tensor | None


@dataclass
class Recorder:
    """Runs a model so that the attention of one level (default: the last) is kept in both passes.

    Raises:
        UsageError: the backbone has no attention, or no such level.
    """

    model: Model
    level: int = -1

    def __post_init__(self) -> None:
        backbone = self.model.backbone
        if not backbone.has_attention:
            raise UsageError("This backbone has no attention to show.")
        depth = len(backbone.levels)
        if not -depth <= self.level < depth:
            raise UsageError(
                f"There is no layer {self.level}.",
                what_to_do=f"Layers count from 0 to {depth - 1}, or from the end as -1, -2, …",
            )
        self.level %= depth

    @torch.no_grad()
    def look(self, images: Tensor) -> Look:
        """Logits, passes and maps `[B, rows, columns]` for images `[B, 3, H, W]`."""
        first, last = (Trace(attention_of=frozenset({self.level})) for _ in range(2))
        logits, passes = self.model.look(images, first, last)
        backbone = self.model.backbone
        grid = backbone.grid(images)
        similarity = passes.similarity
        return Look(
            logits=logits,
            passes=passes,
            first=attention_map(first.attention[self.level], backbone, grid),
            last=attention_map(last.attention[self.level], backbone, grid) if last.attention else None,
            similarity=None if similarity is None else similarity[:, backbone.prefix_tokens :].unflatten(1, grid),
        )


def attention_map(attention: Tensor, backbone: Backbone, grid: tuple[int, int]) -> Tensor:
    """Attention `[B, heads, N, N]` as a map `[B, rows, columns]` that sums to one over the image.

    The class token's row (or, without one, every token's), averaged over heads as in the paper's figure 1; what falls
    on prefix tokens has no place in the image and is left out before normalising.
    """
    rows = attention.float()[:, :, backbone.query_tokens()].mean(dim=(1, 2))
    patches = rows[:, backbone.prefix_tokens :]
    return (patches / patches.sum(-1, keepdim=True)).unflatten(1, grid)
