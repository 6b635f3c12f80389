"""How much of the attention falls on the object: pass one against pass two, over a data set with masks."""

from __future__ import annotations

import torch
from torch import Tensor

from toast_cli.attention.maps import AttentionOutput
from toast_cli.attention.metrics import share_inside


class AttentionShare:
    """Collects shares over batches.

    Images whose object the crop lost, and maps that are zero everywhere, are counted but not averaged.
    """

    def __init__(self) -> None:
        self._shares: dict[str, list[Tensor]] = {}
        self._without_object = 0

    def add(self, look: AttentionOutput, mask: Tensor) -> None:
        """Add one batch with its masks `[B, H, W]`."""
        seen = mask.flatten(1).any(1)
        self._without_object += int((~seen).sum())
        for name, shown in look.maps().items():
            self._shares.setdefault(name, []).append(share_inside(shown, mask)[seen].cpu())
        self._shares.setdefault("object_area", []).append(mask[seen].float().mean(dim=(1, 2)).cpu())

    def merge(self, other: AttentionShare) -> None:
        """Take in what another process collected."""
        for name, shares in other._shares.items():
            self._shares.setdefault(name, []).extend(shares)
        self._without_object += other._without_object

    def result(self) -> dict[str, float | int]:
        """Mean share per map over all images; `object_area` is what attention spread evenly would have.

        `<map>_not_measurable`: of so many images the map is zero everywhere; a map of which all are has no mean.
        """
        found: dict[str, float | int] = {}
        for name, parts in self._shares.items():
            shares = torch.cat(parts)
            if nothing := int(shares.isnan().sum()):
                found[f"{name}_not_measurable"] = nothing
            if nothing < len(shares):
                found[name] = float(shares.nanmean())
        return {
            **found,
            "images": len(torch.cat(self._shares["object_area"])),
            "images_without_object": self._without_object,
        }
