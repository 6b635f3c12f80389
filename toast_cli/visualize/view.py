"""Views of an image by a model: its maps, their window in the image, and the prediction of each pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from toast_cli.attention.explanations.grad_cam import compute_grad_cam
from toast_cli.attention.feature_energy import EnergyRecorder, build_recorder
from toast_cli.attention.image_box import ImageBox, point_at_box
from toast_cli.attention.map_validation import AttentionChecks
from toast_cli.attention.maps import AttentionOutput, AttentionRecorder, HeadSelection
from toast_cli.attention.metrics import compute_object_shares
from toast_cli.attention.predicted_classes import SegmentationMap, predict_pixel_classes
from toast_cli.attention.registers import find_registers, remove_registers
from toast_cli.backbones.image_options import ImageOptions
from toast_cli.data.base import DataSet, ImageSplit, Sample
from toast_cli.data.images.decode import open_image
from toast_cli.data.images.transforms import CropWindow, ImageTransform, build_transform
from toast_cli.model.model import Model
from toast_cli.recipe.schema import Recipe
from toast_cli.utils.errors import UsageError
from toast_cli.utils.names import to_file_name


@dataclass(frozen=True)
class TopPrediction:
    """The most likely class, or a chosen label, and its probability; or a number and its value.

    `given` is whether a label of several reaches its threshold.
    """

    label: str
    probability: float | None = None
    value: float | None = None
    given: bool = True

    def format(self, digits: int = 0) -> str:
        """Return the probability in percent, or the value of a number."""
        return f"{self.value:.4g}" if self.probability is None else f"{self.probability:.{digits}%}"


@dataclass(frozen=True)
class AttentionViewer:
    """A model with the settings to record its attention on images.

    `classes` is None for a plain backbone, whose head is not trained. `recipe` is the model's recipe, if it is known.
    For a `plain` backbone without a run, only the backbone of the recipe has a meaning. `label` is the class, label or
    number to draw; by default, the most likely class or label, or the first number. `with_registers` looks for register
    tokens (see `attention.registers`), and `ignore_registers` draws maps without them. With a
    `box`, the tokens in it set xi (an experiment).
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
    label: str | None = None
    with_registers: bool = False
    ignore_registers: bool = False
    box: ImageBox | None = None

    @property
    def output(self) -> int | None:
        """Return the index of the output to draw; None for that of the most likely class."""
        if self.label is not None and self.classes is not None:
            return self.classes.index(self.label)
        return 0 if self.model.objective.target == "number" else None

    @cached_property
    def file_suffix(self) -> str:
        """Return the file name suffix of settings that are not the default: `-layer1-head-max-alpha0.5-grad-cam`."""
        steering = self.model.adapted.steering
        strength = 1.0 if steering is None else steering.strength
        marks = {
            f"layer{self.level}": self.level != -1,
            f"head-{self.head}": self.head != "mean",
            f"alpha{strength:g}": strength != 1,
            "grad-cam": self.with_grad_cam,
            to_file_name(f"label-{self.label}"): self.label is not None,
            "without-registers": self.ignore_registers,
            "" if self.box is None else f"point-{self.box.format().replace(',', '-')}": self.box is not None,
        }
        return "".join(f"-{mark}" for mark, applies in marks.items() if applies)

    @cached_property
    def recorder(self) -> AttentionRecorder | EnergyRecorder:
        """Return the recorder of the maps."""
        return build_recorder(self.model, self.level, self.head)

    @cached_property
    def transform(self) -> ImageTransform:
        """Return the transform of the images."""
        return build_transform(self.images, self.model.backbone.require_preprocessing(), train=False)


