"""A plan from a few levels on the meta device against one of the whole model, which is built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from transformers import LlamaConfig, LlamaForCausalLM

from toast_cli.model.model import build_model
from toast_cli.recipe.parse import build_recipe
from toast_cli.recipe.schema import Recipe
from toast_cli.training.plan.memory import estimate_memory
from toast_cli.training.plan.method_costs import list_variants
from toast_cli.training.plan.outline import (
    build_outline,
    count_outline_flops,
    estimate_outline_memory,
    make_text_batch,
    outline_model,
)
from toast_cli.training.plan.text_lengths import TextLength


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=200, **sizes)).to(torch.bfloat16).save_pretrained(path)
    return path


def recipe_of(folder: Path, method: str, checkpointed: bool = False, **options: object) -> Recipe:
    backbone = {"name": f"llama:{folder}"}
    training = {"checkpoint_gradients": checkpointed, "optimizer": "adamw"}
    raw = {"backbone": backbone, "dataset": "text:none", "method": {"name": method, **options}, "training": training}
    return build_recipe(raw, {}, origin="a test")


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("method", ["toast", "lora", "full"])
def test_a_few_levels_tell_the_memory_of_the_whole(folder: Path, method: str, checkpointed: bool) -> None:
    recipe, length, accelerator = recipe_of(folder, method, checkpointed), TextLength(40, 30), Accelerator(cpu=True)
    outlined = outline_model(recipe, build_outline(recipe))
    assert [len(part.backbone.levels) for part in outlined.measured] == [2, 4]
    estimate = estimate_outline_memory(outlined, recipe, length, accelerator).estimate(2)
    built = estimate_memory(build_model(recipe, ()), recipe.training, make_text_batch(2, length), accelerator)
    assert (estimate.weights, estimate.gradients, estimate.optimizer) == (
        built.weights,
        built.gradients,
        built.optimizer,
    )
    assert estimate.activations == pytest.approx(built.activations, rel=0.05)
    own, plain = count_outline_flops(outlined, length)
    assert own > 1.9 * plain if method == "toast" else own >= plain


def test_levels_that_are_not_alike_are_all_measured(folder: Path) -> None:
    recipe = recipe_of(folder, "toast", feedback="late", feedback_level=5)
    outlined = outline_model(recipe, build_outline(recipe))
    assert [len(part.backbone.levels) for part in outlined.measured] == [6]


def test_methods_of_images_are_planned_for_texts_only_if_they_are_named() -> None:
    assert {"linear", "vpt"} <= set(list_variants())
    assert not {"linear", "vpt"} & set(list_variants(texts=True))
    assert "vpt" in list_variants(["vpt"], texts=True) and "lora" in list_variants(texts=True)
