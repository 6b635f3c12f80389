"""The family of timm's convolutional networks, which is asked after all others, and its short names. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toast_cli.plugin import Family
from toast_timm.cards import make_timm_card

if TYPE_CHECKING:
    from toast_cli.plugin import Backbone


def _wrap(module: Any) -> Backbone | None:
    from toast_convnet.loading import wrap_convnet

    return wrap_convnet(module)


FAMILY = Family("convnet", "timm", None, _wrap, generic=True)

RESNET50 = make_timm_card("resnet50", "resnet50.a1_in1k", "convnet", 23_508_032)
