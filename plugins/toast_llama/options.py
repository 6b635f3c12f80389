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
    quantize: Literal["int8", "int4", "nf4"] | None = Field(
        None,
        examples=["nf4"],
        description="store the frozen linear layers of the decoder in 8 or 4 bits; the other weights keep dtype; needs "
        "torchao (int8, int4) or bitsandbytes (nf4)",
    )
