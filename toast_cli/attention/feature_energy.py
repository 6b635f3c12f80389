"""Where features are strong: the maps of a backbone that has no attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from toast_cli.attention.maps import AttentionOutput, AttentionRecorder, HeadSelection, resolve_level
from toast_cli.backbones.base import Trace
from toast_cli.model.model import Model
from toast_cli.utils.errors import UsageError

FEATURE_ENERGY = "feature energy"


@dataclass
class EnergyRecorder:
    """Runs a model so that the feature energy of one level's output (default: the last) is kept in both passes.

    This is no attention: it says where a map of features is strong, not what was read from where.

    Raises:
        UsageError: the backbone makes no maps, or has no such level.
    """

    model: Model
    level: int = -1

    def __post_init__(self) -> None:
        if self.model.backbone.channel_dim != 1:
            raise UsageError("This backbone makes no maps of features.", code="attention.no-maps")
        self.level = resolve_level(self.model.backbone, self.level)

    @torch.no_grad()
    def record(self, images: Tensor) -> AttentionOutput:
        """Run the model on images `[B, 3, H, W]`: return logits, passes and maps; similarity is the last level's."""
        first, last = Trace(levels=True), Trace(levels=True)
        logits, passes = self.model.forward_passes(images, first, last)
        return AttentionOutput(
            logits=logits,
            passes=passes,
            first=compute_feature_energy(first.outputs[self.level]),
            last=compute_feature_energy(last.outputs[self.level]) if last.outputs else None,
            similarity=passes.similarity,
            kind=FEATURE_ENERGY,
        )


def compute_feature_energy(features: Tensor) -> Tensor:
    """Return the squared length of every cell of `[B, C, H, W]`, as a map `[B, H, W]` that sums to one."""
    strength = features.float().square().sum(1)
    return strength / strength.sum(dim=(1, 2), keepdim=True).clamp_min(1e-12)


def build_recorder(model: Model, level: int = -1, head: HeadSelection = "mean") -> AttentionRecorder | EnergyRecorder:
    """Return the recorder of a model's attention or, if it has none, of its feature energy.

    Raises:
        UsageError: there is no such level or head.
    """
    if model.backbone.has_attention:
        return AttentionRecorder(model, level, head)
    if head != "mean":
        raise UsageError(
            "This backbone has no attention, so it has no heads.",
            what_to_do="Leave --head out.",
            code="attention.unknown-head",
        )
    return EnergyRecorder(model, level)
