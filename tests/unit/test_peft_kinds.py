"""PEFT's methods by name: those that work, and a clear word about those that cannot."""

from __future__ import annotations

import pytest
import torch

from toast_cli.errors import UsageError
from toast_cli.methods.any_peft import METHOD, Options
from toast_cli.methods.injected import injectable, left_out
from toast_cli.registry import backbone_card


def backbone(name: str = "vit:test_vit"):
    torch.manual_seed(0)
    card = backbone_card(name)
    built = card.build(card.options(name=name, weights="none"))
    built.module.eval().requires_grad_(False)
    return built


@pytest.mark.parametrize("kind", ["dora", "ia3", "loha", "hra"])
def test_what_is_trained_changes_the_features_and_can_be_left_out(kind: str) -> None:
    stock = backbone()
    images = stock.example(2)
    before = stock.stock(images)
    adapted = METHOD.build(Options(kind=kind), stock)
    trained = [weight for weight in adapted.parameters() if weight.requires_grad]
    with torch.no_grad():
        for weight in trained:
            weight += 0.3
        assert not torch.allclose(adapted.features(images), before)
        with left_out(stock.module):
            assert torch.equal(adapted.features(images), before)
        assert not torch.allclose(adapted.features(images), before)
    assert trained == [weight for weight in adapted.parameters() if weight.requires_grad]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("oft", "does not run in it"),
        ("vera", "by weights that its layers share"),
        ("prefix_tuning", "there is vpt. Kinds that do: .*lora"),
        ("prompt_tuning", "by further tokens"),
        ("p_tuning", "by further tokens"),
        ("poly", "cannot be used here"),
        ("lorra", "Did you mean 'lora'"),
    ],
)
def test_what_cannot_be_done_is_said_before_a_run_begins(kind: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        METHOD.build(Options(kind=kind), backbone("convnext:test_convnext"))


def test_every_kind_that_is_said_to_go_in_does_or_is_told_why_not_by_its_own_name() -> None:
    went = set()
    for kind in injectable():
        try:
            METHOD.build(Options(kind=kind), backbone())
        except UsageError as error:
            assert kind in error.what.lower(), error.what
        else:
            went.add(kind)
    assert {"lora", "ia3", "loha", "lokr", "hra", "boft", "oft", "fourierft", "ln_tuning"} <= went
    assert injectable() - went <= {"adalora", "c3a"}, "these two want an option that depends on the run or the width"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rr": 3}, r"method.options.rr: PEFT's LoraConfig has no such option.*Did you mean 'r'"),
        ({"r": 0}, "cannot put lora into.*positive integer.*Change method.options"),
    ],
)
def test_an_option_that_peft_does_not_take_is_named_with_the_nearest(options: dict[str, int], words: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){words}"):
        METHOD.build(Options(kind="lora", options=options), backbone())
