"""The cards of the EVA family. Torch-free."""

from __future__ import annotations

from toast_timm.cards import make_timm_card, make_timm_family

FAMILY = make_timm_family("eva", "toast_eva.backbone:wrap_eva")

DINOV3_S16 = make_timm_card("dinov3_s16", "vit_small_patch16_dinov3.lvd1689m", "eva", 21_586_944, 256, "dinov3-license")
DINOV3_B16 = make_timm_card("dinov3_b16", "vit_base_patch16_dinov3.lvd1689m", "eva", 85_641_216, 256, "dinov3-license")
EVA02_B14 = make_timm_card("eva02_b14", "eva02_base_patch14_224.mim_in22k", "eva", 85_758_720, 224, "mit")
