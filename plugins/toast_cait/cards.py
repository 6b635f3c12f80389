"""The family of the CaiTs. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toast_cli.plugin import Family

if TYPE_CHECKING:
    from toast_cli.plugin import Backbone


def _wrap(module: Any) -> Backbone | None:
    from toast_cait.loading import wrap_cait

    return wrap_cait(module)


FAMILY = Family("cait", "timm", None, _wrap)
