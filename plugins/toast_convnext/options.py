"""What the recipe can say about a ConvNeXt. Torch-free."""

from __future__ import annotations

from pydantic import Field

from toast_cli.plugin import BackboneOptions


class ConvNeXtOptions(BackboneOptions):
    """What a ConvNeXt can be told."""

    image_size: int | tuple[int, int] | None = Field(
        None, description="input side, or [height, width], in pixels, any of at least 32; left out: the model's own"
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth while the backbone itself is trained")
