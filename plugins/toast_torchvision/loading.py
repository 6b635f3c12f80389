"""Construction of backbones from torchvision's models, with its published weights, a file's, or random ones."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.data import ImageNetInfo
from torch import Tensor, nn
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings

from toast_cli.plugin import (
    Backbone,
    Preprocessing,
    ToastError,
    UsageError,
    announce_licence,
    did_you_mean,
    find_refused_code,
    refuse_lfs_pointers,
    require_regular_file,
)
from toast_timm.classifier import select_classes
from toast_torchvision.convolutional import ResNetBackbone, TorchvisionConvNeXtBackbone
from toast_torchvision.options import TorchvisionModelOptions
from toast_torchvision.published_weights import (
    assume_preprocessing,
    find_published_weights,
    is_weights_name,
    list_published_weights,
    match_weights_file,
    read_weights_preprocessing,
)
from toast_torchvision.swin import TorchvisionSwinBackbone
from toast_torchvision.vit import TorchvisionVitBackbone

BACKBONES: dict[type[nn.Module], type[Backbone]] = {
    models.VisionTransformer: TorchvisionVitBackbone,
    models.SwinTransformer: TorchvisionSwinBackbone,
    models.ConvNeXt: TorchvisionConvNeXtBackbone,
    models.ResNet: ResNetBackbone,
}

WEIGHTS_PAGE = "https://docs.pytorch.org/vision/stable/models.html"


def build_torchvision(model: str, options: TorchvisionModelOptions) -> Backbone:
    """Build a torchvision model by its name.

    Raises:
        UsageError: torchvision has no such model, the weights file does not exist, or the image size does not fit.
        ToastError: The weights cannot be loaded, or the model cannot be steered.
    """
    kind = _find_kind(model)
    weights = find_published_weights(model, options.weights)
    if options.weights is None and weights is None:
        raise ToastError(
            f"torchvision publishes no weights for '{model}'.",
            what_to_do="Give your own: --weights FILE. --weights none starts from random weights.",
            code="weights.not-published",
        )
    tensors, note = None, None
    if options.weights is None or is_weights_name(model, options.weights):
        _announce_licence(model, weights)
        tensors = _download(model, weights)
    elif options.weights != "none":
        file = Path(options.weights).expanduser()
        tensors = _read_file(file, model)
        weights, note = match_weights_file(model, file, tensors)
    arguments = {}
    if issubclass(kind, models.VisionTransformer):
        if options.image_shape is not None:
            arguments["image_size"] = _require_square(options.image_shape)
        elif weights is not None:
            arguments["image_size"] = read_weights_preprocessing(weights).image_size[0]
    module = models.get_model(model, **({"weights": None} if weights is not None else {}), **arguments)
    if tensors is not None:
        _load_tensors(module, tensors, model, str(options.weights or weights))
    preprocessing = assume_preprocessing(module) if weights is None else read_weights_preprocessing(weights)
    if options.image_shape is not None:
        preprocessing = replace(preprocessing, image_size=options.image_shape)
    backbone = _make_backbone(module.eval(), preprocessing)
    if weights is None and tensors is not None:
        note = preprocessing.format_assumption(f"torchvision publishes no weights for '{model}'")
    backbone.normalization_note = note
    backbone.classifier = partial(_select_classifier, backbone, model)
    return backbone


def wrap_torchvision(module: nn.Module) -> Backbone:
    """Return the backbone of a torchvision model.

    Raises:
        ToastError: The model cannot be steered.
    """
    preprocessing = assume_preprocessing(module)
    backbone = _make_backbone(module, preprocessing)
    why = "a torchvision model does not record the preprocessing of its weights"
    backbone.notes = (preprocessing.format_assumption(why),)
    return backbone


def _make_backbone(module: nn.Module, preprocessing: Preprocessing) -> Backbone:
    for kind, wrapper in BACKBONES.items():
        if isinstance(module, kind):
            return wrapper(module, preprocessing)  # type: ignore[call-arg]
    raise _build_unsteerable_error(type(module).__name__)


def _build_unsteerable_error(name: str) -> ToastError:
    return ToastError(
        f"No plugin can steer '{name}' of torchvision.",
        "Those that can be steered are ViT, Swin, ConvNeXt and ResNet, with ResNeXt and Wide ResNet.",
        f"Find a model of timm that can be steered: toast backbones --search {name.split('_')[0].lower()}",
        code="backbone.cannot-steer",
    )


def _find_kind(model: str) -> type[nn.Module]:
    """Return the class of a model, without building it: detectors load the weights of their backbones.

    Raises:
        UsageError: torchvision has no such model.
        ToastError: The model cannot be steered.
    """
    if model not in models.list_models():
        raise UsageError(
            f"torchvision has no model '{model}'.",
            what_to_do=did_you_mean(model, models.list_models(models)),
            code="backbone.unknown-model",
        )
    builder = models.get_model_builder(model)
    declared: Any = builder.__annotations__.get("return", nn.Module)
    name = str(getattr(declared, "__name__", declared)).rpartition(".")[2]
    found = {each.__name__: each for each in BACKBONES}
    if name not in found and builder.__module__.startswith("torchvision."):
        raise _build_unsteerable_error(model)
    return found.get(name, nn.Module)


def _require_square(size: tuple[int, int]) -> int:
    height, width = size
    if height != width:
        raise UsageError(
            f"torchvision's ViT reads square images, and backbone.image_size is {height} × {width}.",
            what_to_do="Set one side, or choose a ViT of timm: --backbone vit_b16",
            code="backbone.wrong-image-size",
        )
    return height


def _announce_licence(model: str, weights: Any) -> None:
    """Log a line on the licence of published weights that are about to be downloaded."""
    name = weights.url.rpartition("/")[2]
    if not (Path(torch.hub.get_dir()) / "checkpoints" / name).is_file():
        page = weights.meta.get("license", WEIGHTS_PAGE)
        licence = "other" if "license" in weights.meta else None
        announce_licence(f"torchvision:{model} ({weights.name})", licence, page)


def _download(model: str, weights: Any) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
        return tensors
    except Exception as error:  # the network may raise anything
        raise ToastError(
            f"The weights of '{model}' could not be downloaded.",
            f"{weights.url}: {type(error).__name__}: {' '.join(str(error).split())[:160]}",
            "With a network, run again. Without one, download that file elsewhere and give it as --weights FILE, or "
            "put it into hub/checkpoints in TORCH_HOME. --weights none starts from random weights.",
            code="weights.cannot-download",
        ) from error


def _read_file(path: Path, model: str) -> dict[str, Tensor]:
    if not path.is_file():
        what = f"{path} is not a weights file." if path.exists() else f"There is no weights file {path}."
        names = ", ".join(getattr(list_published_weights(model), "__members__", ()))
        raise UsageError(
            what,
            what_to_do="Check --weights (or backbone.weights in the recipe)."
            + f" torchvision's own are {names}." * bool(names),
            code="weights.missing-file",
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(require_regular_file(path))
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        found: dict[str, Tensor] = tensors.get("model", tensors.get("state_dict", tensors))
        return found
    except Exception as error:  # readers of a foreign or damaged file may raise anything
        refuse_lfs_pointers(path)
        if code := find_refused_code(path, error):
            raise ToastError(
                f"{path} was not loaded: it holds more than weights.",
                f"It refers to {code}. Only tensors are read, because anything else could run code.",
                "Save only the model's state_dict, preferably as safetensors.",
                code="weights.unsafe-file",
            ) from error
        raise _build_wrong_weights_error(str(path), model, error) from error


def _load_tensors(module: Any, tensors: dict[str, Tensor], model: str, source: str) -> None:
    try:
        if isinstance(module, models.VisionTransformer):
            tensors = dict(interpolate_embeddings(module.image_size, module.patch_size, dict(tensors)))
        found = module.load_state_dict(tensors, strict=False)
        last = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)][-1]  # the classifier
        lacking = [name for name in found.missing_keys if name.rpartition(".")[0] != last]
        if lacking or found.unexpected_keys:
            word, names = ("lacks", lacking) if lacking else ("has", found.unexpected_keys)
            raise ValueError(f"The file {word} {', '.join(names[:3])}{', …' * (len(names) > 3)}.")
    except (RuntimeError, ValueError, KeyError, AttributeError) as error:
        raise _build_wrong_weights_error(source, model, error) from error


def _build_wrong_weights_error(source: str, model: str, error: Exception) -> ToastError:
    return ToastError(
        f"{source} does not hold the weights of '{model}', or is damaged.",
        " ".join(str(error).split())[:300],
        "Give the --backbone that the file was made for, or download the file again.",
        code="weights.wrong-model",
    )


def _select_classifier(backbone: Backbone, model: str, classes: tuple[str, ...]) -> nn.Linear:
    """Return the model's own classifier, with one row per class of the data set.

    Raises:
        UsageError: The classifier does not know the classes.
    """
    (layer,) = backbone.unused_parts
    assert isinstance(layer, nn.Linear)
    names = ImageNetInfo().label_names() if layer.out_features == ImageNetInfo().num_classes() else []
    return select_classes(layer, names, model, classes)
