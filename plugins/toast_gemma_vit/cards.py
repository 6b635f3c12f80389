"""The family of the Gemma 4 vision towers. Torch-free."""

from __future__ import annotations

from toast_timm.cards import make_timm_family

FAMILY = make_timm_family("gemma_vit", "toast_gemma_vit.backbone:wrap_gemma_vit")
