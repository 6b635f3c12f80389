"""Weights as others publish them: the files of JAX, MAE and DINOv3, and folders; and their normalization."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models._hub import save_for_hf
from torch import Tensor, nn

from toast_cli import registry
from toast_cli.backbones.base import Preprocessing
from toast_cli.backbones.image_options import ImageOptions
from toast_cli.utils.errors import ToastError
from toast_timm.loading import build_module

Tensors = dict[str, Tensor]


def make(name: str, **arguments: Any) -> nn.Module:
    """Return a model of timm in which no two weights are equal, so that a swap is noticed."""
    torch.manual_seed(3)
    module: nn.Module = timm.create_model(name, **arguments)
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.1)
    return module.eval()


def build(name: str, weights: Path) -> Any:
    card = registry.load_backbone_card(name)
    return card.build(card.options(name=name, weights=str(weights)))


def write_mae(module: nn.Module, file: Path) -> None:
    """Write a checkpoint of MAE's pre-training: encoder, mask token and decoder, with optimizer and arguments."""
    state = {key: value for key, value in module.state_dict().items() if not key.startswith("head.")}
    decoder = {key.replace("blocks.", "decoder_blocks."): value for key, value in state.items() if "blocks." in key}
    state |= {"mask_token": torch.zeros(1, 1, 8), "decoder_pos_embed": torch.zeros(1, 5, 8), **decoder}
    more = {"optimizer": {"state": {}}, "epoch": 799, "scaler": {}, "args": argparse.Namespace(lr=0.1)}
    torch.save({"model": state, **more}, file)


def write_npz(module: Any, file: Path) -> None:
    """Write a ViT as the JAX code of its authors does."""
    state = {key: value.numpy() for key, value in module.state_dict().items()}
    heads, found = module.blocks[0].attn.num_heads, {}

    def put(name: str, key: str, kernel: bool = True) -> None:
        found[f"{name}/{'kernel' if kernel else 'scale'}"] = (
            state[f"{key}.weight"].T if kernel else state[f"{key}.weight"]
        )
        found[f"{name}/bias"] = state[f"{key}.bias"]

    found["embedding/kernel"] = state["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    found["embedding/bias"] = state["patch_embed.proj.bias"]
    found["cls"], found["Transformer/posembed_input/pos_embedding"] = state["cls_token"], state["pos_embed"]
    put("Transformer/encoder_norm", "norm", kernel=False)
    for index in range(len(module.blocks)):
        own, block = f"blocks.{index}", f"Transformer/encoderblock_{index}"
        put(f"{block}/LayerNorm_0", f"{own}.norm1", kernel=False)
        put(f"{block}/LayerNorm_2", f"{own}.norm2", kernel=False)
        put(f"{block}/MlpBlock_3/Dense_0", f"{own}.mlp.fc1")
        put(f"{block}/MlpBlock_3/Dense_1", f"{own}.mlp.fc2")
        attention = f"{block}/MultiHeadDotProductAttention_1"
        width = state["cls_token"].shape[-1]
        for place, part in enumerate(("query", "key", "value")):
            rows = slice(place * width, (place + 1) * width)
            found[f"{attention}/{part}/kernel"] = state[f"{own}.attn.qkv.weight"][rows].T.reshape(width, heads, -1)
            found[f"{attention}/{part}/bias"] = state[f"{own}.attn.qkv.bias"][rows].reshape(heads, -1)
        found[f"{attention}/out/kernel"] = state[f"{own}.attn.proj.weight"].T.reshape(heads, -1, width)
        found[f"{attention}/out/bias"] = state[f"{own}.attn.proj.bias"]
    np.savez(file, **found)


def write_dinov3_vit(module: Any, file: Path) -> None:
    """Write a DINOv3 ViT with the names of its authors, the biases and masks that timm leaves out included."""
    found: Tensors = {"mask_token": torch.zeros(1, 24), "rope_embed.periods": torch.ones(4)}
    for key, value in module.state_dict().items():
        key = re.sub(r"gamma_(\d)", r"ls\1.gamma", key).replace("reg_token", "storage_tokens")
        found[key] = value
        if key.endswith("qkv.weight"):
            found[key.replace("weight", "bias")] = torch.zeros(len(value))
            found[key.replace("weight", "bias_mask")] = torch.ones(len(value))
    torch.save(found, file)


def write_dinov3_convnext(module: Any, file: Path) -> None:
    """Write a DINOv3 ConvNeXt with the names of its authors."""
    renames = (
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d+)\.blocks\.(\d+)", r"stages.\1.\2"),
        (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
        (r"conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"^head\.norm\.", "norm."),
    )
    found = {"norms.3.weight": torch.ones(8)}
    for key, value in module.state_dict().items():
        for pattern, replacement in renames:
            key = re.sub(pattern, replacement, key)
        found[key] = value
    torch.save(found, file)


DINOV3_VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 32, "num_classes": 0}
DINOV3_CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 8, 12, 12), "num_classes": 0}
FOREIGN: dict[str, tuple[str, dict[str, Any], str, Callable[[Any, Path], None]]] = {
    "MAE": ("test_vit", {"num_classes": 0}, "mae.pth", write_mae),
    "JAX": ("test_vit", {"num_classes": 0}, "vit.npz", write_npz),
    "DINOv3 ViT": ("vit_small_patch16_dinov3.lvd1689m", DINOV3_VIT, "dinov3.pth", write_dinov3_vit),
    "DINOv3 ConvNeXt": ("convnext_tiny.dinov3_lvd1689m", DINOV3_CONVNEXT, "dinov3.pth", write_dinov3_convnext),
    "an ending of its own": (
        "test_vit",
        {},
        "pytorch_model.bin",
        lambda module, file: torch.save(module.state_dict(), file),
    ),
    "wrapped": ("test_vit", {}, "w.pt", lambda module, file: torch.save({"state_dict": module.state_dict()}, file)),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_others_gives_the_features_of_the_model_that_it_was_made_from(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, arguments, file, write = FOREIGN[kind]
    module = make(name, **arguments)
    write(module, tmp_path / file)
    found = build_module(name, str(tmp_path / file), {**arguments, "num_classes": 0}, "a model", ()).eval()
    images = torch.randn(1, 3, 160 if name == "test_vit" else 32, 160 if name == "test_vit" else 32)
    with torch.no_grad():
        assert torch.allclose(found.forward_features(images), module.forward_features(images), atol=1e-6)
    assert capsys.readouterr().out == ""


def write_folder(folder: Path, name: str = "test_vit", **configuration: Any) -> nn.Module:
    """Write a model with a configuration as timm does for the hub."""
    module: Any = make(name)
    module.pretrained_cfg.update(configuration)
    save_for_hf(module, str(folder), safe_serialization=True)
    return module  # type: ignore[no-any-return]


@pytest.mark.parametrize("prefix", ["timm", "vit"])
def test_a_folder_of_timm_brings_its_weights_and_its_preprocessing(tmp_path: Path, prefix: str) -> None:
    own = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "crop_pct": 0.5}
    module = write_folder(tmp_path / "model", **own, crop_mode="squash")
    backbone = build(f"{prefix}:test_vit", tmp_path / "model")
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in backbone.module.state_dict().items())
    found = backbone.preprocessing
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (found.interpolation, found.crop_pct, found.crop_mode) == ("bilinear", 0.5, "squash")
    assert "config.json" in backbone.normalization_note and "Warning" not in backbone.normalization_note


