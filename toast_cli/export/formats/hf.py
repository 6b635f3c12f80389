"""`hf`: a folder that transformers loads after `toast_cli.register()`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toast_cli.export.base import ExportFormat, ExportRequest, ExportRunner, Outputs
from toast_cli.export.redact_paths import redact_recipe

if TYPE_CHECKING:
    from torch import Tensor

    from toast_cli.backbones.base import Preprocessing
    from toast_cli.backbones.image_options import ImageOptions
    from toast_cli.storage.load_model import LoadedModel


def write_hf(loaded: LoadedModel, wanted: ExportRequest, path: Path) -> None:
    """Write the configuration, the weights, the image processor or tokenizer, and a model card."""
    import torch

    from toast_cli.export.hf_model import WEIGHTS, build_hf_config
    from toast_cli.storage.adapter import save_adapter_file
    from toast_cli.storage.model_card import format_transformers_card
    from toast_cli.utils.files import write_json, write_text

    dtype = getattr(torch, wanted.dtype)
    model = loaded.model
    config = replace(
        loaded.config,
        recipe=redact_recipe(loaded.config.recipe),
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
    backbone = model.backbone
    if backbone.preprocessing is not None:
        processor = build_image_processor_config(
            backbone.preprocessing, loaded.recipe.images, whole=model.objective.dense
        )
        write_json(path / "preprocessor_config.json", processor)
    if backbone.tokenizer is not None:
        backbone.tokenizer.save_pretrained(path)
    write_text(path / "README.md", format_transformers_card(loaded, config.recipe, wanted.dtype, folded=config.folded))


def reopen_hf(wanted: ExportRequest, path: Path) -> ExportRunner:
    """Load the export with transformers' Auto classes."""
    import transformers

    from toast_cli.export.hf_model import register

    register()
    architecture = json.loads((path / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    auto: Any = getattr(transformers, architecture.replace("ToastFor", "AutoModelFor"))
    model = auto.from_pretrained(path)

    def run(named: dict[str, Tensor]) -> Outputs:
        inputs = {{"image": "pixel_values"}.get(name, name): tensor for name, tensor in named.items()}
        return {"logits": model(**inputs).logits}

    return run


def build_image_processor_config(preprocessing: Preprocessing, images: ImageOptions, whole: bool) -> dict[str, Any]:
    """Return the image processor configuration of transformers: resize the shorter edge, center-crop, normalize.

    With `whole`, or if the run squashes images, they are resized to the input size without cropping.
    """
    height, width = preprocessing.image_size
    shorter = images.resize or int(min(height, width) / preprocessing.crop_pct)
    mean, std = images.normalization(preprocessing.mean, preprocessing.std)
    whole = whole or images.squash
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": height, "width": width} if whole else {"shortest_edge": shorter},
        "resample": {"nearest": 0, "bilinear": 2, "bicubic": 3}[preprocessing.interpolation],
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
)
