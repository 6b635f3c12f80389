"""The family of the XCiTs. Torch-free."""

from __future__ import annotations

from toast_timm.cards import make_timm_family

FAMILY = make_timm_family("xcit", "toast_xcit.backbone:wrap_xcit")
