"""Construction of backbones from timm's models of any family that a plugin supports."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from torch import nn

from toast_cli.plugin import Backbone, Preprocessing, ToastError, UsageError, wrap_model
from toast_timm.classifier import load_pretrained_classifier
from toast_timm.image_size import check_image_size
from toast_timm.loading import (
    ModelSource,
    build_module,
    get_model_name,
    get_preprocessing,
    list_classifiers,
    require_rgb_input,
)
from toast_timm.options import TimmOptions
from toast_timm.refusals import explain_refusal
from toast_timm.weights_file import describe_normalization

BackboneT = TypeVar("BackboneT", bound=Backbone)
UNEXPECTED_ARGUMENT = re.compile(r"unexpected keyword argument(?:\(s\): \[| )'(\w+)'")


def build_any_model(model: str, options: TimmOptions) -> Backbone:
    """Build a timm model by its timm name, without its classifier, and find its family.

    Raises:
        UsageError: timm has no such model, the weights file does not exist, or an option does not fit the model.
        ToastError: The weights cannot be loaded, or no plugin can steer the model.
    """
    source: ModelSource = {"model": model, "weights": options.weights, "family": "a timm model", "named": ("*",)}
    module = _build_with_accepted_arguments(source, options)
    check_image_size(module, options)
    backbone = _find_family(module, model)
    backbone.origin, backbone.unused_parts = None, ()
    backbone.classifier = partial(load_pretrained_classifier, **source)
    if options.image_shape is not None and backbone.preprocessing is not None:
        backbone.preprocessing = replace(backbone.preprocessing, image_size=options.image_shape)
    if backbone.preprocessing is not None:
        backbone.normalization_note = describe_normalization(model, options.weights, backbone.preprocessing)
    return backbone


def _find_family(module: nn.Module, model: str) -> Backbone:
    """Return the backbone of a timm model, with the first family that can steer it.

    Raises:
        ToastError: No plugin can steer the model. A reason recorded for its class is preferred to the generic plugin's.
    """
    refusal: ToastError | None = None
    try:
        backbone: Backbone | None = wrap_model(module, library="timm")
    except ToastError as error:
        if error.code not in ("backbone.cannot-steer", "backbone.cannot-run") or not explain_refusal(module):
            raise
        backbone, refusal = None, error
    if backbone is None:
        raise ToastError(
            f"No plugin can steer '{model}', a {type(module).__name__}.",
            explain_refusal(module),
            "Find another model: toast backbones --search TEXT. Check it: toast backbones --check NAME.",
            code="backbone.cannot-steer",
        ) from refusal
    return backbone


def make_wrap(
    build: Callable[[Any, Preprocessing], BackboneT],
    kinds: type[nn.Module] | tuple[type[nn.Module], ...],
    get_image_size: Callable[[Any], tuple[int, int] | None] = lambda _: None,
    prefix: str = "timm",
) -> Callable[[Any], BackboneT | None]:
    """Return the function from a timm model of these classes to its backbone, and from any other module to None.

    `get_image_size` returns the (height, width) that a model was built for, or None: that of its configuration. The
    function raises a UsageError for models that do not read RGB images, and what `build` and `get_image_size` raise.
    """

    def wrap(module: Any) -> BackboneT | None:
        if not isinstance(module, kinds):
            return None
        backbone = build(module, get_preprocessing(module, get_image_size(module)))
        set_timm_origin(backbone, module, prefix)
        return backbone

    return wrap


def set_timm_origin(
    backbone: Backbone, module: nn.Module, prefix: str = "timm", *, input_checked: bool = False
) -> None:
    """Record what a wrapped model of a user is: its timm name and image size, and the parts that no pass runs.

    With `input_checked`, the model is known to read RGB images, whatever its first layer reads.

    Raises:
        UsageError: The model does not read RGB images.
    """
    if not input_checked:
        require_rgb_input(module)
    backbone.unused_parts = list_classifiers(module)
    name = get_model_name(module)
    if name is None:
        return
    backbone.origin = {"name": f"{prefix}:{name}"}
    size = backbone.require_preprocessing().image_size
    if size != get_preprocessing(module).image_size:
        backbone.origin = {**backbone.origin, "image_size": [*size]}


def _build_with_accepted_arguments(source: ModelSource, options: TimmOptions) -> nn.Module:
    """Build a model with those of timm's common arguments that its constructor accepts.

    Raises:
        UsageError: `drop_path` is set, and the model has no stochastic depth.
        ToastError: timm cannot build the model.
    """
    arguments: dict[str, Any] = {"drop_path_rate": options.drop_path}
    if options.image_shape is not None:
        arguments["img_size"] = options.image_shape
    while True:
        try:
            return build_module(arguments=arguments, **source)
        except ToastError as error:
            refused = UNEXPECTED_ARGUMENT.search(str(error.__cause__))
            if not isinstance(error.__cause__, TypeError) or refused is None or refused[1] not in arguments:
                raise
            del arguments[refused[1]]
            if refused[1] == "drop_path_rate" and options.drop_path:
                raise UsageError(
                    f"'{source['model']}' has no stochastic depth.",
                    what_to_do="Leave backbone.drop_path out.",
                    code="backbone.no-drop-path",
                ) from error
