"""The weights that torchvision publishes for a model, their preprocessing, and that of files which do not record it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision import models

from toast_cli.plugin import Preprocessing
from toast_timm.crop import compute_crop_pct

IMAGENET = Preprocessing((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", 0.875)
"""The preprocessing of most of torchvision's weights."""


def list_published_weights(model: str) -> Any:
    """Return the enumeration of torchvision's weights of a model, or no weights for a model of another author."""
    try:
        return models.get_model_weights(model)
    except ValueError:
        return {}


def is_weights_name(model: str, weights: str) -> bool:
    """Return whether a model has published weights of this name."""
    return weights in getattr(list_published_weights(model), "__members__", ())


def find_published_weights(model: str, name: str | None) -> Any:
    """Return torchvision's weights of this name, or the default ones for any other; None if it has none."""
    published = list_published_weights(model)
    if name is not None and is_weights_name(model, name):
        return published[name]
    return getattr(published, "DEFAULT", None)


def match_weights_file(model: str, file: Path, tensors: Mapping[str, Tensor]) -> tuple[Any, str | None]:
    """Return the published weights that a file holds or is most like, and where its preprocessing comes from.

    A file that torchvision publishes is known by its name. Position embeddings of a ViT tell the size of the images.
    The sentence is None if torchvision publishes one set of weights, or none, for the model.
    """
    published = list(list_published_weights(model))
    for each in published:
        if each.url.rpartition("/")[2] == file.name:
            return each, f"Weights from {file}. Images are prepared as for torchvision's {each.name}."
    prepared = {each: read_weights_preprocessing(each) for each in published}
    side = _find_image_side(tensors)
    fitting = [each for each in published if side is None or prepared[each].image_size == (side, side)] or published
    default = find_published_weights(model, None)
    chosen = default if default in fitting or not fitting else fitting[0]
    others = [f"{prepared[each].format_summary()} ({each.name})" for each in published if each is not chosen]
    if chosen is None or all(prepared[each] == prepared[chosen] for each in published):
        return chosen, None
    origin = f", as for {chosen.name}. Other weights of this model need {'; '.join(others)}"
    return chosen, prepared[chosen].format_assumption(f"{file} does not record how images are prepared", origin)


def _find_image_side(tensors: Mapping[str, Tensor]) -> int | None:
    """Return the side of the images of a ViT from the number of its position embeddings; None for other networks."""
    positions, patches = tensors.get("encoder.pos_embedding"), tensors.get("conv_proj.weight")
    if positions is None or patches is None:
        return None
    return isqrt(positions.shape[1] - 1) * patches.shape[-1]


def assume_preprocessing(module: nn.Module) -> Preprocessing:
    """Return the usual preprocessing, for images of the size that the model was built for."""
    side: int | None = getattr(module, "image_size", None)
    return IMAGENET if side is None else replace(IMAGENET, image_size=(side, side))


def read_weights_preprocessing(weights: Any) -> Preprocessing:
    """Return the preprocessing of published weights."""
    steps = weights.transforms()
    crop = steps.crop_size[0]
    return Preprocessing(
        (crop, crop),
        tuple(steps.mean),
        tuple(steps.std),
        steps.interpolation.value,
        compute_crop_pct(crop, steps.resize_size[0]),
    )
