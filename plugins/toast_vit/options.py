"""Recipe options of ViTs. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from toast_cli.plugin import BackboneOptions

ImageSide = Annotated[int, Field(ge=1)]


class VitOptions(BackboneOptions):
    """Options of a ViT."""

    image_size: ImageSide | tuple[ImageSide, ImageSide] | None = Field(
        None,
        examples=[[224, 448]],
        description="input side, or [height, width], in pixels; embeddings are resized; default: the model's own",
    )
    value_bias: Literal["once", "twice"] = Field(
        "once", description="once: as in the paper; twice: add b_V again with the signal, as the authors' code does"
    )
    drop_path: float = Field(
        0.0, ge=0, lt=1, examples=[0.1], description="stochastic depth if the backbone itself is trained"
    )
