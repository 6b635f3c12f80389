"""The family of timm's Hiera and SAM 2 image encoders, which the prefix `timm:` finds. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toast_cli.plugin import Family

if TYPE_CHECKING:
    from toast_cli.plugin import Backbone


def _wrap(module: Any) -> Backbone | None:
    from toast_hiera.loading import wrap_hiera

    return wrap_hiera(module)


FAMILY = Family("hiera", "timm", None, _wrap)
