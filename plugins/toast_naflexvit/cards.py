"""The family of timm's NaFlexViTs. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toast_cli.plugin import Family

if TYPE_CHECKING:
    from toast_cli.plugin import Backbone


def _wrap(module: Any) -> Backbone | None:
    from toast_naflexvit.backbone import wrap_naflexvit

    return wrap_naflexvit(module)


FAMILY = Family("naflexvit", "timm", None, _wrap)
