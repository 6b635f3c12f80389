"""The family of timm's ViTs with relative positions. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toast_cli.plugin import Family

if TYPE_CHECKING:
    from toast_cli.plugin import Backbone


def _wrap(module: Any) -> Backbone | None:
    from toast_vit_relpos.backbone import wrap_vit_relpos

    return wrap_vit_relpos(module)


FAMILY = Family("vit_relpos", "timm", None, _wrap)
