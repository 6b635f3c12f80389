"""The family of timm's MaxViT, CoAtNet and MaxxViT, which the prefix `timm:` finds. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toast_cli.plugin import Family

if TYPE_CHECKING:
    from toast_cli.plugin import Backbone


def _wrap(module: Any) -> Backbone | None:
    from toast_maxxvit.loading import wrap_maxxvit

    return wrap_maxxvit(module)


FAMILY = Family("maxxvit", "timm", None, _wrap)
