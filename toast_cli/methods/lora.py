"""LoRA with PEFT: low-rank factors on the backbone's projections, the paper's low-rank baseline (section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from toast_cli.methods.base import Method
from toast_cli.utils.config import NamedOptions

if TYPE_CHECKING:
    from toast_cli.backbones.base import Backbone
    from toast_cli.methods.adapted_model import AdaptedModel


ALL_LINEAR: Literal["all-linear"] = "all-linear"
"""PEFT's name of all linear layers except the output layer."""


class LoraOptions(NamedOptions):
    """Options of LoRA."""

    name: Literal["lora"] = Field("lora", description="the method")
    rank: int = Field(4, ge=1, description="rank of the factors")
    alpha: float = Field(4.0, gt=0, description="the factors are scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, examples=[0.1], description="dropout before the factors")
    targets: Literal["all-linear"] | tuple[str, ...] | None = Field(
        None,
        examples=[["qkv", "proj"]],
        description="suffixes of layer names, or all-linear; default: qkv (ViT), the MLPs (ConvNeXt), all linear "
        "layers except the output layer (language models); null for a language model: q_proj and v_proj, as in "
        "earlier versions",
    )


def build_lora(options: LoraOptions, backbone: Backbone) -> AdaptedModel:
    """Build a model that trains low-rank factors.

    Raises:
        UsageError: The backbone has no layer of these names.
    """
    from peft import LoraConfig

    from toast_cli.methods.peft_injection import inject_peft_layers

    targets = list(options.targets) if isinstance(options.targets, tuple) else options.targets
    config = LoraConfig(
        r=options.rank, lora_alpha=options.alpha, lora_dropout=options.dropout, target_modules=targets, bias="none"
    )
    return inject_peft_layers(backbone, config)


def complete_lora(options: LoraOptions, task: str) -> LoraOptions:
    """Return the options of a new run: with language modelling, factors go to all linear layers by default."""
    if task != "language" or "targets" in options.model_fields_set:
        return options
    return options.model_copy(update={"targets": ALL_LINEAR})


METHOD = Method(LoraOptions, build_lora, alters=True, complete=complete_lora)
