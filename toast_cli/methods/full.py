"""Full fine-tuning: train every weight of the backbone, the paper's strongest baseline (section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from toast_cli.methods.base import Method
from toast_cli.utils.config import NamedOptions
from toast_cli.utils.errors import UsageError

if TYPE_CHECKING:
    from toast_cli.backbones.base import Backbone
    from toast_cli.methods.adapted_model import AdaptedModel


class FullTuningOptions(NamedOptions):
    """Options of full fine-tuning, which has none."""

    name: Literal["full"] = Field("full", description="the method")


def build_full_tuning(options: FullTuningOptions, backbone: Backbone) -> AdaptedModel:
    """Build a model that trains every parameter of the backbone.

    Raises:
        UsageError: The backbone is quantized.
    """
    from toast_cli.backbones.quantized_linear import get_quantization
    from toast_cli.methods.adapted_model import AdaptedModel

    kind = get_quantization(backbone.module)
    if kind is not None:
        raise UsageError(
            f"full cannot train a backbone in {kind}.",
            "It trains every weight, and those in 8 or 4 bits are rounded numbers without gradients.",
            "Leave backbone.quantize out, or choose toast, toast-lite or lora.",
            code="method.quantized-backbone",
        )

    return AdaptedModel(backbone, backbone.module.parameters(), active=[backbone.module])


METHOD = Method(FullTuningOptions, build_full_tuning, alters=True)
