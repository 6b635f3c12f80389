"""Inputs for the verification of an export: random inputs, and samples of the run's own data."""

from __future__ import annotations

import torch
from torch import Tensor

from toast_cli.data.base import BatchOptions, DataSet
from toast_cli.export.base import ExportFormat
from toast_cli.export.verification_outputs import has_dynamic_image_size, to_named_inputs
from toast_cli.model.recipe_data import build_batches, open_data
from toast_cli.storage.load_model import LoadedModel
from toast_cli.utils.errors import ToastError

RANDOM_COUNT = 3
REAL_COUNT = 8
REAL_DENSE_COUNT = 2
"""Number of real texts or segmentation images. Each of them has millions of outputs."""

EXTRA_PIXELS = 32
"""Additional pixels of the second random image, for graphs with a dynamic image size."""

EXTRA_TOKENS = 7
"""Additional tokens of the second random texts."""


def make_verification_inputs(
    loaded: LoadedModel, form: ExportFormat
) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """Return random and real inputs for the backbone, and the reasons for missing ones.

    Raises:
        ToastError: The run's classes are in another order than those of its data.
    """
    backbone = loaded.model.backbone
    torch.manual_seed(0)
    inputs = {"random": to_named_inputs(backbone.example(RANDOM_COUNT))}
    if form.graph and "input_ids" in inputs["random"]:
        inputs["other-size"] = _lengthen_texts(inputs["random"])
    elif form.graph and has_dynamic_image_size(loaded.model):
        height, width = backbone.require_preprocessing().image_size
        inputs["other-size"] = {"image": torch.randn(1, 3, height + EXTRA_PIXELS, width + 2 * EXTRA_PIXELS)}
    try:
        data = open_data(loaded.recipe)
        inputs["real"] = _load_real_samples(loaded, data)
    except ToastError as error:
        return inputs, {"real": " ".join(part for part in (error.what, error.why) if part)}
    if data.classes != loaded.classes and sorted(data.classes) == sorted(loaded.classes):
        raise ToastError(
            f"The classes of {loaded.path} are in another order than those of its data.",
            "Predictions would have wrong names.",
            "Restore the original configuration, or train the run again.",
            code="export.class-order",
        )
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
    split = data.splits[next(name for name in ("test", "val", "train") if name in data.splits)]
    count = REAL_COUNT if data.classes and not loaded.model.objective.dense else REAL_DENSE_COUNT
    wanted = BatchOptions(count, shuffle=hasattr(split, "names"))
    batch = next(iter(build_batches(split, recipe, loaded.model.backbone, wanted)))
    named = to_named_inputs(loaded.model.objective.inputs(batch))
    return {key: named[key] for key in ("image", "input_ids", "attention_mask") if key in named}
