"""The family of timm's ViTs with relative positions. Torch-free."""

from __future__ import annotations

from toast_timm.cards import make_timm_family

FAMILY = make_timm_family("vit_relpos", "toast_vit_relpos.backbone:wrap_vit_relpos")
