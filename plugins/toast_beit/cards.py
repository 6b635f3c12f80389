"""The family of timm's BEiTs. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toast_cli.plugin import Family

if TYPE_CHECKING:
    from toast_cli.plugin import Backbone


def _wrap(module: Any) -> Backbone | None:
    from toast_beit.backbone import wrap_beit

    return wrap_beit(module)


FAMILY = Family("beit", "timm", None, _wrap)
