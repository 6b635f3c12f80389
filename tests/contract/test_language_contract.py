"""What a backbone that writes owes besides: the model's own logits, and its own text where nothing steers it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests import causal_models
from tests.contract.conftest import LANGUAGE_MODELS, built, get_id, marks, write_configuration
from toast_cli.backbones.base import Backbone

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
