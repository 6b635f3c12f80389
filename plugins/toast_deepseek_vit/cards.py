"""The family of the DeepSeek vision towers. Torch-free."""

from __future__ import annotations

from toast_timm.cards import make_timm_family

FAMILY = make_timm_family("deepseek_vit", "toast_deepseek_vit.backbone:wrap_deepseek_vit")
