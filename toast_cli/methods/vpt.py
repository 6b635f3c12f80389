"""VPT: learned tokens in addition to the image's, the paper's prompt baseline (section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from toast_cli import registry
from toast_cli.methods.base import Method
from toast_cli.utils.config import NamedOptions
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from toast_cli.backbones.base import Backbone
    from toast_cli.methods.adapted_model import AdaptedModel


class VptOptions(NamedOptions):
    """Options of VPT."""

    name: Literal["vpt"] = Field("vpt", description="the method")
    prompts: int = Field(100, ge=1, description="number of learned tokens, per level or at the first level")
    deep: bool = Field(True, description="new prompts at every level; false: only at the first level (shallow)")


def build_vpt(options: VptOptions, backbone: Backbone) -> AdaptedModel:
    """Build a model that trains prompts.

    Raises:
        UsageError: The backbone does not support additional tokens.
    """
    from toast_cli.methods.prompted_model import PromptedModel

    if not backbone.takes_prompts:
        names = (name for name in registry.list_names(registry.METHODS) if name != options.name)
        others = ["peft:KIND" if name == "peft" else name for name in names]
        raise UsageError(
            f"vpt adds learned tokens to the input of a vision transformer, which {type(backbone.module).__name__} "
            "does not accept.",
            what_to_do=f"Use one of {', '.join(others)}. vpt is for ViTs.",
            code="method.not-a-vit",
        )
    return PromptedModel(backbone, options.prompts, options.deep)


METHOD = Method(VptOptions, build_vpt)
