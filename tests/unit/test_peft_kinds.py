"""PEFT's methods by name: those that work, and a clear word about those that cannot."""

from __future__ import annotations

import pytest
import torch

from toast_cli.errors import UsageError
from toast_cli.methods.any_peft import METHOD, Options
from toast_cli.methods.injected import left_out
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
        ("poly", "does not run in it"),
        ("vera", "cannot put vera into"),
        ("prefix_tuning", "There is no method|puts no layers|cannot put"),
        ("lorra", "Did you mean"),
    ],
)
def test_what_cannot_be_done_is_said_before_a_run_begins(kind: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        METHOD.build(Options(kind=kind), backbone())
