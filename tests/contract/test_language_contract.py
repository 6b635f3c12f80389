"""What a backbone that writes owes besides: the model's own logits, and its own text where nothing steers it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests import causal_models
from tests.contract.conftest import LANGUAGE_MODELS, built, get_id, marks, write_configuration
from toast_cli.backbones.base import Backbone
from toast_cli.backbones.lazy_signal import ValueSignal

KINDS = sorted(folder.name for folder in LANGUAGE_MODELS.iterdir())


def list_models() -> list[object]:
    names = [f"llama:{LANGUAGE_MODELS / kind}" for kind in KINDS]
    names += [f"lm:{causal_models.get_model_folder(kind)}" for kind in (*causal_models.DAILY, *causal_models.NIGHTLY)]
    return [pytest.param(name, marks=marks(name), id=get_id(name)) for name in names]


@pytest.fixture(params=list_models())
def backbone(request: pytest.FixtureRequest) -> Backbone:
    write_configuration(request.param)
    return built(request.param)


@torch.no_grad()
def test_the_head_gives_the_models_own_logits(backbone: Backbone) -> None:
    inputs, head = backbone.example(2), backbone.output()
    assert head is not None
    ours = head(backbone.leave(backbone.run(backbone.enter(inputs))).pooled)
    assert torch.equal(ours, backbone.module(**inputs).logits)
    assert not list(head.parameters()), "its weights are the backbone's, and counted there"


@torch.no_grad()
def test_an_unsteered_writer_writes_what_the_model_writes(backbone: Backbone) -> None:
    prompt = backbone.example(1)
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    weights = [weight.clone() for weight in backbone.module.parameters()]
    try:
        torch.manual_seed(0)
        for weight in backbone.module.parameters():
            nn.init.normal_(weight, std=0.3)  # sharp enough that every token matters
        writer = backbone.generator(lambda inputs: backbone.leave(backbone.run(backbone.enter(inputs))).pooled)
        ours, theirs = (model.generate(**prompt, **settings) for model in (writer, backbone.module))
        logits = writer(**prompt).logits
        assert torch.equal(logits, backbone.module(**prompt).logits)
    finally:
        for weight, before in zip(backbone.module.parameters(), weights, strict=True):
            weight.copy_(before)
    assert torch.equal(ours, theirs)


@torch.no_grad()
def test_a_signal_changes_values_and_neither_queries_nor_keys(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[tuple[Tensor, ...]] = []

    def record(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **settings: Any) -> Any:
        recorded.append((query, key, value))
        return sdpa_attention_forward(module, query, key, value, *rest, **settings)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", record)
    state = backbone.enter(backbone.example(2))
    signal = torch.randn_like(state.hidden)
    backbone.level(0, state)
    plain, recorded[:] = list(recorded), []
    backbone.level(0, state, signal)
    if not recorded:
        pytest.skip("its attention is not one of transformers' functions")
    (q, k, v), (steered_q, steered_k, steered_v) = plain[0], recorded[0]
    assert torch.equal(q, steered_q) and torch.equal(k, steered_k)
    assert not torch.isclose(v, steered_v, rtol=1e-5).any()
    if (weight := backbone.value_weight(0)) is not None:
        recorded.clear()
        backbone.level(0, state, ValueSignal(signal @ weight.T))
        assert torch.allclose(recorded[0][2], steered_v, atol=1e-5)
