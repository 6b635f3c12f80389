"""The family of timm's Swin Transformers and its short names. Torch-free."""

from __future__ import annotations

from toast_timm.cards import make_timm_card, make_timm_family

FAMILY = make_timm_family("swin", "toast_swin.loading:wrap_swin")

SWINV2_T = make_timm_card("swinv2_t", "swinv2_tiny_window8_256.ms_in1k", "swin", 27_578_154, 256, "mit")
