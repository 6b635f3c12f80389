"""LoRA with PEFT: low-rank factors on the backbone's projections, the paper's low-rank baseline (section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from toast_cli.methods.base import Method
from toast_cli.utils.config import NamedOptions

if TYPE_CHECKING:
    from toast_cli.backbones.base import Backbone
    from toast_cli.methods.adapted_model import AdaptedModel


class LoraOptions(NamedOptions):
    """Options of LoRA."""

    name: Literal["lora"] = Field("lora", description="the method")
    rank: int = Field(4, ge=1, description="rank of the factors")
    alpha: float = Field(4.0, gt=0, description="the factors are scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, examples=[0.1], description="dropout before the factors")
    targets: tuple[str, ...] | None = Field(
        None,
        examples=[["qkv", "proj"]],
        description="suffixes of layer names; default: qkv (ViT), q_proj and v_proj (LLaMA), the MLPs (ConvNeXt)",
    )


def build_lora(options: LoraOptions, backbone: Backbone) -> AdaptedModel:
    """Build a model that trains low-rank factors.

    Raises:
        UsageError: The backbone has no layer of these names.
    """
    from peft import LoraConfig

    from toast_cli.methods.peft_injection import inject_peft_layers

    targets = None if options.targets is None else list(options.targets)
    config = LoraConfig(
        r=options.rank, lora_alpha=options.alpha, lora_dropout=options.dropout, target_modules=targets, bias="none"
    )
    return inject_peft_layers(backbone, config)


METHOD = Method(LoraOptions, build_lora, alters=True)
