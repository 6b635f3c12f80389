"""Construction of backbones from timm's networks with stages."""

from __future__ import annotations

from typing import Any

from toast_cli.plugin import Backbone, ToastError
from toast_convnet.backbone import ConvNetBackbone
from toast_timm.any_model import set_timm_origin
from toast_timm.loading import get_preprocessing, require_rgb_input

TIMM_MODELS = "timm.models."

OTHER_FAMILIES = (
    *("beit", "cait", "convnext", "deit", "eva", "hiera", "maxxvit", "mvitv2", "naflexvit", "pvt_v2", "xcit"),
    *("swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr"),
)
"""timm's modules whose models other families steer, or refuse for reasons of their own; so are vision_transformer*."""


def wrap_convnet(module: Any) -> Backbone | None:
    """Return the backbone of a timm network with stages, or None for a module of another library or family.

    Raises:
        ToastError: The model cannot be cut into stages.
        UsageError: The model does not read RGB images.
    """
    parents = [base.__module__ for base in type(module).__mro__ if base.__module__.startswith(TIMM_MODELS)]
    origins = {parent.removeprefix(TIMM_MODELS) for parent in parents}
    if not origins or any(name in OTHER_FAMILIES or name.startswith("vision_transformer") for name in origins):
        return None
    try:
        backbone = ConvNetBackbone(module, get_preprocessing(module))
    except ToastError:
        require_rgb_input(module)  # the more useful reason
        raise
    set_timm_origin(backbone, module, input_checked=True)
    return backbone
