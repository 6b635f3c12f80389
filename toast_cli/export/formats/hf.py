"""`hf`: a folder that transformers loads: by itself if the model runs one pass, else after `toast_cli.register()`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toast_cli.export.base import ExportFormat, ExportRequest, ExportRunner, Outputs
from toast_cli.export.redact_paths import redact_config
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from torch import Tensor

    from toast_cli.backbones.base import Preprocessing
    from toast_cli.backbones.image_options import ImageOptions
    from toast_cli.storage.load_model import LoadedModel


def write_hf(loaded: LoadedModel, wanted: ExportRequest, path: Path) -> None:
    """Write the configuration, the weights, the image processor or tokenizer, and a model card.

    The tokenizer has the format of the run as its chat template, and generation stops where answers end in training.
    With `wanted.merge`, the folder is what transformers itself writes for the backbone with its merged weights.
    """
    if wanted.merge:
        _write_merged_folder(loaded, wanted, path)
        return
    import torch

    from toast_cli.export.hf_model import WEIGHTS, build_hf_config, save_text_settings
    from toast_cli.export.redact_paths import find_base_model
    from toast_cli.storage.adapter import save_adapter_file
    from toast_cli.storage.model_card import format_transformers_card
    from toast_cli.utils.files import write_json, write_text

    dtype = getattr(torch, wanted.dtype)
    model = loaded.model
    backbone = model.backbone
    processor = backbone.preprocessing and build_image_processor_config(
        backbone.preprocessing, loaded.recipe.images, whole=model.objective.dense
    )
    config = replace(
        redact_config(loaded.config),
        whole=True,
        folded=wanted.fold or loaded.config.folded,
    )
    save_adapter_file(
        path / WEIGHTS,
        model,
        config,
        with_backbone=True,
        cast=lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor,
    )
    build_hf_config(model, config).save_pretrained(path)
    if processor is not None:
        write_json(path / "preprocessor_config.json", processor)
    prompt = None if backbone.tokenizer is None else save_text_settings(loaded, path)
    card = format_transformers_card(loaded, config, wanted.dtype, prompt, find_base_model(loaded))
    write_text(path / "README.md", card)


def _write_merged_folder(loaded: LoadedModel, wanted: ExportRequest, path: Path) -> None:
    """Write a plain folder of transformers, and the record with which toast opens it too."""
    import torch

    from toast_cli.export.hf_model import save_merged_model, save_text_settings
    from toast_cli.export.redact_paths import find_base_model
    from toast_cli.storage.card_usage import PromptFormat
    from toast_cli.storage.merged_folder import write_merged_record
    from toast_cli.storage.model_card import format_merged_card
    from toast_cli.utils.files import write_text

    config = redact_config(loaded.config)
    save_merged_model(loaded, getattr(torch, wanted.dtype), path)
    prompt = PromptFormat(None, False)
    if loaded.model.backbone.tokenizer is not None:
        prompt = save_text_settings(loaded, path)
    write_text(path / "README.md", format_merged_card(loaded, config, wanted.dtype, prompt, find_base_model(loaded)))
    write_merged_record(path, config)


def reopen_hf(wanted: ExportRequest, path: Path) -> ExportRunner:
    """Load the export with transformers' Auto classes."""
    import transformers

    if wanted.merge:
        plain = transformers.AutoModelForCausalLM.from_pretrained(path, dtype="float32").eval()
        return lambda named: {"logits": plain(**named, use_cache=False).logits}

    from toast_cli.export.hf_model import register

    register()
    architecture = json.loads((path / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    auto: Any = getattr(transformers, architecture.replace("ToastFor", "AutoModelFor"))
    model = auto.from_pretrained(path)

    def run(named: dict[str, Tensor]) -> Outputs:
        inputs = {{"image": "pixel_values"}.get(name, name): tensor for name, tensor in named.items()}
        return {"logits": model(**inputs).logits}

    return run


def merges_into_backbone(loaded: LoadedModel) -> bool:
    """Return whether a run is a language model of transformers that was trained in its own weights or PEFT's layers."""
    from toast_cli.model.model import NETWORK_PREFIX

    model = loaded.model
    if loaded.recipe.task.name != "language" or not hasattr(model.backbone.module, "save_pretrained"):
        return False
    own = {*model.get_trained_parameters(), *model.get_frozen_additions()}
    return model.adapted.steering is None and all(name.startswith(NETWORK_PREFIX) for name in own)


def build_image_processor_config(preprocessing: Preprocessing, images: ImageOptions, whole: bool) -> dict[str, Any]:
    """Return the image processor configuration of transformers: resize, center-crop and normalize as the run does.

    With `whole`, or if the run squashes images, they are resized to the input size without cropping.

    Raises:
        ToastError: The run pads images, which no image processor of transformers does with a color.
    """
    from toast_cli.data.images.transforms import build_resize

    height, width = preprocessing.image_size
    resize = build_resize(images, preprocessing)
    mean, std = images.normalization(preprocessing.mean, preprocessing.std)
    whole = whole or images.squash
    if resize.rule == "fit" and not whole:
        raise ToastError(
            "This run cannot be exported with an image processor of transformers.",
            "Its backbone pads images to the input size with their mean color (crop mode 'border').",
            "Use --format safetensors and prepare images by toast_cli.load(FILE).prepare.",
            code="export.unsupported-crop",
        )
    squashed = dict(zip(("height", "width"), (height, width) if whole else resize.size, strict=True))
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": squashed if whole or resize.rule == "squash" else {"shortest_edge": min(resize.size)},
        "resample": int(resize.resample),
        "do_center_crop": not whole,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


FORMAT = ExportFormat(
    "",
    ("full",),
    write_hf,
    reopen_hf,
    dict.fromkeys(("float32", "float16", "bfloat16"), 1e-5),  # computes in float32, whatever the stored type
    loads="transformers",
    merges=merges_into_backbone,
)
