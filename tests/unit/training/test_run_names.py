"""Runs that are not given a folder are named after what they are."""

from __future__ import annotations

import pytest

from toast_cli.recipe.parse import build_recipe
from toast_cli.training.run import get_default_run_name


@pytest.mark.parametrize(
    ("backbone", "shown"),
    [
        ("vit_demo_3", "vit_demo_3"),
        ("vit:vit_base_patch16_clip_224.openai", "vit-vit_base_patch16_clip_224.openai"),
        ("llama:/somewhere/of my own/models/little", "llama-little"),
        ("llama:owner/little model", "llama-little-model"),
    ],
)
def test_a_run_is_named_by_the_last_part_of_its_backbones_path(backbone: str, shown: str) -> None:
    recipe = build_recipe({"backbone": backbone, "dataset": "demo", "method": "toast"}, {}, origin="here")
    assert get_default_run_name(recipe) == f"demo-{shown}-toast-seed0"
