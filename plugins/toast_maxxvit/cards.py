"""The family of timm's MaxViT, CoAtNet and MaxxViT, which the prefix `timm:` finds. Torch-free."""

from __future__ import annotations

from toast_timm.cards import make_timm_family

FAMILY = make_timm_family("maxxvit", "toast_maxxvit.backbone:wrap_maxxvit")
