"""Recipe options of ViTs. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from toast_timm.options import TimmOptions


class VitOptions(TimmOptions):
    """Options of a ViT."""

    value_bias: Literal["once", "twice"] = Field(
        "once", description="once: as in the paper; twice: add b_V again with the signal, as the authors' code does"
    )
