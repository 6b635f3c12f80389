"""Full fine-tuning: every weight of the backbone is trained, the paper's strongest baseline (section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from toast_cli.methods.base import Method
from toast_cli.utils.config import NamedOptions

if TYPE_CHECKING:
    from toast_cli.backbones.base import Backbone
    from toast_cli.methods.adapted_model import AdaptedModel


class FullTuningOptions(NamedOptions):
    """Full fine-tuning has no settings of its own."""

    name: Literal["full"] = Field("full", description="the method")


def build_full_tuning(options: FullTuningOptions, backbone: Backbone) -> AdaptedModel:
    """Every parameter of the backbone is trained."""
    from toast_cli.methods.adapted_model import AdaptedModel

    return AdaptedModel(backbone, backbone.module.parameters(), active=[backbone.module])


METHOD = Method(FullTuningOptions, build_full_tuning, alters=True)
