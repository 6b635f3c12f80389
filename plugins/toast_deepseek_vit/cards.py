"""The family of the DeepSeek vision towers. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toast_cli.plugin import Family

if TYPE_CHECKING:
    from toast_cli.plugin import Backbone


def _wrap(module: Any) -> Backbone | None:
    from toast_deepseek_vit.loading import wrap_deepseek_vit

    return wrap_deepseek_vit(module)


FAMILY = Family("deepseek_vit", "timm", None, _wrap)
