"""From an image to its attention figure, for a trained run or for a plain backbone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torchvision import tv_tensors

from toast_cli.attention.figure import Segments, draw, shown
from toast_cli.attention.maps import Recorder
from toast_cli.attention.share import share_inside
from toast_cli.data.images import open_image
from toast_cli.data.source import DataSet, Sample
from toast_cli.data.transforms import build_transform
from toast_cli.errors import UsageError
from toast_cli.model import Model
from toast_cli.recipe.schema import ImageOptions


@dataclass(frozen=True)
class Picture:
    """Where a figure went and what the model said about the image. Shares are None without a mask.

    Of a model that labels pixels, `prediction` says which classes cover how much of the image, and has no confidence.
    """

    path: Path
    prediction: str | None
    confidence: float | None
    share_first: float | None
    share_last: float | None


def from_file(path: Path) -> Sample:
    """An image file as a sample without a label.

    Raises:
        ToastError: it cannot be read as an image.
    """
    return Sample(image=open_image(path), label=-1, name=path.name)


def from_test_split(data: DataSet, index: int) -> Sample:
    """One image of a data set's test split.

    Raises:
        UsageError: there is no test split, or no such image in it.
    """
    if "test" not in data.splits:
        raise UsageError("This data set has no test split.", what_to_do="Name an image file instead.")
    split = data.splits["test"]
    if not 0 <= index < len(split):
        raise UsageError(f"There is no test image {index}.", what_to_do=f"They count from 0 to {len(split) - 1}.")
    return split.load(index)


def picture(
    model: Model, images: ImageOptions, classes: tuple[str, ...] | None, sample: Sample, path: Path, level: int = -1
) -> Picture:
    """Draw the figure of one sample; `classes` is None for a plain backbone, whose head means nothing."""
    preprocessing = model.backbone.require_preprocessing()
    transform = build_transform(images, preprocessing, train=False)
    image, mask = transform(sample.image, sample.mask)
    device = next(model.parameters()).device
    look = Recorder(model, level).look(image[None].to(device))
    titles = [sample.name]
    prediction = confidence = None
    segmented: list[Segments] = []
    if classes is not None and model.objective.dense:
        segmented.append(Segments("predicted", look.logits[0].argmax(0).cpu().numpy(), classes))
        if sample.classes is not None:
            _, labelled = transform.steps(sample.image, tv_tensors.Mask(torch.from_numpy(sample.classes)))
            segmented.append(Segments("labelled", labelled.numpy(), classes))
        prediction = covering(segmented[0])
        titles.append(prediction)
    elif classes is not None:
        probability, index = look.logits.float().softmax(-1)[0].max(-1)
        prediction, confidence = classes[int(index)], float(probability)
        truth = f" (labelled {classes[sample.label]})" if sample.label >= 0 else ""
        titles.append(f"{prediction}, {confidence:.1%}{truth}")
    share_first = share_last = None
    if mask is not None and bool(mask.any()):
        share_first = float(share_inside(look.first.cpu(), mask[None])[0])
        share_last = None if look.last is None else float(share_inside(look.last.cpu(), mask[None])[0])
        second = "" if share_last is None else f", {share_last:.0%} in pass two"
        titles.append(f"attention on the outlined object: {share_first:.0%} in pass one{second}")
    figure = shown(look, image, preprocessing, tuple(titles), mask)
    draw(replace(figure, segmented=tuple(segmented)), path)
    return Picture(path, prediction, confidence, share_first, share_last)


def covering(segments: Segments, most: int = 5) -> str:
    """Which classes cover how much of the image, the largest first: `ground 61%, beetle 9%`."""
    shares = np.bincount(segments.classes.ravel(), minlength=len(segments.names)) / segments.classes.size
    largest = [int(index) for index in shares.argsort()[::-1][:most] if shares[index]]
    return ", ".join(f"{segments.names[index]} {shares[index]:.0%}" for index in largest)
