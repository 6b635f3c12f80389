"""What an export and its run are compared on: random inputs, and some of the run's own data."""

from __future__ import annotations

import torch
from torch import Tensor

from toast_cli.data.base import BatchOptions, DataSet
from toast_cli.export.base import ExportFormat
from toast_cli.export.verification_outputs import has_dynamic_image_size, to_named_inputs
from toast_cli.model.batches import build_batches, open_data
from toast_cli.storage.load_model import LoadedModel
from toast_cli.utils.errors import ToastError

RANDOM_COUNT = 3
REAL_COUNT = 8
REAL_DENSE_COUNT = 2
"""Of texts, and of images whose every pixel is labelled: they are answered by millions of numbers each."""

EXTRA_PIXELS = 32
"""Pixels that the second random image is wider, where every size can be shown."""

EXTRA_TOKENS = 7
"""Tokens that the second random texts are longer."""


def make_verification_inputs(
    loaded: LoadedModel, form: ExportFormat
) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """Random and real inputs as the backbone takes them, and why there are none of a kind.

    Raises:
        ToastError: the run's classes are those of its data in another order.
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
            f"The classes of {loaded.path} are not in the order of its data.",
            "They are the same names in another order, so every prediction would bear a wrong name.",
            "Restore its configuration, or train it again.",
            code="export.class-order",
        )
    return inputs, {}


def _lengthen_texts(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Texts of more tokens, the first of them padded at its end."""
    ids = torch.cat([named["input_ids"], named["input_ids"][:, :EXTRA_TOKENS]], dim=1)[:2]
    mask = torch.ones_like(ids)
    mask[0, -EXTRA_TOKENS:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _load_real_samples(loaded: LoadedModel, data: DataSet) -> dict[str, Tensor]:
    """A few samples of the run's own data, from all over its split; of a stream, the first.

    Raises:
        ToastError: they cannot be read.
    """
    recipe = loaded.recipe
    split = data.splits[next(name for name in ("test", "val", "train") if name in data.splits)]
    count = REAL_COUNT if data.classes and not loaded.model.objective.dense else REAL_DENSE_COUNT
    wanted = BatchOptions(count, shuffle=hasattr(split, "names"))
    batch = next(iter(build_batches(split, recipe, loaded.model.backbone, wanted)))
    named = to_named_inputs(loaded.model.objective.inputs(batch))
    return {key: named[key] for key in ("image", "input_ids", "attention_mask") if key in named}
