"""Tiny vision models of transformers: configurations in a temporary folder, with the image processor of each."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
STAGES: dict[str, Any] = {"hidden_sizes": [6, 8, 10, 12], "depths": [1, 1, 1, 1], "image_size": 32}
TEXT: dict[str, Any] = {
    **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20},
    **{"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2},
}
PROCESSOR: dict[str, Any] = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 36},
    "crop_size": {"height": 32, "width": 32},
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "dinov3_vit": {"model_type": "dinov3_vit", **SHAPE, "num_register_tokens": 2, "use_gated_mlp": True},
    "vit": {"model_type": "vit", **SHAPE},
    "dinov2": {"model_type": "dinov2", **SHAPE, "use_swiglu_ffn": True},
    "dinov2_with_registers": {"model_type": "dinov2_with_registers", **SHAPE},
    "siglip": {"model_type": "siglip", "vision_config": SHAPE, "text_config": TEXT},
    "siglip_vision": {"model_type": "siglip_vision_model", **SHAPE, "vision_use_head": False},
    "siglip2": {"model_type": "siglip2_vision_model", **SHAPE, "num_patches": 16},
    "clip": {"model_type": "clip", "vision_config": SHAPE, "text_config": TEXT, "projection_dim": 8},
    "clip_vision": {"model_type": "clip_vision_model", **SHAPE},
    "deit": {"model_type": "deit", **SHAPE},
    "beit": {"model_type": "beit", **SHAPE, "use_relative_position_bias": True},
    "vit_mae": {"model_type": "vit_mae", **SHAPE},
    "ijepa": {"model_type": "ijepa", **SHAPE},
    "convnextv2": {"model_type": "convnextv2", **STAGES},
    "dinov3_convnext": {"model_type": "dinov3_convnext", **STAGES, "layer_scale_init_value": 1.0},
    "resnet": {"model_type": "resnet", **STAGES, "embedding_size": 6, "layer_type": "basic"},
}


def write_configuration(kind: str, folder: Path) -> Path:
    """Write the files that define a model except for its weights, and return the folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIGURATIONS[kind]), encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR), encoding="utf-8")
    return folder


_ROOT = Path(tempfile.mkdtemp(prefix="toast-tiny-"))
atexit.register(shutil.rmtree, _ROOT, ignore_errors=True)

MODELS = [f"hf:{write_configuration(kind, _ROOT / kind)}" for kind in CONFIGURATIONS]