def test_a_folder_of_another_model_or_library_is_refused_with_the_name_that_opens_it(tmp_path: Path) -> None:
    write_folder(tmp_path / "other", "test_convnext")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_size": 8}))
    (tmp_path / "empty").mkdir()
    for folder, hint in (("other", "timm:test_convnext"), ("hf", f"hf:{tmp_path / 'hf'}"), ("empty", "config.json")):
        with pytest.raises(ToastError, match=re.escape(hint)):
            build("vit:test_vit", tmp_path / folder)
    with pytest.raises(ToastError, match="--weights"):
        build(f"timm:{tmp_path / 'other'}", Path("none"))


@pytest.mark.parametrize(
    ("name", "assumed"),
    [("vit:vit_base_patch16_224", "mean (0.5, 0.5, 0.5)"), ("vit_b16_in21k", "augreg_in21k"), ("vit_b16", None)],
)
def test_a_file_for_a_model_whose_weights_disagree_about_the_mean_is_warned_of(name: str, assumed: str | None) -> None:
    from toast_timm.weights_file import describe_normalization

    card = registry.load_backbone_card(name)
    model = card.source.removeprefix("timm, ")
    config = timm.get_pretrained_cfg(model)
    assert config is not None
    known = Preprocessing((224, 224), config.mean, config.std, crop_pct=0.9)
    note = describe_normalization(model, "mae.pth", known)
    assert all(describe_normalization(model, weights, known) is None for weights in ("none", None))
    if assumed is None:
        assert note is None
    else:
        assert note is not None and note.startswith("Warning: mae.pth")
        assert (
            assumed in note and "0.485" in note and "bicubic, crop 0.9 (center)" in note and "images.normalize" in note
        )


def test_a_mean_that_is_set_needs_no_warning() -> None:
    assert ImageOptions(normalize="imagenet").sets_normalization
    assert ImageOptions(mean=(0.1, 0.1, 0.1)).sets_normalization
    assert not ImageOptions().sets_normalization


def test_a_file_of_a_model_that_pools_the_mean_is_refused_with_that_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """MAE's fine-tuned models have `fc_norm` after the mean of the patches, and no `norm` before."""
    torch.save({"model": make("test_vit", global_pool="avg").state_dict()}, tmp_path / "mae.pth")
    with pytest.raises(ToastError, match="pools the mean") as refused:
        build_module("test_vit", str(tmp_path / "mae.pth"), {}, "a ViT", ("*vit*",))
    assert refused.value.code == "weights.wrong-model" and "Unexpected keys" not in caplog.text
