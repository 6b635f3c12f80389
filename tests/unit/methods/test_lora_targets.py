"""Which layers LoRA adapts: all linear ones of a language model, and what a run has recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.language import make_model
from toast_cli import registry
from toast_cli.backbones.base import Backbone
from toast_cli.methods.adapted_model import AdaptedModel
from toast_cli.recipe.lookup import resolve_recipe
from toast_cli.recipe.parse import build_recipe


@pytest.fixture
def backbone(tmp_path: Path) -> Backbone:
    card = registry.load_backbone_card(f"lm:{make_model(tmp_path / 'model')}")
    return card.build(card.options(name=card.name))


def adapt(backbone: Backbone, **options: Any) -> AdaptedModel:
    lora = registry.load_entry(registry.METHODS, "lora")
    return lora.build(lora.complete(lora.options(**options), "language"), backbone)


def list_layers(adapted: AdaptedModel) -> set[str]:
    trained = (name for name, weight in adapted.network.named_parameters() if weight.requires_grad)
    return {name.partition(".lora_")[0].rpartition(".")[2] for name in trained}


def test_a_language_model_has_factors_in_all_linear_layers_and_not_in_its_head(backbone: Backbone) -> None:
    adapted = adapt(backbone)
    names = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert list_layers(adapted) == names
    (note,) = adapted.notes
    assert note.startswith("lora adapts 14 layers:") and all(name in note for name in names)


def test_recorded_targets_of_an_earlier_run_stay(backbone: Backbone) -> None:
    assert list_layers(adapt(backbone, targets=None)) == {"q_proj", "v_proj"}


def test_a_new_recipe_records_the_choice_and_a_recorded_null_stays_null() -> None:
    chosen = {"backbone": "llama_3_2_1b", "dataset": "alpaca:a.json", "method": "lora"}
    recipe = resolve_recipe(**chosen).recipe  # type: ignore[arg-type]
    assert recipe.method.model_dump()["targets"] == "all-linear"
    earlier = resolve_recipe(**chosen, overrides=["method.targets=null"]).recipe  # type: ignore[arg-type]
    assert earlier.method.model_dump()["targets"] is None
    again = build_recipe(earlier.model_dump(mode="json"), {}, "recipe.yaml")
    assert again.method.model_dump()["targets"] is None
    vision = resolve_recipe(backbone="vit_b16", dataset="demo", method="lora").recipe
    assert vision.method.model_dump()["targets"] is None


def test_the_papers_recipe_counts_the_parameters_of_its_table() -> None:
    recipe = resolve_recipe(backbone="llama_7b", dataset="alpaca:a.json", method="lora").recipe
    method = recipe.method.model_dump()
    assert method["targets"] == ("q_proj", "v_proj")
    assert method["rank"] * 2 * 2 * 4096 * 32 == 4_194_304  # 4.2M in table 12
