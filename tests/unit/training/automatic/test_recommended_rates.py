"""The learning rate of language models by method and size of the model (`training.lr=recommended`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.language import instructions, make_model, write_json
from toast_cli.recipe.lookup import resolve_recipe
from toast_cli.recipe.parse import build_recipe
from toast_cli.training.automatic.recommended_rates import RATES, find_recommended_rate
from toast_cli.training.pretune import to_pretuning_recipe
from toast_cli.training.session import prepare_session
from toast_cli.utils.errors import UsageError

METHODS = ["toast", "toast-lite", "lora", "full"]
SIZES = [260_000, 99_000_000, 135_000_000, 7_000_000_000, 65_000_000_000]


@pytest.mark.parametrize("method", METHODS)
def test_a_larger_model_never_has_a_higher_rate_and_every_rate_has_a_source(method: str) -> None:
    choices = [find_recommended_rate(method, size) for size in SIZES]
    rates = [choice.rate.lr for choice in choices]
    assert rates == sorted(rates, reverse=True)
    assert rates[1] > 10 * rates[2], "measured rates end at 100 million parameters"
    assert all(choice.rate.source in choice.message for choice in choices)


def test_rates_of_large_models_are_the_published_ones() -> None:
    published = {"toast": 2e-5, "toast-lite": 2e-5, "lora": 2e-4, "full": 2e-5}
    assert {method: find_recommended_rate(method, 6_738_415_616).rate.lr for method in METHODS} == published
    assert find_recommended_rate("lora", 33 * 10**9).rate.lr == 1e-4  # QLoRA, 33B
    assert all("measured" in row.source for row in RATES if row.parameters == 100_000_000)


def test_a_method_without_rates_takes_those_of_lora_and_the_user_is_told() -> None:
    choice = find_recommended_rate("peft", 260_000)
    assert choice.rate == find_recommended_rate("lora", 260_000).rate
    assert "for lora" in choice.message and "peft has no rates of its own" in choice.message


def test_a_run_gets_the_number_with_its_source(tmp_path: Path) -> None:
    data = write_json(tmp_path / "data.json", instructions(20))
    resolved = resolve_recipe(backbone=f"llama:{make_model(tmp_path / 'model')}", dataset=f"alpaca:{data}")
    assert resolved.recipe.training.lr == "recommended"
    session = prepare_session(resolved.recipe)
    expected = find_recommended_rate("toast", 23_000).rate
    assert session.recipe.training.lr == expected.lr
    assert session.rate is not None and session.rate.parameters > 20_000
    assert any("training.lr=recommended: 0.0" in note for note in session.describe_choices())


@pytest.mark.parametrize("pretuning", [False, True])
def test_images_and_pre_tuning_have_no_recommended_rate(pretuning: bool) -> None:
    raw: dict[str, Any] = {
        "backbone": "vit_demo_3",
        "dataset": {"name": "demo", "train_images": 4, "val_images": 2, "test_images": 2},
        "method": "toast",
        "training": {"lr": "recommended"},
        "device": "cpu",
    }
    recipe = build_recipe(raw, {}, origin="a test")
    with pytest.raises(UsageError) as refused:
        prepare_session(to_pretuning_recipe(recipe) if pretuning else recipe)
    assert refused.value.code == "training.no-recommended-rate"
    assert ("pre-tuning" if pretuning else "classification") in refused.value.what
