"""The pretrained classifier of a timm model, reduced to the classes of a data set."""

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
    """Return the pretrained last layer of a model, with one row per class of the data set.

    If the data set has as many classes as the layer has rows, they must be in the same order, as sorted ImageNet
    folders are. Fewer classes are found by their ImageNet names (`n01440764`).

    Raises:
        UsageError: The model has no such layer, or does not know the classes.
        ToastError: The weights cannot be loaded.
    """
    pretrained: Any = build_module(model, weights, {"num_classes": None}, family, named)
    layer = pretrained.get_classifier() if hasattr(pretrained, "get_classifier") else None
    if not isinstance(layer, nn.Linear):
        raise UsageError(
            f"'{model}' has no classifier of its own.", what_to_do="Use task.head=new.", code="task.no-classifier"
        )
    subset = infer_imagenet_subset(pretrained)
    return select_classes(layer, ImageNetInfo(subset).label_names() if subset else [], model, classes)


def select_classes(layer: nn.Linear, names: Sequence[str], model: str, classes: tuple[str, ...]) -> nn.Linear:
    """Return a pretrained last layer with one row per class of the data set.

    Args:
        layer: The layer.
        names: The names of its rows, or none if they are unknown.
        model: The name of the model in messages.
        classes: The classes of the data set. As many as the layer has rows must be in the same order.

    Raises:
        UsageError: The layer does not know the classes.
    """
    if len(classes) == layer.out_features:
        return layer
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise UsageError(
            f"The classifier of '{model}' has {layer.out_features} classes, and the data set has {len(classes)}.",
            f"It has no classes of these names: {', '.join(unknown[:MAX_LISTED_CLASSES])}"
            f"{', …' * (len(unknown) > MAX_LISTED_CLASSES)}.",
            "Use task.head=new.",
            code="task.classifier-mismatch",
        )
    rows = [names.index(name) for name in classes]
    subset_layer = nn.Linear(layer.in_features, len(rows), bias=layer.bias is not None)
    with torch.no_grad():
        subset_layer.weight.copy_(layer.weight[rows])
        if layer.bias is not None:
            subset_layer.bias.copy_(layer.bias[rows])
    return subset_layer
