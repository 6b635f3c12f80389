"""The family of timm's PVTv2, which the prefix `timm:` finds. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toast_cli.plugin import Family

if TYPE_CHECKING:
    from toast_cli.plugin import Backbone


def _wrap(module: Any) -> Backbone | None:
    from toast_pvt.loading import wrap_pvt

    return wrap_pvt(module)


FAMILY = Family("pvt", "timm", None, _wrap)
