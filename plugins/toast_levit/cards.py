"""The family of the LeViTs. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toast_cli.plugin import Family

if TYPE_CHECKING:
    from toast_cli.plugin import Backbone


def _wrap(module: Any) -> Backbone | None:
    from toast_levit.loading import wrap_levit

    return wrap_levit(module)


FAMILY = Family("levit", "timm", None, _wrap)
