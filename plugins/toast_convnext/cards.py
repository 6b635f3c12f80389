"""The cards of the ConvNeXts and the source of their weights. Torch-free."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from toast_cli.plugin import Card, Family
from toast_timm.options import TimmOptions

if TYPE_CHECKING:
    from toast_cli.plugin import Backbone


def _build(model: str, options: TimmOptions) -> Backbone:
    from toast_convnext.loading import build_convnext

    return build_convnext(model, options)


def _build_card(
    name: str, model: str, parameters: int | None = None, image_size: int | None = None, licence: str | None = None
) -> Card:
    """Build the card of a timm model; `image_size` and `licence` are those of timm's configuration of the weights."""
    return Card(
        name,
        "convnext",
        parameters,
        f"timm, {model}",
        partial(_build, model),
        TimmOptions,
        image_size=image_size,
        licence=licence,
        published=True if licence else None,
    )


def _build_timm_card(model: str) -> Card:
    return _build_card(f"convnext:{model}", model)


def _wrap(module: Any) -> Backbone | None:
    from toast_convnext.loading import wrap_convnext

    return wrap_convnext(module)


FAMILY = Family("convnext", "timm", _build_timm_card, _wrap)

CONVNEXT_T = _build_card("convnext_t", "convnext_tiny.fb_in1k", 27_820_128, 224, "apache-2.0")
CONVNEXT_B = _build_card("convnext_b", "convnext_base.fb_in1k", 87_566_464, 224, "apache-2.0")
CONVNEXT_B_IN21K = _build_card("convnext_b_in21k", "convnext_base.fb_in22k", 87_566_464, 224, "apache-2.0")
CONVNEXTV2_T = _build_card("convnextv2_t", "convnextv2_tiny.fcmae_ft_in1k", 27_866_496, 224, "cc-by-nc-4.0")
DINOV3_CONVNEXT_T = _build_card("dinov3_convnext_t", "convnext_tiny.dinov3_lvd1689m", 27_820_128, 224, "dinov3-license")
