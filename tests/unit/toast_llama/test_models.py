"""Which models of transformers can be steered, and what is said of the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma4Config,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.causal_models import build_tiny_config
from toast_cli import registry
from toast_cli.backbones.base import Backbone
from toast_cli.utils.errors import ToastError, UsageError
from toast_llama.backbone import LlamaBackbone
from toast_llama.cards import build_language_card
from toast_llama.loading import build_language_backbone

MODELS = Path(__file__).parent.parent.parent / "contract" / "language_models"


def opened(folder: Path, weights: str | None = "none") -> Backbone:
    card = registry.load_backbone_card(f"llama:{folder}")
    return card.build(card.options(name=card.name, weights=weights))


def mamba() -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(build_tiny_config("mamba"))


def longcat() -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(build_tiny_config("longcat_flash"))


def opt(**shape: int | bool) -> PreTrainedModel:
    small = {"vocab_size": 20, "hidden_size": 8, "ffn_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return OPTForCausalLM(OPTConfig(**{**small, "word_embed_proj_dim": 8, **shape}))


def t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))


@pytest.mark.parametrize(("make", "why"), [(mamba, "no attention"), (longcat, "2 attentions"), (t5, "encoder")])
def test_a_model_that_cannot_be_steered_is_refused_when_it_is_wrapped(make: object, why: str) -> None:
    module = make()  # type: ignore[operator]
    with pytest.raises(ToastError) as refused:
        LlamaBackbone(module)
    assert refused.value.code == "backbone.cannot-steer"
    assert why in refused.value.why


@torch.no_grad()
@pytest.mark.parametrize(
    "shape", [{}, {"do_layer_norm_before": False}, {"word_embed_proj_dim": 6}], ids=["norm", "none", "projection"]
)
def test_what_follows_the_last_layer_is_found(shape: dict[str, int | bool]) -> None:
    backbone = LlamaBackbone(opt(**shape).eval())
    inputs = backbone.example(2)
    assert torch.equal(backbone.leave(backbone.run(backbone.enter(inputs))).pooled, backbone.stock(inputs))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_model_without_attention_takes_a_method_with_one_pass_and_writes(method: str) -> None:
    torch.manual_seed(0)
    backbone = build_language_backbone(mamba().eval())
    registered = registry.load_entry(registry.METHODS, method)
    adapted = registered.build(registered.complete(registered.options(), "language"), backbone)
    inputs, head = backbone.example(1), backbone.output()
    assert head is not None
    head(adapted(inputs).last.pooled).square().mean().backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in adapted.parameters())
    writer = backbone.generator(lambda inputs: adapted(inputs).last.pooled)
    assert writer.generate(**inputs, max_new_tokens=3, pad_token_id=0).shape[1] > inputs["input_ids"].shape[1]


@pytest.mark.parametrize("method", ["toast", "toast-lite"])
def test_a_method_with_two_passes_says_why_it_cannot_steer(method: str) -> None:
    registered = registry.load_entry(registry.METHODS, method)
    with pytest.raises(ToastError, match="cannot be steered") as refused:
        registered.build(registered.options(), build_language_backbone(mamba()))
    assert "no attention" in refused.value.why


def test_layers_without_attention_belong_to_the_level_before_and_leading_ones_to_both_passes() -> None:
    module = AutoModelForCausalLM.from_config(build_tiny_config("qwen3_next"))  # linear, full, linear, full
    backbone = LlamaBackbone(module)
    assert len(backbone.levels) == 2
    assert list(backbone.level_modules) == list(module.model.layers)[1:]


@pytest.mark.parametrize("weights", [None, "none"])
def test_a_folder_with_an_encoder_is_said_to_be_no_decoder_only_model(tmp_path: Path, weights: str | None) -> None:
    t5().save_pretrained(tmp_path)
    with pytest.raises(ToastError, match="t5") as refused:
        opened(tmp_path, weights)
    assert refused.value.code == "backbone.wrong-family"


def test_a_model_without_fused_attention_takes_its_own_and_it_is_said() -> None:
    gemma2 = opened(MODELS / "gemma2")
    if gemma2.module.config._attn_implementation == "sdpa":
        pytest.skip("this transformers has fused attention for Gemma 2")
    (note,) = gemma2.notes
    assert "no fused attention" in note
    assert not opened(MODELS / "llama").notes
    assert opened(MODELS / "llama").module.config._attn_implementation == "sdpa"


def test_another_kind_of_cache_is_refused_and_the_usual_one_is_not() -> None:
    backbone = opened(MODELS / "llama")
    writer = backbone.generator(lambda inputs: backbone.leave(backbone.run(backbone.enter(inputs))).pooled)
    prompt = torch.tensor([[5, 6, 7]])
    with pytest.raises(UsageError, match="'static'") as refused:
        writer.generate(prompt, max_new_tokens=2, cache_implementation="static")
    assert refused.value.code == "backbone.unsupported-cache"
    assert writer.generate(prompt, max_new_tokens=2, pad_token_id=0, cache_implementation="dynamic").shape == (1, 5)


@torch.no_grad()
def test_only_the_language_model_of_a_source_with_images_is_loaded_with_the_same_weights(tmp_path: Path) -> None:
    text = {**build_tiny_config("gemma3_text").to_dict(), "model_type": "gemma3_text"}
    sight = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = Gemma3Config(text_config=text, vision_config={**sight, "image_size": 28, "patch_size": 14})
    torch.manual_seed(0)
    whole = AutoModelForCausalLM.from_config(config)
    whole.save_pretrained(tmp_path)
    card = build_language_card("lm:gemma", str(tmp_path), text_only=True)
    backbone = card.build(card.options(name=card.name))
    assert type(backbone.module).__name__ == "Gemma3ForCausalLM"
    inputs = backbone.example(1)
    assert torch.allclose(backbone.module(**inputs).logits, whole.eval()(**inputs).logits, atol=1e-5)


@torch.no_grad()
def test_gemma_4_whose_layers_read_token_ids_is_taken_out_of_the_model_with_images(tmp_path: Path) -> None:
    text = {**build_tiny_config("gemma4_text").to_dict(), "model_type": "gemma4_text", "hidden_size_per_layer_input": 4}
    config = Gemma4Config(text_config=text, vision_config=None, audio_config=None)
    torch.manual_seed(0)
    whole = AutoModelForCausalLM.from_config(config).eval()
    whole.save_pretrained(tmp_path)
    backbone = opened(tmp_path, None)
    inputs = backbone.example(1)
    expected = whole(**inputs).logits
    features = backbone.leave(backbone.run(backbone.enter(inputs))).pooled
    output = backbone.output()
    assert output is not None and torch.allclose(output(features), expected, atol=1e-5)
    assert torch.allclose(backbone.module(**inputs).logits, expected, atol=1e-5)
