"""The classifier that a timm model came with, cut to the classes of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from toast_cli.plugin import UsageError
from toast_timm.loading import build_module

MAX_LISTED_CLASSES = 3


def load_pretrained_classifier(
    classes: tuple[str, ...], model: str, weights: str | None, family: str, named: Sequence[str]
) -> nn.Linear:
    """The last layer of the model as it was trained, a row per class of the data set.

    Where the data set has as many classes as the layer has rows, they are taken to be in the same order, as sorted
    ImageNet folders are. Fewer are looked up by their ImageNet names (`n01440764`).

    Raises:
        UsageError: the model has no such layer, or does not know the classes.
        ToastError: its weights cannot be had.
    """
    whole: Any = build_module(model, weights, {"num_classes": None}, family, named)
    layer = whole.get_classifier()
    if not isinstance(layer, nn.Linear):
        raise UsageError(
            f"'{model}' has no classifier of its own.", what_to_do="Use task.head=new.", code="task.no-classifier"
        )
    if len(classes) == layer.out_features:
        return layer
    subset = infer_imagenet_subset(whole)
    names = ImageNetInfo(subset).label_names() if subset else []
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise UsageError(
            f"The classifier of '{model}' has {layer.out_features} classes and the data {len(classes)}.",
            f"These are none of its classes by name: {', '.join(unknown[:MAX_LISTED_CLASSES])}"
            f"{', …' * (len(unknown) > MAX_LISTED_CLASSES)}.",
            "Use task.head=new.",
            code="task.classifier-mismatch",
        )
    rows = [names.index(name) for name in classes]
    cut = nn.Linear(layer.in_features, len(rows), bias=layer.bias is not None)
    with torch.no_grad():
        cut.weight.copy_(layer.weight[rows])
        if layer.bias is not None:
            cut.bias.copy_(layer.bias[rows])
    return cut
