"""The cards of the ViTs and the source of their weights. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toast_cli.plugin import Card, Family
from toast_vit.options import VitOptions

if TYPE_CHECKING:
    from toast_cli.plugin import Backbone


DEPARTURES = {"value_bias": "twice"}
"""Options for the computation of the authors' code, which adds the bias b_V a second time with the signal."""


DEMO_IMAGE_SIZE = 64


def _build(model: str, options: VitOptions) -> Backbone:
    from toast_vit.loading import build_vit

    return build_vit(model, options)


def _build_demo(name: str, depth: int, options: VitOptions) -> Backbone:
    from toast_vit.demo import build_demo

    return build_demo(name, depth, options)


def _build_demo_card(name: str, depth: int, parameters: int, superseded: Mapping[str, str] | None = None) -> Card:
    """Build the card of a ViT whose weights and pre-tuned feedback path ship with toast."""
    return Card(
        name,
        "vit",
        parameters,
        "shipped with toast",
        partial(_build_demo, name, depth),
        VitOptions,
        DEPARTURES,
        artifact=Path(__file__).parent / "weights" / f"{name}_feedback",
        superseded=superseded or {},
        image_size=DEMO_IMAGE_SIZE,
        licence="apache-2.0",
        published=True,
    )


def _build_card(
    name: str, model: str, parameters: int | None = None, image_size: int | None = None, licence: str | None = None
) -> Card:
    """Build the card of a timm model; `image_size` and `licence` are those of timm's configuration of the weights."""
    return Card(
        name,
        "vit",
        parameters,
        f"timm, {model}",
        partial(_build, model),
        VitOptions,
        DEPARTURES,
        image_size=image_size,
        licence=licence,
        published=True if licence else None,
    )


def _build_timm_card(model: str) -> Card:
    return _build_card(f"vit:{model}", model)


def _wrap(module: Any) -> Backbone | None:
    from toast_vit.loading import wrap_vit

    return wrap_vit(module)


FAMILY = Family("vit", "timm", _build_timm_card, _wrap)

VIT_DEMO = _build_demo_card(
    "vit_demo",
    12,
    2_017_920,
    {"0.1": "vit_demo_3"},
)
VIT_DEMO_3 = _build_demo_card("vit_demo_3", 3, 529_536)
"""The weights of `vit_demo` up to version 0.1."""
VIT_T16 = _build_card("vit_t16", "deit_tiny_patch16_224.fb_in1k", 5_524_416, 224, "apache-2.0")
VIT_S16 = _build_card("vit_s16", "deit_small_patch16_224.fb_in1k", 21_665_664, 224, "apache-2.0")
VIT_B16 = _build_card("vit_b16", "deit_base_patch16_224.fb_in1k", 85_798_656, 224, "apache-2.0")
VIT_B16_IN21K = _build_card("vit_b16_in21k", "vit_base_patch16_224.augreg_in21k", 85_798_656, 224, "apache-2.0")
VIT_L16_IN21K = _build_card("vit_l16_in21k", "vit_large_patch16_224.augreg_in21k", 303_301_632, 224, "apache-2.0")
VIT_S14_DINOV2 = _build_card("vit_s14_dinov2", "vit_small_patch14_dinov2.lvd142m", 22_056_192, 518, "apache-2.0")
SIGLIP2_B16 = _build_card("siglip2_b16", "vit_base_patch16_siglip_224.v2_webli", 92_884_224, 224, "apache-2.0")
