"""The family of the Gemma 4 vision towers. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toast_cli.plugin import Family

if TYPE_CHECKING:
    from toast_cli.plugin import Backbone


def _wrap(module: Any) -> Backbone | None:
    from toast_gemma_vit.loading import wrap_gemma_vit

    return wrap_gemma_vit(module)


FAMILY = Family("gemma_vit", "timm", None, _wrap)
