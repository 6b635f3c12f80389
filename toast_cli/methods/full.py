"""Full fine-tuning: every weight of the backbone is trained, the paper's strongest baseline (section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from toast_cli.methods.base import Method
from toast_cli.utils.config import Named

if TYPE_CHECKING:
    from toast_cli.backbones.base import Backbone
    from toast_cli.methods.adapted_model import Adapted


class Options(Named):
    """Full fine-tuning has no settings of its own."""

    name: Literal["full"] = Field("full", description="the method")


def build(options: Options, backbone: Backbone) -> Adapted:
    """Every parameter of the backbone is trained."""
    from toast_cli.methods.adapted_model import Adapted

    return Adapted(backbone, backbone.module.parameters(), active=[backbone.module])


METHOD = Method(Options, build, alters=True)
