"""What is transformers' own: folders and towers, eager attention, image processors, sizes, and refusals."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import save_file

import toast_cli
from tests.contract.tiny_models.hf_vision import CONFIGURATIONS, PROCESSOR, SHAPE, write_configuration
from toast_cli import registry
from toast_cli.backbones.base import Backbone, Preprocessing, State, Trace
from toast_cli.steering.steering import Steering, run_two_passes
from toast_cli.utils.errors import ToastError, UsageError
from toast_hf_vision import backbone as backbone_module
from toast_hf_vision import loading
from toast_hf_vision.loading import wrap_hf_vision
from toast_hf_vision.options import HfVisionOptions
from toast_hf_vision.preprocessing import read_preprocessing


def build(folder: Path, **options: Any) -> Backbone:
    torch.manual_seed(0)
    card = registry.load_backbone_card(f"hf:{folder}")
    backbone = card.build(card.options(name=card.name, **options))
    backbone.module.eval().requires_grad_(False)
    return backbone


def write_weights(kind: str, folder: Path) -> hf.PreTrainedModel:
    """Write a whole model with random weights, as its authors would."""
    write_configuration(kind, folder)
    torch.manual_seed(0)
    model = hf.AutoModel.from_config(hf.AutoConfig.from_pretrained(folder)).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", ["dinov3_vit", "beit", "siglip", "siglip2", "clip_vision", "vit_mae"])
@torch.no_grad()
def test_maps_are_those_of_eager_attention_and_attention_stays_fused(kind: str, tmp_path: Path) -> None:
    backbone = build(write_configuration(kind, tmp_path / kind), weights="none")
    config = backbone.module.config
    assert config._attn_implementation == "sdpa"
    images, trace = backbone.example(2), Trace(attention_of=frozenset({0, 1, 2}))
    backbone.run(backbone.enter(images), trace=trace)
    assert config._attn_implementation == "sdpa" and len(trace.mismatch) == 3
    config._attn_implementation = "eager"
    eager = Trace(attention_of=frozenset({0, 1, 2}))
    backbone.run(backbone.enter(images), trace=eager)
    assert not eager.mismatch
    for index, theirs in eager.attention.items():
        torch.testing.assert_close(trace.attention[index], theirs, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_signal_enters_the_values_alone(tmp_path: Path) -> None:
    backbone = build(write_configuration("dinov2", tmp_path / "dinov2"), weights="none")
    backbone.module.double()
    layer: Any = backbone.module.get_submodule("encoder.layer.1")
    for weight in layer.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    state = backbone.enter(backbone.example(2).double())
    hidden, signal = torch.randn_like(state.hidden), torch.randn_like(state.hidden)
    tokens, attention = layer.norm1(hidden), layer.attention
    q, k, v = (
        part.unflatten(-1, (2, 8)).transpose(1, 2)
        for part in (attention.q_proj(tokens), attention.k_proj(tokens), attention.v_proj(tokens + signal))
    )
    mixed = ((q @ k.mT / 8**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
    middle = hidden + layer.layer_scale1(attention.o_proj(mixed))
    expected = middle + layer.layer_scale2(layer.mlp(layer.norm2(middle)))
    found = backbone.level(1, State(hidden, state.context), signal).hidden
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", [kind for kind in CONFIGURATIONS if kind != "siglip_vision"])
@torch.no_grad()
def test_images_need_not_be_square(kind: str, tmp_path: Path) -> None:
    backbone = build(write_configuration(kind, tmp_path / kind), weights="none", image_size=(32, 64))
    images = backbone.example(2)
    readout = backbone.leave(backbone.run(backbone.enter(images)))
    assert torch.equal(readout.pooled, backbone.stock(images))
    rows, columns = backbone.grid(images)
    assert columns == 2 * rows
    if backbone.channel_dim == -1:
        assert readout.z.shape[1] == rows * columns + backbone.prefix_tokens


def test_a_side_must_be_a_multiple_of_the_patch(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="multiple of the patch size of 8"):
        build(write_configuration("vit", tmp_path / "vit"), weights="none", image_size=36)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@torch.no_grad()
def test_the_folder_of_a_model_of_images_and_texts_gives_its_image_tower(kind: str, tmp_path: Path) -> None:
    model: Any = write_weights(kind, tmp_path / kind)
    backbone = build(tmp_path / kind)
    images = backbone.example(2)
    expected = model.vision_model(images).pooler_output
    # Weights in a mapped file are aligned in another way, which may change the last bit.
    torch.testing.assert_close(backbone.stock(images), expected)
    wrapped = wrap_hf_vision(model)
    assert wrapped is not None and torch.equal(wrapped.stock(images), expected)


@torch.no_grad()
def test_weights_come_from_a_folder_or_a_file_and_lacking_ones_are_named(tmp_path: Path) -> None:
    model = write_weights("dinov3_vit", tmp_path / "model")
    bare = write_configuration("dinov3_vit", tmp_path / "bare")
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, tmp_path / "all.safetensors")
    del tensors["norm.weight"]
    save_file(tensors, tmp_path / "part.safetensors")
    images = build(tmp_path / "model").example(1)
    expected = model(images).pooler_output
    for weights in (tmp_path / "model", tmp_path / "all.safetensors"):
        assert torch.equal(build(bare, weights=str(weights)).stock(images), expected)
    with pytest.raises(ToastError, match=r"norm\.weight") as wrong:
        build(bare, weights=str(tmp_path / "part.safetensors"))
    assert wrong.value.code == "weights.wrong-model"
    with pytest.raises(UsageError) as missing:
        build(bare, weights=str(tmp_path / "none.safetensors"))
    assert missing.value.code == "weights.missing-file"


def test_without_a_network_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ToastError, match="could not be downloaded") as refused:
        build(Path("someone/some-vit"))
    assert refused.value.code == "weights.cannot-download" and "--backbone hf:FOLDER" in refused.value.what_to_do


MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
NORMS = {"image_mean": [*MEAN], "image_std": [*STD]}
SQUASHED = Preprocessing((224, 224), MEAN, STD, "bilinear", 1.0, "squash")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"size": {"height": 224, "width": 224}, "resample": 2}, SQUASHED),
        (
            {
                "size": {"shortest_edge": 256},
                "do_center_crop": True,
                "crop_size": {"height": 224, "width": 224},
                "resample": 3,
            },
            replace(SQUASHED, interpolation="bicubic", crop_pct=0.875, crop_mode="center"),
        ),
        (
            {
                "size": {"height": 256, "width": 256},
                "do_center_crop": True,
                "crop_size": {"height": 224, "width": 224},
                "resample": 2,
            },
            replace(SQUASHED, crop_pct=0.875),
        ),
        (
            {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 2},
            replace(SQUASHED, crop_pct=0.875, crop_mode="center"),
        ),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875, "resample": 2}, replace(SQUASHED, image_size=(384, 384))),
        ({"do_resize": False, "resample": 2}, replace(SQUASHED, image_size=(32, 48))),
        (
            {"size": {"height": 224, "width": 224}, "resample": 2, "do_rescale": False},
            replace(SQUASHED, mean=tuple(m / 255 for m in MEAN), std=tuple(s / 255 for s in STD)),
        ),
        (
            {"size": {"height": 224, "width": 224}, "resample": 2, "do_normalize": False},
            replace(SQUASHED, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        ),
    ],
)
def test_preprocessing_is_that_of_the_image_processor(settings: dict[str, Any], expected: Preprocessing) -> None:
    assert read_preprocessing({**NORMS, **settings}, (32, 48)) == expected


def test_a_folder_without_image_processor_says_what_is_assumed_and_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    folder = write_configuration("vit", tmp_path / "vit")
    random: Any = build(folder, weights="none")
    random.module.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    assert build(folder).normalization_note is None
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(ToastError, match="image processor"):
        build(folder, weights="none")
    (folder / "preprocessor_config.json").unlink()
    backbone = build(folder)
    note = backbone.normalization_note
    assert note is not None and note.startswith(f"Warning: {folder} has no preprocessor_config.json")
    assert "mean (0.5, 0.5, 0.5)" in note and "32 × 32 pixels, bicubic, crop 1 (squash)" in note
    assert backbone.preprocessing == Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3, crop_mode="squash")


def test_weights_of_another_folder_bring_their_preprocessing_and_those_of_a_file_do_not(tmp_path: Path) -> None:
    folder, other = (write_configuration("vit", tmp_path / name) for name in ("a", "b"))
    for each in (folder, other):
        random: Any = build(each, weights="none")
        random.module.save_pretrained(each)
    (other / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, "image_mean": [0.1, 0.1, 0.1]}))
    backbone: Any = build(folder, weights=str(other))
    assert backbone.require_preprocessing().mean == (0.1, 0.1, 0.1)
    assert backbone.normalization_note is not None and backbone.normalization_note.startswith(f"Weights from {other}.")
    (other / "preprocessor_config.json").unlink()
    note = build(folder, weights=str(other)).normalization_note
    assert note is not None and f"Warning: {other} has no" in note and str(folder) not in note
    torch.save(backbone.module.state_dict(), tmp_path / "weights.bin")
    from_file: Any = build(folder, weights=str(tmp_path / "weights.bin"))
    assert from_file.normalization_note is None, "the session warns, with the preprocessing of the named model"
    assert from_file.require_preprocessing().mean == (0.5, 0.4, 0.3)
    for name, tensor in backbone.module.state_dict().items():
        assert torch.equal(from_file.module.state_dict()[name], tensor)
    with pytest.raises(ToastError) as missing:
        build(folder, weights=str(tmp_path / "lost.bin"))
    assert missing.value.code == "weights.missing-file"


def test_a_model_that_packs_patches_is_refused_and_an_unknown_failure_is_no_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: object, pixel_values: torch.Tensor, target_sizes: object = None) -> None:
        raise AttributeError("of target_sizes")

    folder = write_configuration("vit", tmp_path / "vit")
    with monkeypatch.context() as patched, pytest.raises(ToastError, match="target_sizes") as refused:
        patched.setattr(hf.ViTModel, "forward", forward)
        build(folder, weights="none")
    assert refused.value.code == "backbone.cannot-steer"

    def fail(*_: object) -> None:
        raise AttributeError("a mistake")

    monkeypatch.setattr(backbone_module.HfVisionBackbone, "_run_model", fail)
    with pytest.raises(ToastError, match="a mistake") as failed:
        build(folder, weights="none")
    assert failed.value.code == "backbone.cannot-run"


def test_the_licence_is_announced_before_a_download(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    card = {"license": "other", "license_name": "dinov3-license"}
    monkeypatch.setattr(loading.HfApi, "model_info", lambda *_, **__: SimpleNamespace(card_data=card))
    monkeypatch.setattr(loading, "use_offline_if_unreachable", nullcontext)
    monkeypatch.setattr(loading.constants, "HF_HUB_OFFLINE", False)

    def refuse(*_: object, **__: object) -> None:
        assert "ai.meta.com/resources/models-and-libraries/dinov3-license" in caplog.text
        raise OSError("no network")

    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(ToastError, match="no network"):
        registry.load_backbone_card("hf:owner/never-seen").build(HfVisionOptions(name="hf:owner/never-seen"))


def test_the_files_define_the_network(tmp_path: Path) -> None:
    backbone = build(write_configuration("clip", tmp_path / "clip"), weights="none")
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, text in backbone.files().items():
        (copy / name).write_text(text)
        assert str(tmp_path) not in text
    card = registry.load_backbone_card(f"hf:{tmp_path / 'clip'}")
    again = card.rebuild(card.options(name=card.name), copy)
    assert again.preprocessing == backbone.preprocessing
    assert {name: part.shape for name, part in again.module.state_dict().items()} == {
        name: part.shape for name, part in backbone.module.state_dict().items()
    }


def test_a_model_with_a_head_can_be_steered_and_stays_as_it_was() -> None:
    torch.manual_seed(0)
    model = hf.ViTForImageClassification(hf.ViTConfig(**SHAPE, num_labels=5)).eval()
    images = torch.randn(2, 3, 32, 32)
    before = model(images).logits
    steered = toast_cli.steer(model, classes=3)
    assert steered(images).shape == (2, 3)
    assert torch.equal(model(images).logits, before)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: hf.SwinModel(hf.SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 1])), "stages"),
        (lambda: hf.VivitModel(hf.VivitConfig(**SHAPE, num_frames=2, tubelet_size=[2, 8, 8])), "videos"),
        (lambda: hf.MobileNetV2Model(hf.MobileNetV2Config(depth_multiplier=0.1)), "value projection"),
        (lambda: hf.Dinov2Backbone(hf.Dinov2Config(**SHAPE)), "maps of several layers"),
        (lambda: hf.ViTModel(hf.ViTConfig(**SHAPE, num_channels=1)), "1 channels"),
    ],
)
def test_other_vision_models_are_refused_with_the_reason(model: Any, why: str) -> None:
    with pytest.raises(ToastError, match=why) as refused:
        wrap_hf_vision(model())
    assert refused.value.code == "backbone.cannot-steer"


def test_models_of_text_and_of_timm_belong_to_others(tmp_path: Path) -> None:
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}
    assert wrap_hf_vision(hf.BertModel(hf.BertConfig(**text))) is None
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "timm_wrapper", "architecture": "vit_tiny", "num_classes": 2})
    )
    with pytest.raises(ToastError, match="model of timm") as refused:
        build(tmp_path, weights="none")
    assert "timm:vit_tiny" in refused.value.what_to_do


@pytest.mark.nightly
@pytest.mark.parametrize(
    "model",
    [
        lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(num_register_tokens=4)),
        lambda: hf.Siglip2VisionModel(hf.Siglip2VisionConfig()),
        lambda: hf.ConvNextModel(hf.ConvNextConfig()),
    ],
    ids=["dinov3_vits16", "siglip2_b16", "convnext_t"],
)
def test_a_model_of_real_size_is_the_stock_model_without_signals_and_learns(model: Any) -> None:
    torch.manual_seed(0)
    backbone = wrap_hf_vision(model().eval().requires_grad_(False))
    assert backbone is not None
    images, steering = backbone.example(1), Steering(backbone)
    passes = run_two_passes(backbone, steering, images)
    assert torch.equal(passes.first.pooled, backbone.stock(images))
    passes.last.pooled.sum().backward()
    assert all(parameter.grad is not None for parameter in steering.feedback.parameters())
