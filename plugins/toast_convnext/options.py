"""Recipe options of ConvNeXts. Torch-free."""

from __future__ import annotations

from pydantic import Field

from toast_cli.plugin import BackboneOptions


class ConvNeXtOptions(BackboneOptions):
    """Options of a ConvNeXt."""

    image_size: int | tuple[int, int] | None = Field(
        None,
        examples=[384],
        description="input side, or [height, width], in pixels, at least 32; default: the model's own",
    )
    drop_path: float = Field(
        0.0, ge=0, lt=1, examples=[0.1], description="stochastic depth if the backbone itself is trained"
    )
