"""The family of the Qwen3 vision towers. Torch-free."""

from __future__ import annotations

from toast_timm.cards import make_timm_family

FAMILY = make_timm_family("qwen_vit", "toast_qwen_vit.backbone:wrap_qwen_vit")
