"""Construction of backbones from vision models of transformers: from a folder, the hub, a file, or random."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi, constants
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig, PreTrainedModel
from transformers.backbone_utils import BackboneMixin
from transformers.utils import logging

from toast_cli.plugin import (
    Backbone,
    Preprocessing,
    ToastError,
    UsageError,
    announce_licence,
    find_refused_code,
    refuse_lfs_pointers,
    require_regular_file,
    wrap_model,
)
from toast_hf_vision.backbone import HfVisionBackbone, to_sides
from toast_hf_vision.convolutional import LAYOUTS, HfStagedBackbone
from toast_hf_vision.options import HfVisionOptions
from toast_hf_vision.preprocessing import (
    GREY,
    PROCESSOR_FILE,
    describe_preprocessing,
    load_processor,
    read_preprocessing,
)
from toast_hf_vision.structure import build_unsteerable_error, find_encoder
from toast_timm.hub_availability import TIMEOUT_SECONDS, is_cached, use_offline_if_unreachable
from toast_transformers.folders import build_missing_config_error, build_unavailable_error
from toast_transformers.hub_lookup import looks_like_folder, require_model_source

CONFIG_FILE = "config.json"

WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
"""Suffixes of files with weights. All but the first are read by torch, tensors alone."""

DEFAULT_SIDE = 224
"""Image size of a model whose configuration has none."""


def build_hf_vision(source: str, options: HfVisionOptions) -> Backbone:
    """Build the vision encoder of a Hugging Face id or a folder, without text tower and classifier.

    Args:
        source: Hugging Face id, or folder in the layout of transformers.
        options: Weights and image size.

    Raises:
        UsageError: The folder or the file does not exist or holds no model.
        ToastError: The model cannot be loaded, is damaged, needs code of its own, or cannot be steered.
    """
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    place, file = source, None
    if options.weights not in (None, "none"):
        given = Path(options.weights).expanduser()
        if given.suffix in WEIGHTS_SUFFIXES or given.is_file():
            file = given
        elif not (given / CONFIG_FILE).is_file():
            raise build_missing_config_error(given)
        else:
            place = str(given)
    with use_offline_if_unreachable():
        if options.weights is None:
            _announce_licence(place)
        config = _load_config(place)
        kind = _find_class(config)
        settings = load_processor(place)
        if options.weights == "none":
            with _quiet():
                module = kind._from_config(config, dtype=torch.float32)
        else:
            module = _load_file(kind, config, source, file) if file else _load_folder(kind, config, place)
    backbone = _make_backbone(module.eval(), settings, options.image_shape)
    backbone.normalization_note = describe_preprocessing(place, file, options.weights, settings, backbone)
    return backbone


def wrap_hf_vision(module: Any) -> Backbone | None:
    """Return the backbone of a vision model of transformers, or of the image tower of one for images and texts.

    Raises:
        ToastError: The model reads images and cannot be steered.
    """
    if not isinstance(module, PreTrainedModel) or module.get_output_embeddings() is not None:
        return None
    if module.config.model_type == "timm_wrapper":
        wrapped: Backbone | None = wrap_model(module.get_submodule("timm_model"), library="timm")
        return wrapped
    encoder = find_encoder(module)
    if encoder is None:
        if module.main_input_name != "pixel_values":
            return None
        raise build_unsteerable_error(
            module,
            "It decodes what its encoder reads, for example into objects: it has no features of an image to classify.",
        )
    if isinstance(module, BackboneMixin):
        raise build_unsteerable_error(
            module, "It returns the maps of several layers, without pooled features. AutoModel builds the same network."
        )
    place = module.config.name_or_path
    with use_offline_if_unreachable():
        settings = load_processor(place)
    backbone = _make_backbone(encoder, settings, None)
    if settings is None:
        where = f"{place} has no {PROCESSOR_FILE}" if place else f"This model was built without a {PROCESSOR_FILE}"
        backbone.notes = (backbone.require_preprocessing().format_assumption(where),)
    if place:
        source = str(Path(place).absolute()) if Path(place).is_dir() else place
        backbone.origin = {"name": f"hf:{source}"}
    return backbone


def _make_backbone(module: PreTrainedModel, settings: dict[str, Any] | None, size: tuple[int, int] | None) -> Backbone:
    if getattr(module.config, "num_channels", 3) != 3:
        raise build_unsteerable_error(module, f"It reads images of {module.config.num_channels} channels, not RGB.")
    own = to_sides(getattr(module.config, "image_size", None) or _guess_size(module.config))
    preprocessing = Preprocessing(own, GREY, GREY, crop_mode="squash")
    if settings is not None:
        preprocessing = read_preprocessing(settings, own)
    if size is not None:
        preprocessing = replace(preprocessing, image_size=size)
    backbone: HfVisionBackbone | HfStagedBackbone
    if module.config.model_type in LAYOUTS:
        backbone = HfStagedBackbone(module, preprocessing)
    else:
        if size is not None and hasattr(module.config, "patch_size"):
            _require_whole_patches(size, to_sides(module.config.patch_size))
        backbone = HfVisionBackbone(module, preprocessing)
    backbone.definition = {CONFIG_FILE: module.config.to_json_string(use_diff=True)}
    if settings is not None:
        backbone.definition = {**backbone.definition, PROCESSOR_FILE: json.dumps(settings, indent=2, sort_keys=True)}
    return backbone


def _guess_size(config: Any) -> Any:
    """Return the image size of a configuration that has a number of patches instead (SigLIP 2), or the default."""
    patches = getattr(config, "num_patches", None)
    return DEFAULT_SIDE if patches is None else int(patches**0.5) * to_sides(config.patch_size)[0]


def _require_whole_patches(size: tuple[int, int], patch: tuple[int, int]) -> None:
    """Check that the image size is a multiple of the patch size: the rest would be cropped, and maps would not fit.

    Raises:
        UsageError: A side is not a multiple of the patch size.
    """
    for side, step in zip(size, patch, strict=True):
        if side % step:
            raise UsageError(
                f"backbone.image_size={side} is not a multiple of the patch size of {step} pixels.",
                what_to_do=f"The nearest multiple is {max(round(side / step), 1) * step}.",
                code="backbone.wrong-image-size",
            )


def _announce_licence(repository: str) -> None:
    """Log a line on the licence of weights that are about to be downloaded from the hub."""
    if Path(repository).is_dir() or looks_like_folder(repository):
        return
    if is_cached(repository) or constants.HF_HUB_OFFLINE:
        return
    try:
        card: Any = HfApi().model_info(repository, timeout=TIMEOUT_SECONDS).card_data or {}
    except Exception:  # the download that follows reports the error
        return
    announce_licence(
        repository, card.get("license_name") or card.get("license"), f"https://huggingface.co/{repository}"
    )


def _load_config(place: str) -> Any:
    """Load the configuration of the vision encoder of a model.

    Raises:
        ToastError: The configuration cannot be loaded.
    """
    require_model_source("hf", place)
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    except Exception as error:  # the hub or a foreign folder may raise anything
        raise build_unavailable_error("hf", place, error) from error
    return getattr(config, "vision_config", None) or config


def _find_class(config: Any) -> type[PreTrainedModel]:
    """Return the class of transformers that a configuration belongs to.

    Raises:
        ToastError: There is none, or it does not read images.
    """
    if config.model_type == "timm_wrapper":
        raise ToastError(
            "This is a model of timm.",
            what_to_do=f"Use --backbone timm:{getattr(config, 'architecture', None) or 'NAME'}.",
            code="backbone.wrong-family",
        )
    kind: Any = MODEL_MAPPING.get(type(config), None)
    if kind is None:  # some image towers are not among the automatic classes
        kind = getattr(transformers, type(config).__name__.removesuffix("Config") + "Model", None)
    if isinstance(kind, tuple):
        kind = kind[0]
    if kind is None or kind.main_input_name != "pixel_values":
        raise ToastError(
            f"A model of the type {config.model_type} is not a vision encoder.",
            what_to_do="Choose a vision model. Language models have the prefix llama:.",
            code="backbone.wrong-family",
        )
    found: type[PreTrainedModel] = kind
    return found


class _quiet:
    """Show only errors of transformers inside the block: its warnings are about parts that are not used here."""

    def __enter__(self) -> None:
        self._before = logging.get_verbosity()
        logging.set_verbosity_error()

    def __exit__(self, *_: object) -> None:
        logging.set_verbosity(self._before)


def _load_folder(kind: type[PreTrainedModel], config: Any, place: str) -> PreTrainedModel:
    try:
        with _quiet():
            loaded: Any = kind.from_pretrained(
                place, config=config, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
            )
    except Exception as error:  # the hub, a foreign folder or a damaged file may raise anything
        raise build_unavailable_error("hf", place, error) from error
    module: PreTrainedModel = loaded[0]
    _require_all_weights(module, loaded[1], place)
    return module


def _load_file(kind: type[PreTrainedModel], config: Any, source: str, file: Path) -> PreTrainedModel:
    """Load weights from one file, as 'toast export --what backbone' or the authors write it."""
    try:
        tensors = _read_tensors(file)
        with _quiet():
            loaded: Any = kind.from_pretrained(
                None, config=config, state_dict=tensors, dtype=torch.float32, output_loading_info=True
            )
    except FileNotFoundError as error:
        raise UsageError(
            f"There is no weights file {file}.", what_to_do="Check --weights.", code="weights.missing-file"
        ) from error
    except (SafetensorError, RuntimeError, OSError, UnpicklingError, EOFError) as error:
        refuse_lfs_pointers(file)
        if code := find_refused_code(file, error):
            raise ToastError(
                f"{file} was not loaded: it holds more than weights.",
                f"It refers to {code}. Only tensors are read, because anything else could run code.",
                "Save only the model's state_dict, preferably as safetensors.",
                code="weights.unsafe-file",
            ) from error
        raise _build_wrong_weights_error(str(file), source, " ".join(str(error).split())[:300]) from error
    module: PreTrainedModel = loaded[0]
    _require_all_weights(module, loaded[1], str(file))
    return module


def _read_tensors(file: Path) -> dict[str, Any]:
    file = require_regular_file(file)
    if file.suffix == ".safetensors":
        return load_file(file)
    found: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return found


def _require_all_weights(module: PreTrainedModel, report: Any, place: str) -> None:
    """Check that all weights that a pass uses were in the file.

    Raises:
        ToastError: Weights are missing or have another shape.
    """
    lacking = [name for name in report["missing_keys"] if not _is_unused(module, name)]
    lacking += [str(entry[0] if isinstance(entry, tuple) else entry) for entry in report["mismatched_keys"]]
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise _build_wrong_weights_error(
            place, type(module).__name__, f"It lacks {', '.join(sorted(lacking)[:3])}{more}."
        )


def _is_unused(module: nn.Module, name: str) -> bool:
    """Return whether a weight is of a part that no pass runs: a dense pooler, or the token of masked patches."""
    pooler: Any = getattr(module, "pooler", None)
    return name.endswith("mask_token") or (name.startswith("pooler.") and hasattr(pooler, "dense"))


def _build_wrong_weights_error(place: str, model: str, why: str) -> ToastError:
    return ToastError(
        f"{place} does not hold the weights of '{model}'.",
        why,
        "Give the --backbone that the file was made for, or download the file again.",
        code="weights.wrong-model",
    )
