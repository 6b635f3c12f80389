"""Feature energy: the maps of a backbone without attention."""

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
    """A recorder of the feature energy of one level's output (default: the last) in both passes.

    Feature energy is not attention: it shows where features are strong, not which positions were read.

    Raises:
        UsageError: the backbone takes no images, or the level does not exist.
    """

    model: Model
    level: int = -1

    def __post_init__(self) -> None:
        if self.model.backbone.preprocessing is None:
            raise UsageError("The backbone has no feature maps.", code="attention.no-maps")
        self.level = resolve_level(self.model.backbone, self.level)

    @torch.no_grad()
    def record(self, images: Tensor) -> AttentionOutput:
        """Run the model on images `[B, 3, H, W]`; return logits, passes, maps, and the similarity of the last level."""
        first, last = Trace(levels=True), Trace(levels=True)
        logits, passes = self.model.forward_passes(images, first, last)
        similarity = passes.similarity
        if similarity is not None and similarity.ndim == 2:
            backbone = self.model.backbone
            similarity = similarity[:, backbone.prefix_tokens :].unflatten(1, backbone.grid(images))
        return AttentionOutput(
            logits=logits,
            passes=passes,
            first=self.compute_energy_map(first, images),
            last=self.compute_energy_map(last, images) if last.outputs else None,
            similarity=similarity,
            kind=FEATURE_ENERGY,
        )

    def compute_energy_map(self, trace: Trace, images: Tensor) -> Tensor:
        """Return the map `[B, rows, columns]` of a trace that recorded all levels."""
        backbone, features = self.model.backbone, trace.outputs[self.level]
        if backbone.channel_dim != 1:
            patches = features[:, backbone.prefix_tokens :]
            features = patches.movedim(-1, 1).unflatten(-1, backbone.grid(images))
        return compute_feature_energy(features)


def compute_feature_energy(features: Tensor) -> Tensor:
    """Return the squared norm of every cell of features `[B, C, H, W]` as a map `[B, H, W]` that sums to one."""
    strength = features.float().square().sum(1)
    return strength / strength.sum(dim=(1, 2), keepdim=True).clamp_min(1e-12)


def build_recorder(model: Model, level: int = -1, head: HeadSelection = "mean") -> AttentionRecorder | EnergyRecorder:
    """Return a recorder of the model's attention or, without attention, of its feature energy.

    Raises:
        UsageError: the level or head does not exist.
    """
    if model.backbone.has_attention:
        return AttentionRecorder(model, level, head)
    if head != "mean":
        raise UsageError(
            "The backbone has no attention and therefore no heads.",
            what_to_do="Leave --head out.",
            code="attention.unknown-head",
        )
    return EnergyRecorder(model, level)