@dataclass(frozen=True)
class ImageView:
    """The view of an image by a model, on the CPU.

    Attributes:
        viewer: the viewer.
        window: the part of the image that the model sees.
        kind: the kind of the maps, attention or feature energy.
        maps: the available ones of `pass_one`, `similarity`, `pass_two`, `difference` (pass two minus pass one),
            `grad_cam_one` and `grad_cam_two`, each `[rows, columns]` over `window`.
        first, last: the predictions of the passes; None for a plain backbone or a model that labels pixels.
        checks: the validation of the maps, if any.
        shares: with a mask, the share of each map inside the object; `even` is that of a uniform map.
        segments: for a model that labels pixels, the classes of the whole image.
        registers: the register tokens, `[rows, columns]` bool; None if they were not looked for.
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
    registers: Tensor | None = None

    def get_drawn_maps(self) -> dict[str, Tensor]:
        """Return the maps as they are drawn: without register tokens, if the viewer ignores them."""
        if self.registers is None or not self.viewer.ignore_registers:
            return self.maps
        drawn = dict(self.maps)
        for name in ("pass_one", "pass_two"):
            if name in drawn:
                drawn[name] = remove_registers(drawn[name], self.registers)
        if "difference" in drawn:
            drawn["difference"] = drawn["pass_two"] - drawn["pass_one"]
        return drawn

    def get_crosses(self) -> np.ndarray | None:
        """Return the cells of register tokens, which figures mark; None without any."""
        return self.registers.numpy() if self.registers is not None and bool(self.registers.any()) else None


def load_image_sample(path: Path, white: int | None = None) -> Sample:
    """Read an image file as a sample without a label. Its name is the path as given, which is unique.

    Raises:
        ToastError: the file cannot be read as an image.
    """
    return Sample(image=open_image(path, white), label=-1, name=str(path))


def get_test_split(data: DataSet) -> ImageSplit:
    """Return the test split of a data set.

    Raises:
        UsageError: there is no test split.
    """
    if "test" not in data.splits:
        raise UsageError(
            "The data set has no test split.", what_to_do="Give image files instead.", code="data.missing-split"
        )
    return data.splits["test"]  # type: ignore[return-value]


def load_test_sample(data: DataSet, index: int) -> Sample:
    """Read one image of a data set's test split.

    Raises:
        UsageError: there is no test split, or the index is out of range.
    """
    split = get_test_split(data)
    if not 0 <= index < len(split):
        raise UsageError(
            f"There is no test image {index}.",
            what_to_do=f"Use 0 to {len(split) - 1}.",
            code="data.unknown-index",
        )
    return split.load(index)


def compute_image_view(viewer: AttentionViewer, sample: Sample) -> ImageView:
    """Compute the view of an image.

    Raises:
        ToastError: a map differs from the attention that the model uses.
        UsageError: the level or head does not exist, or the viewer's box lies outside of what the model sees.
    """
    image, mask = viewer.transform(sample.image, sample.mask)
    images = image[None].to(next(viewer.model.parameters()).device)
    window = viewer.transform.compute_window(sample.image)
    with point_at_box(viewer.model, images, window, viewer.box):
        return _record_view(viewer, sample, images, mask, window)


def _record_view(
    viewer: AttentionViewer, sample: Sample, images: Tensor, mask: Tensor | None, window: CropWindow
) -> ImageView:
    output = viewer.recorder.record(images)
    maps = {name: map[0].float().cpu() for name, map in output.get_maps().items()}
    if "pass_two" in maps:
        maps["difference"] = maps["pass_two"] - maps["pass_one"]
    shares: dict[str, float] = {}
    if mask is not None and bool(mask.any()):
        object_shares = compute_object_shares({name: maps[name][None] for name in output.get_maps()}, mask[None])
        shares = {name: float(share) for name, share in object_shares.items() if not share.isnan()}
        shares["even"] = float(mask.float().mean())
    first, last, segments = predict_passes(viewer, output, sample)
    if viewer.with_grad_cam:
        maps |= {name: map[0] for name, map in compute_grad_cam(viewer.model, images, viewer.output).items()}
    registers = None
    if (viewer.with_registers or viewer.ignore_registers) and isinstance(viewer.recorder, AttentionRecorder):
        registers = find_registers(viewer.recorder, images)[0].cpu()
    return ImageView(viewer, window, output.kind, maps, first, last, output.checks, shares, segments, registers)


@torch.no_grad()
def predict_passes(
    viewer: AttentionViewer, output: AttentionOutput, sample: Sample
) -> tuple[TopPrediction | None, TopPrediction | None, dict[str, SegmentationMap]]:
    """Return the predictions of the first and last pass (None for a plain backbone), or the predicted pixel classes."""
    if viewer.classes is None or not viewer.model.objective.class_scores:
        return None, None, {}
    if viewer.model.objective.dense:
        predicted = predict_pixel_classes(viewer.model, viewer.images, sample.image)
        segments = {"predicted": SegmentationMap(predicted.numpy(), viewer.classes)}
        if sample.classes is not None:
            segments["labelled"] = SegmentationMap(sample.classes, viewer.classes)
        return None, None, segments
    last = get_top_prediction(output.logits, viewer)
    if output.last is None:
        return last, None, {}
    assert output.passes.plain is not None  # recorders run the first pass to its end
    # The prediction of pass one uses the head that was trained on the last pass.
    return get_top_prediction(viewer.model.compute_outputs(output.passes.plain.pooled), viewer), last, {}


def get_top_prediction(logits: Tensor, viewer: AttentionViewer) -> TopPrediction:
    """Return the prediction for the first image of a batch: the viewer's chosen output, or the most likely class."""
    assert viewer.classes is not None
    objective = viewer.model.objective
    scores = objective.compute_scores(logits)[0]
    index = int(scores.argmax()) if viewer.output is None else viewer.output
    name, score = viewer.classes[index], float(scores[index])
    if objective.target == "number":
        return TopPrediction(name, value=score)
    thresholds = objective.describe_outputs().get("thresholds")
    return TopPrediction(name, score, given=thresholds is None or score >= thresholds[index])
