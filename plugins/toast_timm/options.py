"""Recipe options of timm's models. Torch-free."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from toast_cli.plugin import BackboneOptions

ImageSide = Annotated[int, Field(ge=1)]


class TimmOptions(BackboneOptions):
    """Options that all models of timm share. A family adds its own fields in a subclass."""

    image_size: ImageSide | tuple[ImageSide, ImageSide] | None = Field(
        None,
        examples=[[224, 448]],
        description="input side, or [height, width], in pixels; embeddings are resized; default: the model's own",
    )
    drop_path: float = Field(
        0.0, ge=0, lt=1, examples=[0.1], description="stochastic depth if the backbone itself is trained"
    )

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """Height and width of the images, or None for the model's own."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size
