"""The family of timm's MViTv2, which the prefix `timm:` finds. Torch-free."""

from __future__ import annotations

from toast_timm.cards import make_timm_family

FAMILY = make_timm_family("mvitv2", "toast_mvitv2.backbone:wrap_mvitv2")
