"""Recipe options of language models. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from toast_cli.plugin import BackboneOptions


class LlamaOptions(BackboneOptions):
    """Options of a language model."""

    weights: str | None = Field(
        None,
        examples=["models/llama"],
        description="folder in the layout of transformers; 'none': random weights; default: the hub or its cache",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="data type of the frozen weights; auto: as stored"
    )
