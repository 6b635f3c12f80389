"""Construction of timm models with weights from the hub, from a file, or random."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import timm
from timm.data import resolve_model_data_config
from torch import nn

from toast_cli.plugin import Preprocessing, ToastError, UsageError, announce_licence, did_you_mean
from toast_timm.hub_availability import is_cached, use_offline_if_unreachable
from toast_timm.weights_file import load_from_path, truncate

RGB_CHANNELS = 3


class ModelSource(TypedDict):
    """The model and the source of its weights: the arguments of `build_module` except for `arguments`."""

    model: str
    weights: str | None
    family: str
    named: Sequence[str]


def build_module(
    model: str, weights: str | None, arguments: dict[str, Any], family: str, named: Sequence[str]
) -> nn.Module:
    """Build a timm model by its timm name, without its classifier unless `arguments` set `num_classes` (None: its own).

    Args:
        model: timm's name of the model, with or without the tag of its weights.
        weights: Weights file or folder of timm, "none" for random weights, None for the hub.
        arguments: Further arguments of timm's constructor.
        family: Name of this kind of model in error messages, for example "a ViT".
        named: Patterns of the timm names that are offered if there is no such model.

    Raises:
        UsageError: timm has no such model, or the weights file does not exist.
        ToastError: The hub cannot be reached, or the file has another model's weights.
    """
    if not timm.is_model(model.split(".")[0]):
        if Path(model).expanduser().is_dir():
            raise UsageError(
                f"'{model}' is a folder, not a model of timm.",
                what_to_do=f"For a folder of timm: --backbone timm:NAME --weights {model}. For one of transformers: "
                f"--backbone hf:{model}.",
                code="backbone.unknown-model",
            )
        known = [name for pattern in named for name in timm.list_models(pattern)]
        raise UsageError(
            f"timm has no model '{model}'.", what_to_do=did_you_mean(model, known), code="backbone.unknown-model"
        )
    arguments = {"num_classes": 0, **arguments}
    if arguments["num_classes"] is None:
        del arguments["num_classes"]
    if weights is None:
        return _load_from_hub(model, arguments, family)
    if weights == "none":
        module = _create_model(model, arguments, family)
    else:
        create = partial(_create_model, arguments=arguments, family=family)
        module = load_from_path(model, Path(weights).expanduser(), create)
    recorded: Any = getattr(module, "pretrained_cfg", None)
    if isinstance(recorded, dict):
        recorded["license"] = None  # timm's record is about the weights that it publishes
    return module


def require_rgb_input(module: nn.Module) -> None:
    """Check that the first layer of a model reads the three channels of RGB.

    Raises:
        UsageError: It reads another number of channels.
    """
    first = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    channels = getattr(module, "in_chans", RGB_CHANNELS) if first is None else first.in_channels
    if channels != RGB_CHANNELS:
        raise UsageError(
            f"This {type(module).__name__} reads images of {channels} channel{'s' * (channels > 1)}.",
            "Images are read as RGB, which has 3; grey images too.",
            "Build the model with in_chans=3. timm converts pretrained weights.",
            code="backbone.wrong-channels",
        )


def get_preprocessing(module: nn.Module, size: tuple[int, int] | None = None) -> Preprocessing:
    """Return the preprocessing of timm's configuration of a model; `size` (height, width) replaces its image size."""
    config = resolve_model_data_config(module)
    height, width = size or config["input_size"][-2:]
    return Preprocessing(
        (height, width),
        tuple(config["mean"]),
        tuple(config["std"]),
        # "random" is for training alone: timm has no evaluation transform with it.
        "bicubic" if config["interpolation"] == "random" else config["interpolation"],
        config["crop_pct"],
        # Like timm, take any other name for "center".
        config["crop_mode"] if config["crop_mode"] in ("squash", "border") else "center",
    )


def get_licence(module: nn.Module) -> str | None:
    """Return the licence of weights that timm publishes, else None."""
    config = getattr(module, "pretrained_cfg", None) or {}
    return config.get("license") if isinstance(config, dict) else getattr(config, "license", None)


def get_model_name(module: nn.Module) -> str | None:
    """Return timm's name of a model, with the tag of its weights; None if timm did not build it by a name."""
    config: Any = getattr(module, "pretrained_cfg", None) or {}
    name, tag = config.get("architecture"), config.get("tag")
    if not name or not timm.is_model(name):
        return None
    return f"{name}.{tag}" if tag else str(name)


def list_classifiers(module: Any) -> list[nn.Module]:
    """Return the layers of a timm model that give its own classes, of which a distilled model has two."""
    if not hasattr(module, "get_classifier"):  # encoders of language models
        return []
    try:
        layers = module.get_classifier()
    except AttributeError:  # a few models look inside of their head, which is an identity without a classifier
        return []
    return [layer for layer in (layers if isinstance(layers, tuple) else (layers,)) if layer is not None]


def _create_model(model: str, arguments: dict[str, Any], family: str, **weights: Any) -> nn.Module:
    try:
        return timm.create_model(model, **weights, **arguments)
    except TypeError as error:
        raise ToastError(
            f"'{model}' cannot be built as {family}.",
            str(error),
            "Choose the plugin of its family.",
            code="backbone.wrong-family",
        ) from error
    except AssertionError as error:
        if "img_size" not in arguments:
            raise
        size = arguments["img_size"]
        height, width = (size, size) if isinstance(size, int) else size
        raise UsageError(
            f"timm cannot build '{model}' for images of {height} × {width} pixels.",
            str(error) or "Its position embeddings or windows do not allow that size.",
            "Choose another backbone.image_size: square, or a multiple of the default.",
            code="backbone.wrong-image-size",
        ) from error


def _load_from_hub(model: str, arguments: dict[str, Any], family: str) -> nn.Module:
    _announce_licence(model)
    try:
        with use_offline_if_unreachable():
            return _create_model(model, arguments, family, pretrained=True)
    except ToastError:
        raise
    except Exception as error:  # the hub and the network may raise anything
        config = timm.get_pretrained_cfg(model)
        if config is None or not config.has_weights:
            raise ToastError(
                f"timm publishes no weights for '{model}'.",
                what_to_do="Give your own: --weights FILE. --weights none starts from random weights.",
                code="weights.not-published",
            ) from error
        where = getattr(config, "hf_hub_id", None) or getattr(config, "url", None) or "the hub"
        raise ToastError(
            f"The weights of '{model}' could not be downloaded.",
            f"{where}: {type(error).__name__}: {truncate(str(error), 160)}",
            f"With a network, run again. Without one, download model.safetensors of {where} elsewhere and give it as "
            "--weights FILE (safetensors, .pth or .npz), or put it into the cache in HF_HOME. "
            "--weights none starts from random weights.",
            code="weights.cannot-download",
        ) from error


def _announce_licence(model: str) -> None:
    """Log a line on the licence of published weights that are about to be downloaded, unless it is permissive."""
    config = timm.get_pretrained_cfg(model)
    if config is None or not config.has_weights or (config.hf_hub_id and is_cached(config.hf_hub_id)):
        return
    name = f"{config.architecture}.{config.tag}" if config.tag else model
    page = f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else str(config.url)
    announce_licence(name, config.license, page)
