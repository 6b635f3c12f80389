"""The ConvNeXts by name: what each is and where its weights come from. Torch-free."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from toast_cli.backbones.base import Card, Family
from toast_convnext.options import ConvNeXtOptions

if TYPE_CHECKING:
    from toast_cli.backbones.base import Backbone


def _build_timm(model: str, options: ConvNeXtOptions) -> Backbone:
    from toast_convnext.loading import build_timm

    return build_timm(model, options)


def _card(name: str, model: str, parameters: int | None = None) -> Card:
    return Card(name, "convnext", parameters, f"timm, {model}", partial(_build_timm, model), ConvNeXtOptions)


def _any_timm_model(model: str) -> Card:
    return _card(f"convnext:{model}", model)


def _wrap(module: Any) -> Backbone | None:
    from toast_convnext.loading import wrap

    return wrap(module)


FAMILY = Family("convnext", "timm", _any_timm_model, _wrap)

CONVNEXT_T = _card("convnext_t", "convnext_tiny.fb_in1k", 27_820_128)
CONVNEXT_B = _card("convnext_b", "convnext_base.fb_in1k", 87_566_464)
CONVNEXT_B_IN21K = _card("convnext_b_in21k", "convnext_base.fb_in22k", 87_566_464)
CONVNEXTV2_T = _card("convnextv2_t", "convnextv2_tiny.fcmae_ft_in1k", 27_866_496)
