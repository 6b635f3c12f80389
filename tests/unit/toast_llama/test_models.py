"""Which models of transformers can be steered, and what is said of the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from toast_cli import registry
from toast_cli.backbones.base import Backbone
from toast_cli.utils.errors import ToastError, UsageError
from toast_llama.backbone import LlamaBackbone

MODELS = Path(__file__).parent.parent.parent / "contract" / "language_models"


def opened(folder: Path, weights: str | None = "none") -> Backbone:
    card = registry.load_backbone_card(f"llama:{folder}")
    return card.build(card.options(name=card.name, weights=weights))


def opt() -> PreTrainedModel:
    shape = {"vocab_size": 20, "hidden_size": 8, "ffn_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return OPTForCausalLM(OPTConfig(**shape, word_embed_proj_dim=8))


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1))


def t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))


@pytest.mark.parametrize(("make", "why"), [(opt, "final norm"), (gpt2, "v_proj"), (t5, "encoder")])
def test_a_model_that_cannot_be_steered_is_refused_when_it_is_wrapped(make: object, why: str) -> None:
    module = make()  # type: ignore[operator]
    with pytest.raises(ToastError) as refused:
        LlamaBackbone(module)
    assert refused.value.code == "backbone.cannot-steer"
    assert why in refused.value.why


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
