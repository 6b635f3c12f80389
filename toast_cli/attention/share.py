"""How much of the attention falls on the object: pass one against pass two, over a data set with masks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from toast_cli.attention.maps import Look


def share_inside(attention: Tensor, mask: Tensor) -> Tensor:
    """Share of each map `[B, rows, columns]` that lies inside its object's mask `[B, H, W]`: `[B]`, 0 to 1.

    The mask is averaged over each patch, so a patch half on the object counts half.
    """
    cover = F.interpolate(mask[:, None].float(), size=attention.shape[-2:], mode="area")[:, 0]
    return (attention * cover).sum(dim=(1, 2))


class AttentionShare:
    """Collects shares over batches; images whose object the crop lost are counted but not averaged."""

    def __init__(self) -> None:
        self._shares: dict[str, list[Tensor]] = {}
        self._without_object = 0

    def add(self, look: Look, mask: Tensor) -> None:
        """Add one batch with its masks `[B, H, W]`."""
        seen = mask.flatten(1).any(1)
        self._without_object += int((~seen).sum())
        maps = {"pass_one": look.first, "similarity": look.similarity, "pass_two": look.last}
        for name, shown in maps.items():
            if shown is None:
                continue
            if name == "similarity":
                shown = shown / shown.sum(dim=(1, 2), keepdim=True).clamp_min(1e-12)
            self._shares.setdefault(name, []).append(share_inside(shown, mask)[seen].cpu())
        self._shares.setdefault("object_area", []).append(mask[seen].float().mean(dim=(1, 2)).cpu())

    def merge(self, other: AttentionShare) -> None:
        """Take in what another process collected."""
        for name, shares in other._shares.items():
            self._shares.setdefault(name, []).extend(shares)
        self._without_object += other._without_object

    def result(self) -> dict[str, float | int]:
        """Mean share per map over all images; `object_area` is what attention spread evenly would have."""
        means: dict[str, float | int] = {name: float(torch.cat(shares).mean()) for name, shares in self._shares.items()}
        return {
            **means,
            "images": len(torch.cat(self._shares["object_area"])),
            "images_without_object": self._without_object,
        }
