"""The family of the LeViTs. Torch-free."""

from __future__ import annotations

from toast_timm.cards import make_timm_family

FAMILY = make_timm_family("levit", "toast_levit.backbone:wrap_levit")
