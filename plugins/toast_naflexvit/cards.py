"""The family of timm's NaFlexViTs. Torch-free."""

from __future__ import annotations

from toast_timm.cards import make_timm_family

FAMILY = make_timm_family("naflexvit", "toast_naflexvit.backbone:wrap_naflexvit")
