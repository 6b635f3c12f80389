"""What one model sees in one image: its maps, where in the image they lie, and what each pass says the image is."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from toast_cli.attention.feature_energy import EnergyRecorder, build_recorder
from toast_cli.attention.grad_cam import compute_grad_cam
from toast_cli.attention.maps import AttentionOutput, AttentionRecorder, HeadSelection
from toast_cli.attention.metrics import compute_object_shares
from toast_cli.attention.segmentation import SegmentationMap, predict_pixel_classes
from toast_cli.attention.validation import AttentionChecks
from toast_cli.backbones.image_options import ImageOptions
from toast_cli.data.base import DataSet, ImageSplit, Sample
from toast_cli.data.images.decode import open_image
from toast_cli.data.images.transforms import CropWindow, ImageTransform, build_transform
from toast_cli.model.model import Model
from toast_cli.recipe.schema import Recipe
from toast_cli.utils.errors import UsageError


@dataclass(frozen=True)
class TopPrediction:
    """What a pass says an image is, and how sure it is, 0 to 1."""

    label: str
    probability: float


@dataclass(frozen=True)
class AttentionViewer:
    """A model, ready to be shown images; `classes` is None for a plain backbone, whose head means nothing.

    `recipe` is what it was made by, where that is known; of a `plain` one, a backbone without a run, it is a stand-in
    of which only the backbone is meant.
    """

    name: str
    model: Model
    images: ImageOptions
    classes: tuple[str, ...] | None
    level: int = -1
    head: HeadSelection = "mean"
    with_grad_cam: bool = False
    recipe: Recipe | None = None
    plain: bool = False

    @cached_property
    def file_suffix(self) -> str:
        """Return what tells its files from those of other ways to look: `-layer1-head-max-alpha0.5-grad-cam`."""
        steering = self.model.adapted.steering
        strength = 1.0 if steering is None else steering.strength
        marks = {
            f"layer{self.level}": self.level != -1,
            f"head-{self.head}": self.head != "mean",
            f"alpha{strength:g}": strength != 1,
            "grad-cam": self.with_grad_cam,
        }
        return "".join(f"-{mark}" for mark, applies in marks.items() if applies)

    @cached_property
    def recorder(self) -> AttentionRecorder | EnergyRecorder:
        """Return the recorder of its maps."""
        return build_recorder(self.model, self.level, self.head)

    @cached_property
    def transform(self) -> ImageTransform:
        """Return the transform that its images go through."""
        return build_transform(self.images, self.model.backbone.require_preprocessing(), train=False)


@dataclass(frozen=True)
class ImageView:
    """What a viewer saw, on the CPU.

    `maps` are `[rows, columns]` each, over `window` of the image: `pass_one`, `similarity`, `pass_two`, `difference`
    (pass two less pass one), `grad_cam_one`, `grad_cam_two`, as far as there are any. `first` and `last` are what the
    passes say, None of a plain backbone; of a model that labels pixels, `segments` say it, over the whole image.
    `shares` are those of every map that lie inside the object, where there is a mask; `even` is that of a map that is
    the same everywhere.
    """

    viewer: AttentionViewer
    window: CropWindow
    kind: str
    maps: dict[str, Tensor]
    first: TopPrediction | None = None
    last: TopPrediction | None = None
    checks: AttentionChecks | None = None
    shares: dict[str, float] = field(default_factory=dict)
    segments: dict[str, SegmentationMap] = field(default_factory=dict)


def load_image_sample(path: Path) -> Sample:
    """Read an image file as a sample without a label, named by its path as given: folders may have files of one name.

    Raises:
        ToastError: it cannot be read as an image.
    """
    return Sample(image=open_image(path), label=-1, name=str(path))


def get_test_split(data: DataSet) -> ImageSplit:
    """Return a data set's test images.

    Raises:
        UsageError: it has none.
    """
    if "test" not in data.splits:
        raise UsageError(
            "This data set has no test split.", what_to_do="Name image files instead.", code="data.missing-split"
        )
    return data.splits["test"]  # type: ignore[return-value]


def load_test_sample(data: DataSet, index: int) -> Sample:
    """Read one image of a data set's test split.

    Raises:
        UsageError: there is no test split, or no such image in it.
    """
    split = get_test_split(data)
    if not 0 <= index < len(split):
        raise UsageError(
            f"There is no test image {index}.",
            what_to_do=f"They count from 0 to {len(split) - 1}.",
            code="data.unknown-index",
        )
    return split.load(index)


def compute_image_view(viewer: AttentionViewer, sample: Sample) -> ImageView:
    """Show a model one image.

    Raises:
        ToastError: its maps are not what it attends with.
        UsageError: it has no such level or head.
    """
    model, transform = viewer.model, viewer.transform
    image, mask = transform(sample.image, sample.mask)
    images = image[None].to(next(model.parameters()).device)
    output = viewer.recorder.record(images)
    maps = {name: map[0].float().cpu() for name, map in output.maps().items()}
    if "pass_two" in maps:
        maps["difference"] = maps["pass_two"] - maps["pass_one"]
    shares: dict[str, float] = {}
    if mask is not None and bool(mask.any()):
        found = compute_object_shares({name: maps[name][None] for name in output.maps()}, mask[None])
        shares = {name: float(share) for name, share in found.items() if not share.isnan()}
        shares["even"] = float(mask.float().mean())
    first, last, segments = predict_passes(viewer, output, sample)
    if viewer.with_grad_cam:
        maps |= {name: map[0] for name, map in compute_grad_cam(model, images).items()}
    return ImageView(
        viewer, transform.window(sample.image), output.kind, maps, first, last, output.checks, shares, segments
    )


@torch.no_grad()
def predict_passes(
    viewer: AttentionViewer, output: AttentionOutput, sample: Sample
) -> tuple[TopPrediction | None, TopPrediction | None, dict[str, SegmentationMap]]:
    """Return what the first and the last pass predict (None of a plain backbone), or the classes of the pixels."""
    if viewer.classes is None or not viewer.model.objective.class_scores:
        return None, None, {}
    if viewer.model.objective.dense:
        predicted = predict_pixel_classes(viewer.model, viewer.images, sample.image)
        found = {"predicted": SegmentationMap(predicted.numpy(), viewer.classes)}
        if sample.classes is not None:
            found["labelled"] = SegmentationMap(sample.classes, viewer.classes)
        return None, None, found
    last = get_top_prediction(output.logits, viewer.classes)
    if output.last is None:
        return last, None, {}
    assert output.passes.plain is not None  # recorders have the first pass go on to its end
    # What the head, which was trained on the last pass, makes of the plain one.
    return get_top_prediction(viewer.model.outputs(output.passes.plain.pooled), viewer.classes), last, {}


def get_top_prediction(logits: Tensor, classes: tuple[str, ...]) -> TopPrediction:
    """Return the likeliest class of the first image of a batch."""
    probability, index = logits.float().softmax(-1)[0].max(-1)
    return TopPrediction(classes[int(index)], float(probability))
