"""The family of timm's MViTv2, which the prefix `timm:` finds. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toast_cli.plugin import Family

if TYPE_CHECKING:
    from toast_cli.plugin import Backbone


def _wrap(module: Any) -> Backbone | None:
    from toast_mvitv2.loading import wrap_mvitv2

    return wrap_mvitv2(module)


FAMILY = Family("mvitv2", "timm", None, _wrap)
