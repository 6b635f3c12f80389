"""The family of timm's BEiTs. Torch-free."""

from __future__ import annotations

from toast_timm.cards import make_timm_family

FAMILY = make_timm_family("beit", "toast_beit.backbone:wrap_beit")
