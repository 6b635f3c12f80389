"""The family of timm's Hiera and SAM 2 image encoders, which the prefix `timm:` finds. Torch-free."""

from __future__ import annotations

from toast_timm.cards import make_timm_family

FAMILY = make_timm_family("hiera", "toast_hiera.loading:wrap_hiera")
