"""The family of the Qwen3 vision towers. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toast_cli.plugin import Family

if TYPE_CHECKING:
    from toast_cli.plugin import Backbone


def _wrap(module: Any) -> Backbone | None:
    from toast_qwen_vit.loading import wrap_qwen_vit

    return wrap_qwen_vit(module)


FAMILY = Family("qwen_vit", "timm", None, _wrap)
