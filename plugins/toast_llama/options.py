"""What the recipe can say about a language model. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from toast_cli.plugin import BackboneOptions


class LlamaOptions(BackboneOptions):
    """What a language model can be told."""

    weights: str | None = Field(
        None, description="folder in transformers' layout; 'none' for random ones; left out: the hub or its cache"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="what the frozen weights are kept in; auto: as they are stored"
    )
