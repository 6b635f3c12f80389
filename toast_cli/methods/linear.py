"""Linear probe: train only a head on the frozen backbone's features, the paper's simplest baseline (section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from toast_cli.methods.base import Method
from toast_cli.utils.config import NamedOptions

if TYPE_CHECKING:
    from toast_cli.backbones.base import Backbone
    from toast_cli.methods.adapted_model import AdaptedModel


class LinearProbeOptions(NamedOptions):
    """Options of the linear probe, which has none."""

    name: Literal["linear"] = Field("linear", description="the method")


def build_linear_probe(options: LinearProbeOptions, backbone: Backbone) -> AdaptedModel:
    """Build a model that trains nothing except the task's head."""
    from toast_cli.methods.adapted_model import AdaptedModel

    return AdaptedModel(backbone, [])


METHOD = Method(LinearProbeOptions, build_linear_probe)
