"""Models of the Python API: `load` opens a run or an export, `steer` adds TOAST to an existing model."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from toast_cli import registry
from toast_cli.api.classes import to_class_names
from toast_cli.api.steered import Steered
from toast_cli.backbones.base import Backbone
from toast_cli.model.generation import choose_template
from toast_cli.model.model import BackboneSnapshot, BuiltBackbone, Model
from toast_cli.recipe.schema import Recipe
from toast_cli.storage.load_model import LoadedModel, load_model
from toast_cli.utils.constants import PYTHON_DATA
from toast_cli.utils.errors import UsageError


def load(
    run: str | Path,
    weights: str | None = None,
    device: str | torch.device | None = None,
    *,
    backbone: Any = None,
) -> Steered:
    """Load a run or an export, in evaluation mode.

    Args:
        run: A run folder, an adapter folder, an exported safetensors file or an exported hf folder.
        weights: Backbone weights (a file, or the folder of a language model) to use instead of those in the recipe.
        device: Device to load the model to; default: the CPU, or the device of `backbone`.
        backbone: The model that the adapter was trained on, as it was given to `steer`. Its weights are shared, not
            copied, except for an adapter that replaces them. Default: the backbone is built from its recorded name.

    Raises:
        UsageError: The device is not available, or the backbone has no name to build it by and is not given.
        ToastError: The path is not a run or an export, it is damaged, or the backbone weights do not match.
    """
    built = None
    if backbone is not None:
        if weights is not None:
            raise UsageError(
                "weights and backbone cannot be combined: a model has its weights.",
                what_to_do="Leave one of them out.",
                code="weights.not-needed",
            )
        wrapped = _wrap_backbone(backbone)
        built = BuiltBackbone.from_backbone(wrapped).share()
        device = device or next(wrapped.module.parameters()).device
    loaded: LoadedModel = load_model(Path(run), weights, built)
    steered = build_steered(loaded.model, loaded.recipe, loaded.classes, whole=loaded.config.whole)
    try:
        return steered.to(torch.device(device or "cpu"))
    except (RuntimeError, AssertionError) as error:  # torch raises either for an unavailable device
        raise UsageError(
            f"Cannot use the device '{device}'.", str(error).partition("\n")[0], code="device.unavailable"
        ) from error


def build_steered(model: Model, recipe: Recipe, classes: Sequence[str], *, whole: bool = False) -> Steered:
    """Return a model of toast with the interface of the Python API, in evaluation mode.

    `whole` tells that its backbone's weights come from an export and not from the backbone's name.
    """
    template = choose_template(recipe, model.backbone.tokenizer)
    return Steered(model, classes, recipe.images, template, recipe.model_dump(mode="json"), whole).eval()


def steer(model: Any, classes: int | Sequence[str] | None = None, method: str = "toast", **options: Any) -> Steered:
    """Add TOAST to an existing model: a timm ViT or ConvNeXt, or a causal language model of transformers.

    The model is frozen and its weights are shared, not copied. Only methods that change weights or insert layers
    (`full`, `lora`, `peft`) work on a copy. Calling the original model gives the same outputs as before.

    The trained parameters are initialized at random. An image model gets a new head.

    Args:
        model: A model of a registered family.
        classes: Number of classes, or their names in order. None for a language model, which keeps its own head.
        method: Name of a registered method: `toast`, `toast-lite`, `linear`, ...
        options: Options of the method, e.g. `rank=8` or `feedback="late"`.

    Raises:
        UsageError: The model is not of a registered family, the method has no such option, or `classes` is missing.
    """
    from pydantic import ValidationError

    chosen = registry.load_entry(registry.METHODS, method)
    backbone = _wrap_backbone(deepcopy(model) if chosen.alters else model)
    text = backbone.output() is not None
    if text != (classes is None):
        raise UsageError(
            "A language model keeps its own head and takes no classes."
            if text
            else "The argument 'classes' is missing.",
            what_to_do="Remove the argument 'classes'." if text else "Pass classes=10, or the class names in order.",
            code="task.has-own-head" if text else "task.missing-classes",
        )
    names = () if classes is None else to_class_names(classes)
    if "start" in chosen.options.model_fields:
        options = {"start": "random", **options}
    try:
        settings = chosen.options(**{"name": method, **options})
        settings = chosen.complete(settings, "language" if text else "classification")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"Invalid option '{where}' for the method '{method}': {first['msg']}.", code="method.invalid-option"
        ) from error
    task = registry.load_entry(registry.TASKS, "language" if text else "classification")
    stock = BackboneSnapshot.from_backbone(backbone)
    adapted = chosen.build(settings, backbone)
    objective_options = task.options(name="language" if text else "classification")
    objective = task.build(objective_options, backbone, names)
    own = next(backbone.module.parameters())
    values = {
        "backbone": backbone.origin,
        "dataset": PYTHON_DATA,
        "method": settings.model_dump(mode="json"),
        "task": objective_options.model_dump(mode="json"),
    }
    return Steered(Model(adapted, objective, stock).to(device=own.device), names, values=values)


def _wrap_backbone(model: Any) -> Backbone:
    """Wrap a model as a backbone, with the first family that supports it.

    Raises:
        UsageError: No registered family supports the model.
    """
    backbone: Backbone | None = registry.wrap_model(model)
    if backbone is not None:
        return backbone
    families = ", ".join(registry.list_names(registry.FAMILIES))
    raise UsageError(
        f"No registered backbone family supports a {type(model).__name__}.",
        what_to_do=f"Registered families: {families}.",
        code="backbone.unsupported-model",
    )
