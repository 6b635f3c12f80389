"""The part of a backbone that every model of timm shares: its own forward pass and the licence of its weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from toast_cli.plugin import Backbone
from toast_timm.loading import get_licence


class TimmBackbone(Backbone):
    """A backbone whose `module` is a model of timm."""

    module: Any

    def stock(self, inputs: Any) -> Tensor:
        """Run timm's own forward pass up to the pooled features `[B, d]`."""
        pooled: Tensor = self.module.forward_head(self.module.forward_features(inputs), pre_logits=True)
        return pooled

    @property
    def licence(self) -> str | None:
        """The licence that timm records for published weights."""
        return get_licence(self.module)
