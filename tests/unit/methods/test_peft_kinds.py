"""PEFT's methods by name: those that work, and a clear word about those that cannot."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from toast_cli.methods.peft import METHOD, PeftOptions
from toast_cli.methods.peft_injection import disable_peft_layers, list_injectable_kinds
from toast_cli.model.model import BackboneSnapshot, Model, count_flops
from toast_cli.recipe.schema import TrainingOptions
from toast_cli.registry import load_backbone_card
from toast_cli.tasks import classification
from toast_cli.training.plan.memory import estimate_memory
from toast_cli.utils.errors import UsageError


def backbone(name: str = "vit:test_vit"):
    torch.manual_seed(0)
    card = load_backbone_card(name)
    built = card.build(card.options(name=name, weights="none"))
    built.module.eval().requires_grad_(False)
    return built


@pytest.mark.parametrize("kind", ["dora", "ia3", "loha", "hra"])
def test_what_is_trained_changes_the_features_and_can_be_left_out(kind: str) -> None:
    stock = backbone()
    images = stock.example(2)
    before = stock.stock(images)
    adapted = METHOD.build(PeftOptions(kind=kind), stock)
    trained = [weight for weight in adapted.parameters() if weight.requires_grad]
    with torch.no_grad():
        for weight in trained:
            weight += 0.3
        assert not torch.allclose(adapted.features(images), before)
        with disable_peft_layers(stock.module):
            assert torch.equal(adapted.features(images), before)
        assert not torch.allclose(adapted.features(images), before)
    assert trained == [weight for weight in adapted.parameters() if weight.requires_grad]


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [
        ("oft", "method.peft-not-runnable", "oft"),
        ("adalora", "method.unsupported-peft-kind", "lora"),
        ("vera", "method.unsupported-peft-kind", "vera"),
        ("prefix_tuning", "method.unsupported-peft-kind", r"(?s)\bvpt\b.*\blora\b"),
        ("prompt_tuning", "method.unsupported-peft-kind", "prompt_tuning"),
        ("p_tuning", "method.unsupported-peft-kind", "p_tuning"),
        ("poly", "method.unsupported-peft-kind", "poly"),
        ("lorra", "method.unknown-peft-kind", "Did you mean 'lora'"),
    ],
)
def test_what_cannot_be_done_is_said_before_a_run_begins(kind: str, code: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as refused:
        METHOD.build(PeftOptions(kind=kind), backbone("convnext:test_convnext"))
    assert refused.value.code == code


@pytest.mark.e2e
def test_every_kind_that_is_said_to_go_in_does_and_can_be_counted_or_is_told_why_not_by_its_own_name() -> None:
    went = set()
    for kind in list_injectable_kinds():
        stock = backbone()
        before = BackboneSnapshot.from_backbone(stock)
        try:
            adapted = METHOD.build(PeftOptions(kind=kind), stock)
        except UsageError as error:
            assert kind in error.what.lower(), error.what
            continue
        went.add(kind)
        head = classification.TASK.build(classification.TASK.options(), stock, ("a", "b"))
        model = Model(adapted, head, before)
        trained = list(model.get_trained_parameters())
        assert count_flops(model)["flops"] > 0, kind
        batch = {"image": stock.example(3), "label": torch.zeros(3, dtype=torch.int64)}
        kept = [
            estimate_memory(
                model, TrainingOptions(), {name: tensor[:size] for name, tensor in batch.items()}, Accelerator()
            )
            for size in (1, 3)
        ]
        assert kept[1].activations > kept[0].activations > 0, kind
        assert list(model.get_trained_parameters()) == trained, kind
    assert {"lora", "ia3", "loha", "lokr", "hra", "boft", "oft", "fourierft", "ln_tuning"} <= went
    assert list_injectable_kinds() - went <= {"c3a"}, "it wants an option that depends on the width"


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"rr": 3}, "method.unknown-peft-option", r"method.options.rr.*LoraConfig.*Did you mean 'r'"),
        ({"monteclora_config": {"monteclora_n": 2}}, "method.unsupported-peft-option", "monteclora_config"),
        ({"r": 0}, "method.peft-not-injected", "lora.*positive integer.*method.options"),
    ],
)
def test_an_option_that_peft_does_not_take_is_named_with_the_nearest(
    options: dict[str, int], code: str, words: str
) -> None:
    with pytest.raises(UsageError, match=f"(?s){words}") as refused:
        METHOD.build(PeftOptions(kind="lora", options=options), backbone())
    assert refused.value.code == code
