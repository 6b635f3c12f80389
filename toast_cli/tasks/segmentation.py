"""Semantic segmentation: UperNet on the levels of the last pass, cross-entropy, mean IoU (section 4.4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from toast_cli.backbones.image_options import PixelOptions
from toast_cli.tasks.base import EpochSelection, Objective, Task
from toast_cli.utils.constants import IGNORE_INDEX

if TYPE_CHECKING:
    from torch import Tensor, nn

    from toast_cli.backbones.base import Backbone, Readout
    from toast_cli.tasks.iou import SegmentationMeter
    from toast_cli.tasks.upernet import FeatureMaps


class SegmentationOptions(PixelOptions):
    """Options of segmentation."""

    name: Literal["segmentation"] = Field("segmentation", description="the task")
    width: int = Field(512, ge=2, multiple_of=2, description="channels inside UperNet's head")
    auxiliary: float = Field(
        0.4,
        ge=0,
        description="weight of the loss of the auxiliary head, which is only used in training; 0: no auxiliary head",
    )
    scale: tuple[float, float] | None = Field(
        (0.5, 2.0),
        examples=[[0.8, 1.25]],
        description="images.augment=crop-flip: range of the random scale factor of training images; null: no scaling",
    )
    evaluation: Literal["slide", "whole"] = Field(
        "slide",
        description="slide: a window of the backbone's input size slides over the image at its own aspect ratio; "
        "whole: every image is resized to that size",
    )
    select: str = Field(
        "mean_iou",
        examples=["pixel_accuracy"],
        description="metric on the validation split that selects the best epoch; loss is minimized",
    )
    stride: float = Field(2 / 3, gt=0, le=1, description="evaluation=slide: step of the window as a share of its side")


class Segmentation(Objective):
    """Head, loss and metrics for a fixed, ordered set of classes and a label for every pixel.

    Args:
        head: Module from `FeatureMaps` to logits.
        classes: Class names in the order of the logits.
        window: (height, width) of the backbone's input, in pixels.
        options: The options of the task.
    """

    reads_levels = True
    dense = True
    target = "pixels"
    output_layers = ("upernet.classifier", "auxiliary.classifier")
    selection = EpochSelection("mean_iou")

    def __init__(
        self, head: nn.Module, classes: tuple[str, ...], window: tuple[int, int], options: SegmentationOptions
    ) -> None:
        self.head = head
        self.classes = classes
        self.window = window
        self.options = options
        self.has_variable_cost = options.evaluation == "slide"

    def inputs(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the images `[B, 3, H, W]`, cropped to the first window if they are larger."""
        height, width = self.window
        return batch["image"][..., :height, :width]

    def features(self, backbone: Backbone, readout: Readout, levels: Sequence[Tensor], inputs: Tensor) -> FeatureMaps:
        """Return the levels of the pass as feature maps."""
        from toast_cli.tasks.upernet import extract_feature_maps

        return extract_feature_maps(backbone, readout, levels, inputs)

    def predict(self, model: Callable[[Tensor], Tensor], batch: Mapping[str, Any]) -> Tensor:
        """Return logits `[B, classes, H, W]` for whole images. Padding beyond `batch["extent"]` stays zero."""
        import torch

        from toast_cli.tasks.sliding_window import predict_sliding_window

        images = batch["image"]
        if images.shape[-2:] == self.window:
            return model(images)
        step = [max(1, round(side * self.options.stride)) for side in self.window]
        logits = []
        for image, (height, width) in zip(images, batch["extent"].tolist(), strict=True):
            scores = predict_sliding_window(
                model, image[:, :height, :width], self.window, (step[0], step[1]), len(images)
            )
            logits.append(torch.nn.functional.pad(scores, (0, images.shape[-1] - width, 0, images.shape[-2] - height)))
        return torch.stack(logits)

    def count(self, batch: Mapping[str, Any]) -> int:
        """Return the number of labelled pixels."""
        return int((batch["labels"] != IGNORE_INDEX).sum())

    def loss(self, outputs: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Return the cross-entropy summed over pixels, plus the weighted loss of the auxiliary head in training."""
        from toast_cli.tasks.iou import align_logits_with_labels, pixel_loss

        logits, *auxiliary = outputs.split(len(self.classes), dim=1)
        loss = logits.new_zeros(())
        for weight, scores in ((1.0, logits), *((self.options.auxiliary, scores) for scores in auxiliary)):
            for pair in align_logits_with_labels(scores, batch):
                loss = loss + weight * pixel_loss(*pair)
        return loss

    def meter(self) -> SegmentationMeter:
        """Return a new meter of IoU, pixel accuracy and cross-entropy."""
        from toast_cli.tasks.iou import SegmentationMeter

        return SegmentationMeter(self.classes)


def build_segmentation(options: SegmentationOptions, backbone: Backbone, classes: tuple[str, ...]) -> Segmentation:
    """Build the objective with a new UperNet for these classes.

    Raises:
        UsageError: The backbone does not take images.
    """
    window = backbone.require_preprocessing().image_size

    from toast_cli.tasks.upernet import SegmentationHead

    head = SegmentationHead(backbone, len(classes), options.width, options.auxiliary > 0)
    return Segmentation(head, classes, window, options)


TASK = Task(
    SegmentationOptions,
    build_segmentation,
    metrics={"mean_iou": True, "pixel_accuracy": True, "class_accuracy": True, "loss": False},
)
