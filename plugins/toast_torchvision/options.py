"""Recipe options of torchvision's models. Torch-free."""

from __future__ import annotations

from pydantic import Field

from toast_cli.plugin import BackboneOptions
from toast_timm.options import ImageSide


class TorchvisionModelOptions(BackboneOptions):
    """Options of a torchvision model."""

    weights: str | None = Field(
        None,
        examples=["IMAGENET1K_V1", "resnet50.pth"],
        description="name of torchvision's weights, or file; 'none': random weights; default: torchvision's default",
    )
    image_size: ImageSide | tuple[ImageSide, ImageSide] | None = Field(
        None,
        examples=[[224, 448]],
        description="input side, or [height, width], in pixels; a ViT's are square, and its embeddings are resized; "
        "default: that of the weights",
    )

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """Height and width of the images, or None for the model's own."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size
