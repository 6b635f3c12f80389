"""The family of the XCiTs. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toast_cli.plugin import Family

if TYPE_CHECKING:
    from toast_cli.plugin import Backbone


def _wrap(module: Any) -> Backbone | None:
    from toast_xcit.loading import wrap_xcit

    return wrap_xcit(module)


FAMILY = Family("xcit", "timm", None, _wrap)
