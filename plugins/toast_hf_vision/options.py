"""Recipe options of transformers' vision models. Torch-free."""

from __future__ import annotations

from pydantic import Field

from toast_cli.plugin import BackboneOptions
from toast_timm.options import ImageSide


class HfVisionOptions(BackboneOptions):
    """Options of a vision model of transformers."""

    weights: str | None = Field(
        None,
        examples=["models/dinov3"],
        description="folder in the layout of transformers, or file (safetensors, .bin, .pt, .pth); 'none': random "
        "weights; default: the folder or the hub",
    )
    image_size: ImageSide | tuple[ImageSide, ImageSide] | None = Field(
        None,
        examples=[[224, 448]],
        description="input side, or [height, width], in pixels; position embeddings are resized; default: that of the "
        "image processor",
    )

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """Height and width of the images, or None for the model's own."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size
