"""From an image to its attention figure, for a trained run or for a plain backbone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toast_cli.attention.figure import draw, shown
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
    """Where a figure went and what the model said about the image. Shares are None without a mask."""

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
    image, mask = build_transform(images, preprocessing, train=False)(sample.image, sample.mask)
    device = next(model.parameters()).device
    look = Recorder(model, level).look(image[None].to(device))
    titles = [sample.name]
    prediction = confidence = None
    if classes is not None:
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
    draw(shown(look, image, preprocessing, tuple(titles), mask), path)
    return Picture(path, prediction, confidence, share_first, share_last)
