"""`peft:KIND`: any other PEFT method that adds layers to a network, by its PEFT name and with its own options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from toast_cli.methods.base import Method
from toast_cli.utils.config import NamedOptions

if TYPE_CHECKING:
    from toast_cli.backbones.base import Backbone
    from toast_cli.methods.adapted_model import AdaptedModel


class PeftOptions(NamedOptions):
    """The PEFT method and its options."""

    name: Literal["peft"] = Field("peft", description="the method")
    kind: str = Field(examples=["ia3"], description="PEFT's name of the method: dora, ia3, loha, lokr, hra, ...")
    options: dict[str, Any] = Field(
        default_factory=dict,
        examples=[{"feedforward_modules": []}],
        description="fields of its PEFT configuration; default of target_modules: as for lora",
    )


def build_peft(options: PeftOptions, backbone: Backbone) -> AdaptedModel:
    """Build a model that trains the layers that PEFT adds.

    Raises:
        UsageError: PEFT has no such method or option, or the method does not fit the backbone.
    """
    from toast_cli.methods.peft_injection import build_peft_config, check_forward_runs, inject_peft_layers

    adapted = inject_peft_layers(backbone, build_peft_config(options.kind, dict(options.options)))
    check_forward_runs(adapted, options.kind)
    return adapted


METHOD = Method(PeftOptions, build_peft, alters=True)
