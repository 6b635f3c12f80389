"""Semantic segmentation: UperNet on the levels of the pass that counts, cross-entropy, mean IoU (section 4.4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from toast_cli.backbones.image_options import PixelOptions
from toast_cli.tasks.base import Objective, Task
from toast_cli.utils.constants import IGNORE_INDEX

if TYPE_CHECKING:
    from torch import Tensor, nn

    from toast_cli.backbones.base import Backbone, Readout
    from toast_cli.tasks.iou import SegmentationMeter
    from toast_cli.tasks.upernet import FeatureMaps


class SegmentationOptions(PixelOptions):
    """Segmentation's settings."""

    name: Literal["segmentation"] = Field("segmentation", description="the task")
    width: int = Field(512, ge=2, multiple_of=2, description="channels inside UperNet's head")
    auxiliary: float = Field(
        0.4,
        ge=0,
        description="weight of the auxiliary head's loss, a second head for training alone; 0: none",
    )
    scale: tuple[float, float] | None = Field(
        (0.5, 2.0),
        description="images.augment=crop-flip: images are first made this much smaller to larger, by chance; null: not",
    )
    evaluation: Literal["slide", "whole"] = Field(
        "slide",
        description="slide: images keep their shape and a window of the backbone's input size slides over them; "
        "whole: every image is resized to that size and seen at once",
    )
    stride: float = Field(2 / 3, gt=0, le=1, description="evaluation=slide: the window's step as a share of its side")


class Segmentation(Objective):
    """Head, loss and metrics over a fixed, ordered set of classes, a label for every pixel.

    Args:
        head: from `Maps` to logits.
        classes: their names, in the order of the logits.
        window: (height, width) of what the backbone looks at at once, in pixels.
        options: the task's settings.
    """

    reads_levels = True
    dense = True

    def __init__(
        self, head: nn.Module, classes: tuple[str, ...], window: tuple[int, int], options: SegmentationOptions
    ) -> None:
        self.head = head
        self.classes = classes
        self.window = window
        self.options = options
        self.has_variable_cost = options.evaluation == "slide"

    def inputs(self, batch: Mapping[str, Any]) -> Tensor:
        """The images `[B, 3, H, W]`; of larger ones, which `predict` slides over, the first window."""
        height, width = self.window
        return batch["image"][..., :height, :width]

    def features(self, backbone: Backbone, readout: Readout, levels: Sequence[Tensor], inputs: Tensor) -> FeatureMaps:
        """The levels of the pass, laid out over the image."""
        from toast_cli.tasks.upernet import extract_feature_maps

        return extract_feature_maps(backbone, readout, levels, inputs)

    def predict(self, model: Callable[[Tensor], Tensor], batch: Mapping[str, Any]) -> Tensor:
        """Logits `[B, classes, H, W]` for whole images; what is padding (beyond `batch["extent"]`) stays zero."""
        import torch

        from toast_cli.tasks.sliding_window import predict_sliding_window

        images = batch["image"]
        if images.shape[-2:] == self.window:
            return model(images)
        step = [max(1, round(side * self.options.stride)) for side in self.window]
        found = []
        for image, (height, width) in zip(images, batch["extent"].tolist(), strict=True):
            scores = predict_sliding_window(
                model, image[:, :height, :width], self.window, (step[0], step[1]), len(images)
            )
            found.append(torch.nn.functional.pad(scores, (0, images.shape[-1] - width, 0, images.shape[-2] - height)))
        return torch.stack(found)

    def count(self, batch: Mapping[str, Any]) -> int:
        """Pixels to be learned."""
        return int((batch["labels"] != IGNORE_INDEX).sum())

    def loss(self, outputs: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Cross-entropy summed over pixels, and the auxiliary head's, weighed, where it has scored too."""
        from toast_cli.tasks.iou import align_logits_with_labels, pixel_loss

        logits, *auxiliary = outputs.split(len(self.classes), dim=1)
        loss = logits.new_zeros(())
        for weight, scores in ((1.0, logits), *((self.options.auxiliary, scores) for scores in auxiliary)):
            for pair in align_logits_with_labels(scores, batch):
                loss = loss + weight * pixel_loss(*pair)
        return loss

    def meter(self) -> SegmentationMeter:
        """Mean IoU, IoU by class, pixel accuracy and cross-entropy."""
        from toast_cli.tasks.iou import SegmentationMeter

        return SegmentationMeter(self.classes)

    def score(self, metrics: Mapping[str, Any]) -> float:
        """Mean IoU."""
        return metrics["mean_iou"]


def build_segmentation(options: SegmentationOptions, backbone: Backbone, classes: tuple[str, ...]) -> Segmentation:
    """A new UperNet for these classes.

    Raises:
        UsageError: the backbone does not look at images.
    """
    window = backbone.require_preprocessing().image_size

    from toast_cli.tasks.upernet import SegmentationHead

    head = SegmentationHead(backbone, len(classes), options.width, options.auxiliary > 0)
    return Segmentation(head, classes, window, options)


TASK = Task(SegmentationOptions, build_segmentation)
