"""What the recipe can say about a ViT. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from toast_cli.plugin import BackboneOptions

ImageSide = Annotated[int, Field(ge=1)]


class VitOptions(BackboneOptions):
    """What a ViT can be told."""

    image_size: ImageSide | tuple[ImageSide, ImageSide] | None = Field(
        None,
        description="input side, or [height, width], in pixels; embeddings are resized; left out: the model's own",
    )
    value_bias: Literal["once", "twice"] = Field(
        "once", description="'once' is the paper; 'twice' counts b_V again with the signal, as the authors' code does"
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth while the backbone itself is trained")
