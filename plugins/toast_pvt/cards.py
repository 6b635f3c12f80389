"""The family of timm's PVTv2, which the prefix `timm:` finds. Torch-free."""

from __future__ import annotations

from toast_timm.cards import make_timm_family

FAMILY = make_timm_family("pvt", "toast_pvt.backbone:wrap_pvt")
