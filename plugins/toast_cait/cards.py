"""The family of the CaiTs. Torch-free."""

from __future__ import annotations

from toast_timm.cards import make_timm_family

FAMILY = make_timm_family("cait", "toast_cait.backbone:wrap_cait")
