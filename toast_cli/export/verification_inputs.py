"""Inputs for the verification of an export: random inputs, and samples of the run's own data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from toast_cli.data.base import BatchOptions, DataSet
from toast_cli.data.images.transforms import build_transform
from toast_cli.export.base import ExportFormat, ExportRequest
from toast_cli.export.verification_outputs import has_dynamic_image_size, to_named_inputs
from toast_cli.model.recipe_data import build_batches, open_data
from toast_cli.storage.load_model import LoadedModel
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from PIL.Image import Image

RANDOM_COUNT = 3
REAL_COUNT = 8
REAL_DENSE_COUNT = 2
"""Number of real texts or segmentation images. Each of them has millions of outputs."""

REAL_UNRESIZED_COUNT = 4
"""Number of real images at their own size. A photograph of a telephone has 150 MB as float32."""

UNRESIZED_SIZES = ((300, 420), (500, 211), (90, 100))
"""Height and width of the random images for graphs that resize."""

EXTRA_PIXELS = 32
"""Additional pixels of the second random image, for graphs with a dynamic image size."""

EXTRA_TOKENS = 7
"""Additional tokens of the second random texts."""


@dataclass(frozen=True)
class VerificationInputs:
    """Inputs of the run, those of the export, and the reasons for missing ones.

    Args:
        prepared: What the run computes on, by kind (`random`, `real`, ...).
        given: What the export gets: the same, pixels in [0, 1], or images of several sizes, each a batch of its own.
        missing: Kinds that could not be made, with the reason.
    """

    prepared: dict[str, dict[str, Tensor]]
    given: dict[str, list[dict[str, Tensor]]]
    missing: dict[str, str]


def make_verification_inputs(loaded: LoadedModel, form: ExportFormat, wanted: ExportRequest) -> VerificationInputs:
    """Return random and real inputs for the run and for the export.

    Raises:
        ToastError: The run's classes are in another order than those of its data.
    """
    torch.manual_seed(0)
    if wanted.resize:
        return _make_unresized_inputs(loaded)
    inputs, missing = _make_prepared_inputs(loaded, form)
    given = {key: [_restore_pixels(loaded, named) if wanted.normalize else named] for key, named in inputs.items()}
    return VerificationInputs(inputs, given, missing)


def prepare_image(loaded: LoadedModel, wanted: ExportRequest, image: Image) -> tuple[Tensor, Tensor]:
    """Return an upright RGB image as the input of the run and as that of the export, both `[1, 3, H, W]`."""
    transform = build_transform(loaded.recipe.images, loaded.model.backbone.require_preprocessing(), train=False)
    prepared = transform(image)[0][None]
    if wanted.resize:
        return prepared, pil_to_tensor(image)[None].float() / 255
    return prepared, _restore_pixels(loaded, {"image": prepared})["image"] if wanted.normalize else prepared


def open_verification_data(loaded: LoadedModel) -> DataSet:
    """Return the data of a run.

    Raises:
        ToastError: It cannot be opened, or the run's classes are in another order than those of the data.
    """
    data = open_data(loaded.recipe)
    if data.classes != loaded.classes and sorted(data.classes) == sorted(loaded.classes):
        raise ToastError(
            f"The classes of {loaded.path} are in another order than those of its data.",
            "Predictions would have wrong names.",
            "Restore the original configuration, or train the run again.",
            code="export.class-order",
        )
    return data


def _restore_pixels(loaded: LoadedModel, named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return inputs whose images are pixels in [0, 1] instead of normalized."""
    preprocessing = loaded.model.backbone.preprocessing
    if preprocessing is None:
        return named
    mean, std = (torch.tensor(of)[:, None, None] for of in (preprocessing.mean, preprocessing.std))
    return {**named, "image": named["image"] * std + mean}


def _make_unresized_inputs(loaded: LoadedModel) -> VerificationInputs:
    """Return images of several sizes: noise, and a few of the run's own."""
    wanted = ExportRequest("full", normalize=True, resize=True)
    random = [
        to_pil_image(torch.randint(256, (3, height, width), dtype=torch.uint8)) for height, width in UNRESIZED_SIZES
    ]
    images, missing = {"random": random}, dict[str, str]()
    try:
        split = _choose_split(open_verification_data(loaded))
        places = torch.randperm(len(split))[:REAL_UNRESIZED_COUNT].tolist()
        images["real"] = [split.load(place).image for place in places]
    except ToastError as error:
        if error.code == "export.class-order":
            raise
        missing["real"] = " ".join(part for part in (error.what, error.why) if part)
    pairs = {key: [prepare_image(loaded, wanted, image) for image in several] for key, several in images.items()}
    prepared = {key: {"image": torch.cat([ours for ours, _ in several])} for key, several in pairs.items()}
    given = {key: [{"image": theirs} for _, theirs in several] for key, several in pairs.items()}
    return VerificationInputs(prepared, given, missing)


def _choose_split(data: DataSet) -> Any:
    return data.splits[next(name for name in ("test", "val", "train") if name in data.splits)]


def _make_prepared_inputs(
    loaded: LoadedModel, form: ExportFormat
) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """Return random and real inputs for the run, and the reasons for missing ones."""
    backbone = loaded.model.backbone
    inputs = {"random": to_named_inputs(backbone.example(RANDOM_COUNT))}
    if form.graph and "input_ids" in inputs["random"]:
        inputs["other-size"] = _lengthen_texts(inputs["random"])
    elif form.graph and has_dynamic_image_size(loaded.model):
        height, width = backbone.require_preprocessing().image_size
        inputs["other-size"] = {"image": torch.randn(1, 3, height + EXTRA_PIXELS, width + 2 * EXTRA_PIXELS)}
    try:
        inputs["real"] = _load_real_samples(loaded, open_verification_data(loaded))
    except ToastError as error:
        if error.code == "export.class-order":
            raise
        return inputs, {"real": " ".join(part for part in (error.what, error.why) if part)}
    return inputs, {}


def _lengthen_texts(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return two longer texts; the first one is padded at its end."""
    ids = torch.cat([named["input_ids"], named["input_ids"][:, :EXTRA_TOKENS]], dim=1)[:2]
    mask = torch.ones_like(ids)
    mask[0, -EXTRA_TOKENS:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _load_real_samples(loaded: LoadedModel, data: DataSet) -> dict[str, Tensor]:
    """Return a few random samples of the run's own data, or the first ones of a stream.

    Raises:
        ToastError: The samples cannot be read.
    """
    recipe = loaded.recipe
    split = _choose_split(data)
    count = REAL_COUNT if data.classes and not loaded.model.objective.dense else REAL_DENSE_COUNT
    wanted = BatchOptions(count, shuffle=hasattr(split, "names"))
    batch = next(iter(build_batches(split, recipe, loaded.model.backbone, wanted)))
    named = to_named_inputs(loaded.model.objective.inputs(batch))
    return {key: named[key] for key in ("image", "input_ids", "attention_mask") if key in named}
