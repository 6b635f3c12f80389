"""What is torchvision's own: packed projections, windows, published preprocessing, weights files, and refusals."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack
from torchvision import models
from torchvision.models import swin_transformer

import toast_cli
from tests.contract.tiny_models import torchvision_models as tiny_models
from toast_cli import registry
from toast_cli.backbones.base import Backbone, Preprocessing, State, Trace
from toast_cli.steering.folding import FoldedSteering
from toast_cli.steering.steering import Steering, run_one_pass, run_two_passes
from toast_cli.utils.errors import ToastError, UsageError
from toast_torchvision.published_weights import match_weights_file

SWINS = ["toast_tiny_swin", "toast_tiny_swin_v2"]


def build(name: str, **options: Any) -> Any:
    """Return a backbone in float64 with weights large enough that every part matters."""
    torch.manual_seed(0)
    card = registry.load_backbone_card(f"torchvision:{name}")
    backbone = card.build(card.options(name=card.name, **{"weights": "none", **options}))
    backbone.module.double().eval().requires_grad_(False)
    for parameter in backbone.module.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return backbone


def run_levels(backbone: Backbone) -> Trace:
    trace = Trace(levels=True)
    backbone.run(backbone.enter(backbone.example(2).double()), trace=trace)
    return trace


@torch.no_grad()
def test_maps_of_a_vit_are_those_of_its_attention() -> None:
    backbone = build("toast_tiny_vit")
    trace = Trace(levels=True, attention_of=frozenset({0, 1, 2}))
    backbone.run(backbone.enter(backbone.example(2).double()), trace=trace)
    for index, block in enumerate(backbone.module.encoder.layers):
        tokens = block.ln_1(trace.inputs[index])
        _, theirs = block.self_attention(tokens, tokens, tokens, average_attn_weights=False)
        torch.testing.assert_close(trace.attention[index], theirs, rtol=0, atol=1e-12)
        assert trace.mismatch[index] < 1e-9


@torch.no_grad()
def test_the_signal_enters_the_values_of_a_vit_alone() -> None:
    backbone = build("toast_tiny_vit")
    hidden = run_levels(backbone).inputs[1]
    signal, block = torch.randn_like(hidden), backbone.module.encoder.layers[1]
    tokens, attention = block.ln_1(hidden), block.self_attention
    parts = zip(
        (tokens, tokens, tokens + signal),
        attention.in_proj_weight.chunk(3),
        attention.in_proj_bias.chunk(3),
        strict=True,
    )
    q, k, v = (F.linear(x, W, b).unflatten(-1, (2, 8)).transpose(1, 2) for x, W, b in parts)
    mixed = ((q @ k.mT / 8**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
    middle = hidden + attention.out_proj(mixed)
    expected = middle + block.mlp(block.ln_2(middle))
    torch.testing.assert_close(backbone.level(1, State(hidden), signal).hidden, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SWINS)
@torch.no_grad()
def test_a_steered_block_of_a_swin_is_the_stock_block_with_other_values(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = build(name)
    trace = run_levels(backbone)
    steered = [index for index, (merging, _) in enumerate(backbone.blocks) if merging is None]
    assert len(steered) == 3 and any(any(backbone.blocks[index][1].attn.shift_size) for index in steered)
    for index in steered:
        hidden, attention = trace.inputs[index], backbone.blocks[index][1].attn
        signal = torch.randn_like(hidden)
        ours = backbone.level(index, State(hidden), signal).hidden
        windows: list[Tensor] = []

        def record(tokens: Tensor, weight: Tensor, bias: Tensor, windows: list[Tensor] = windows) -> Tensor:
            windows.append(tokens)
            return F.linear(tokens, weight, bias)

        def project(tokens: Tensor, weight: Tensor, bias: Tensor, cut: list[Tensor] = windows) -> Tensor:
            if len(weight) != 3 * tokens.shape[-1]:
                return F.linear(tokens, weight, bias)
            inputs = (tokens, tokens, tokens + cut[0])
            return torch.cat(
                [F.linear(x, W, b) for x, W, b in zip(inputs, weight.chunk(3), bias.chunk(3), strict=True)], dim=-1
            )

        with monkeypatch.context() as patched:
            patched.setattr(swin_transformer, "F", SimpleNamespace(**{**vars(F), "linear": record}))
            attention(signal.permute(0, 2, 3, 1))
            patched.setattr(swin_transformer, "F", SimpleNamespace(**{**vars(F), "linear": project}))
            by_hand = backbone.level(index, State(hidden)).hidden
        torch.testing.assert_close(ours, by_hand, rtol=0, atol=1e-9)
        assert not torch.allclose(ours, trace.outputs[index], atol=1e-3)


@torch.no_grad()
def test_a_level_with_a_merging_is_steered_at_the_input_of_the_merging() -> None:
    backbone = build("toast_tiny_swin")
    hidden = run_levels(backbone).inputs[2]
    signal = torch.randn_like(hidden)
    assert torch.equal(
        backbone.level(2, State(hidden), signal).hidden, backbone.level(2, State(hidden + signal)).hidden
    )
    assert [(level.width_in, level.width_out, level.stride) for level in backbone.levels] == [
        (8, 8, 1),
        (8, 8, 1),
        (8, 16, 2),
        (16, 16, 1),
        (16, 32, 2),
    ]


@pytest.mark.parametrize("size", [(98, 154), (70, 42)])
@pytest.mark.parametrize("name", SWINS)
@torch.no_grad()
def test_two_passes_of_a_swin_and_its_folded_steering_agree_at_odd_sides(name: str, size: tuple[int, int]) -> None:
    backbone = build(name, image_size=size)
    images = backbone.example(2).double()
    steering = Steering(backbone).double()
    for parameter in steering.feedback.parameters():
        nn.init.normal_(parameter, std=0.2)
    steering.selection.xi.copy_(run_one_pass(backbone, images).last.compared[0, :, 0, 0])
    passes = run_two_passes(backbone, steering, images)
    assert torch.equal(passes.first.pooled, backbone.stock(images))
    assert passes.similarity is not None and passes.similarity.shape[1:] == backbone.grid(images)
    assert not torch.allclose(passes.last.pooled, passes.first.pooled, atol=1e-3)
    folded = run_two_passes(backbone, FoldedSteering(steering, backbone), images).last.pooled
    torch.testing.assert_close(folded, passes.last.pooled, rtol=1e-9, atol=1e-9)


def test_nothing_stays_attached_to_a_swin_after_a_failure() -> None:
    backbone = build("toast_tiny_swin")
    state = backbone.enter(backbone.example(1).double())
    with pytest.raises(RuntimeError):
        backbone.level(0, state, torch.randn(1, 3, 16, 16, dtype=torch.float64))
    assert not _get_current_function_mode_stack()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", ((224, 224), "bilinear", 224 / 256)),
        ("swin_t", ((224, 224), "bicubic", 224 / 232)),
    ],
)
def test_preprocessing_is_that_of_the_published_weights(name: str, expected: tuple[object, ...]) -> None:
    with torch.device("meta"):
        card = registry.load_backbone_card(f"torchvision:{name}")
        backbone = card.build(card.options(name=card.name, weights="none"))
    preprocessing = backbone.require_preprocessing()
    assert (preprocessing.image_size, preprocessing.interpolation) == expected[:2]
    assert int(224 / preprocessing.crop_pct) == int(224 / expected[2])  # type: ignore[operator]
    assert not backbone.notes


def test_what_is_assumed_about_a_model_without_a_name_is_said() -> None:
    backbone = registry.wrap_model(models.resnet18(), library="torchvision")
    (note,) = backbone.notes
    assert note.startswith("Warning: a torchvision model") and "224 × 224 pixels" in note and "images.mean" in note
    assert backbone.preprocessing == Preprocessing(
        (224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", 0.875
    )


@pytest.mark.parametrize("name", ["toast_tiny_vit", "toast_tiny_resnet", "toast_tiny_convnext", "toast_tiny_swin"])
@torch.no_grad()
def test_weights_come_from_a_file_with_another_classifier_and_others_are_refused(name: str, tmp_path: Path) -> None:
    module = models.get_model(name, num_classes=7).eval()
    torch.save(module.state_dict(), tmp_path / "all.pth")
    card = registry.load_backbone_card(f"torchvision:{name}")
    tensors = {
        key: tensor for key, tensor in module.state_dict().items() if key.rpartition(".")[0] in classifiers(module)
    }
    stripped = {key: tensor for key, tensor in module.state_dict().items() if key not in tensors}
    torch.save(stripped, tmp_path / "features.pth")
    backbone = card.build(card.options(name=card.name, weights=str(tmp_path / "features.pth")))
    images = backbone.example(1)
    expected = registry.wrap_model(module, library="torchvision").stock(images)
    torch.testing.assert_close(backbone.stock(images), expected)
    del stripped[next(iter(stripped))]
    torch.save(stripped, tmp_path / "part.pth")
    with pytest.raises(ToastError) as wrong:
        card.build(card.options(name=card.name, weights=str(tmp_path / "part.pth")))
    assert wrong.value.code == "weights.wrong-model"


def classifiers(module: nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if isinstance(part, nn.Linear)][-1:]


@torch.no_grad()
def test_positions_of_a_vit_are_resized_to_another_image_size(tmp_path: Path) -> None:
    torch.save(tiny_models.toast_tiny_vit().state_dict(), tmp_path / "vit.pth")
    card = registry.load_backbone_card("torchvision:toast_tiny_vit")
    backbone = card.build(card.options(name=card.name, weights=str(tmp_path / "vit.pth"), image_size=48))
    assert backbone.grid(backbone.example(1)) == (6, 6)
    with pytest.raises(UsageError) as refused:
        card.build(card.options(name=card.name, weights="none", image_size=(32, 48)))
    assert refused.value.code == "backbone.wrong-image-size"


def test_a_model_with_a_classifier_can_be_steered_and_stays_as_it_was() -> None:
    torch.manual_seed(0)
    model = models.get_model("toast_tiny_swin", num_classes=5).eval()
    images = torch.randn(2, 3, 56, 56)
    before = model(images)
    steered = toast_cli.steer(model, classes=3)
    assert steered(images).shape == (2, 3)
    assert torch.equal(model(images), before)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "maxvit_t", "fasterrcnn_resnet50_fpn"])
def test_other_models_are_refused_before_they_are_built(name: str) -> None:
    card = registry.load_backbone_card(f"torchvision:{name}")
    with pytest.raises(ToastError, match="ViT, Swin, ConvNeXt and ResNet") as refused:
        card.build(card.options(name=card.name, weights="none"))
    assert refused.value.code == "backbone.cannot-steer"


def test_other_models_built_in_python_and_unknown_names_are_refused() -> None:
    with torch.device("meta"), pytest.raises(ToastError) as refused:
        registry.wrap_model(models.mobilenet_v3_small(), library="torchvision")
    assert refused.value.code == "backbone.cannot-steer"
    card = registry.load_backbone_card("torchvision:swin_tt")
    with pytest.raises(UsageError, match="no model 'swin_tt'") as unknown:
        card.build(card.options(name=card.name, weights="none"))
    assert unknown.value.code == "backbone.unknown-model" and "swin_t" in str(unknown.value.what_to_do)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "swin_v2_t", "convnext_tiny", "resnet50"])
def test_a_model_of_real_size_is_the_stock_model_without_signals_and_learns(name: str) -> None:
    torch.manual_seed(0)
    card = registry.load_backbone_card(f"torchvision:{name}")
    backbone = card.build(card.options(name=card.name, weights="none"))
    backbone.module.eval().requires_grad_(False)
    images, steering = backbone.example(1), Steering(backbone)
    passes = run_two_passes(backbone, steering, images)
    assert torch.equal(passes.first.pooled, backbone.stock(images))
    passes.last.pooled.sum().backward()
    assert all(parameter.grad is not None for parameter in steering.feedback.parameters())


def test_a_file_is_matched_to_its_published_weights_by_name_or_size(tmp_path: Path) -> None:
    weights = models.ViT_B_16_Weights
    large = {
        "encoder.pos_embedding": torch.zeros(1, 24 * 24 + 1, 1),
        "conv_proj.weight": torch.zeros(1, 3, 16, 16),
    }
    small = {**large, "encoder.pos_embedding": torch.zeros(1, 14 * 14 + 1, 1)}
    known, note = match_weights_file("vit_b_16", Path("vit_b_16_swag-9ac1b537.pth"), large)
    assert known is weights.IMAGENET1K_SWAG_E2E_V1 and note is not None and "Warning" not in note
    by_size, note = match_weights_file("vit_b_16", Path("own.pth"), large)
    assert by_size is weights.IMAGENET1K_SWAG_E2E_V1
    assert note is not None and note.startswith("Warning: own.pth") and "384 × 384 pixels, bicubic" in note
    default, note = match_weights_file("vit_b_16", Path("own.pth"), small)
    assert default is weights.IMAGENET1K_V1 and note is not None and "IMAGENET1K_SWAG_E2E_V1" in note
    assert match_weights_file("resnet18", Path("own.pth"), {}) == (models.ResNet18_Weights.IMAGENET1K_V1, None)


def test_the_licence_is_announced_before_a_download(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def refuse(*_: object, **__: object) -> None:
        assert "SWAG/blob/main/LICENSE" in caplog.text
        raise OSError("no network")

    monkeypatch.setattr(models.ViT_B_16_Weights, "get_state_dict", refuse)
    with pytest.raises(ToastError, match="no network"):
        build("vit_b_16", weights="IMAGENET1K_SWAG_E2E_V1")
