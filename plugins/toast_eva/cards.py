"""The cards of the EVA family. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toast_cli.plugin import Family
from toast_timm.cards import make_timm_card

if TYPE_CHECKING:
    from toast_cli.plugin import Backbone


def _wrap(module: Any) -> Backbone | None:
    from toast_eva.loading import wrap_eva

    return wrap_eva(module)


FAMILY = Family("eva", "timm", None, _wrap)

DINOV3_S16 = make_timm_card("dinov3_s16", "vit_small_patch16_dinov3.lvd1689m", "eva", 21_586_944)
DINOV3_B16 = make_timm_card("dinov3_b16", "vit_base_patch16_dinov3.lvd1689m", "eva", 85_641_216)
EVA02_B14 = make_timm_card("eva02_b14", "eva02_base_patch14_224.mim_in22k", "eva", 85_758_720)
