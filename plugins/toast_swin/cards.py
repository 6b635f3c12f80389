"""The family of timm's Swin Transformers and its short names. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toast_cli.plugin import Family
from toast_timm.cards import make_timm_card

if TYPE_CHECKING:
    from toast_cli.plugin import Backbone


def _wrap(module: Any) -> Backbone | None:
    from toast_swin.loading import wrap_swin

    return wrap_swin(module)


FAMILY = Family("swin", "timm", None, _wrap)

SWINV2_T = make_timm_card("swinv2_t", "swinv2_tiny_window8_256.ms_in1k", "swin", 27_578_154)
