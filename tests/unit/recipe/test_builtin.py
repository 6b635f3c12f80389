"""What the built-in recipes say, and which of them a command line means."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from toast_cli.recipe.builtin import find_recipe, get_header_comment, list_recipes
from toast_cli.recipe.lookup import resolve_recipe
from toast_cli.utils.errors import UsageError


@pytest.fixture
def registered() -> None:
    """In place of what other tests of recipes make up: all that is really registered."""


def test_the_fine_grained_recipes_hold_the_settings_of_the_papers_appendix() -> None:
    rates = {"toast": 0.01, "toast-lite": 0.01, "linear": 0.01, "lora": 0.01, "vpt": 0.01, "full": 0.003}
    for dataset, method in itertools.product(("cub", "nabirds", "flowers", "dogs", "cars"), rates):
        resolved = resolve_recipe(backbone="vit_b16", dataset=dataset, method=method)
        assert resolved.name == f"fgvc/{dataset}-vit_b16-{method}"
        training, images = resolved.recipe.training, resolved.recipe.images
        found = (training.epochs, training.batch_size, training.warmup_epochs, training.lr)
        assert found == (100, 32, 10, rates[method]), resolved.name
        assert (training.momentum, training.schedule) == (0.9, "cosine"), resolved.name
        assert (images.resize, images.augment) == (256, "crop-flip"), resolved.name


def test_every_data_set_for_segmentation_has_a_recipe_for_every_method() -> None:
    families = {
        "voc": "segmentation/voc-vit_b16_in21k-",
        "ade20k": "segmentation/ade20k-vit_b16_in21k-",
        "demo-segmentation": "demo/segmentation-",
        "masks:some": "general/segmentation-",
    }
    methods = ("toast", "toast-lite", "full", "lora", "vpt", "linear")
    for (dataset, name), method in itertools.product(families.items(), methods):
        backbone = "vit_demo_3" if dataset == "demo-segmentation" else "vit_b16_in21k"
        found = resolve_recipe(backbone=backbone, dataset=dataset, method=method)
        assert found.name == name + method and found.recipe.method.name == method
        if method.startswith("toast"):
            assert found.recipe.method.feedback == "early", found.name  # type: ignore[attr-defined]
        assert found.recipe.task.name == "segmentation" and found.recipe.training.schedule == "poly", found.name


@pytest.mark.parametrize("dataset", ["cub", "vtab:dtd"])
@pytest.mark.parametrize("backbone", [None, "vit_s16"])
def test_where_nothing_fits_the_main_tables_backbone_lends_its_settings(dataset: str, backbone: str | None) -> None:
    assert "vit_b16-toast" in resolve_recipe(dataset=dataset, backbone=backbone).name
    assert resolve_recipe(dataset="cars", backbone="convnext_b", method="lora").name == "fgvc/cars-convnext_b-lora"


def test_every_recipe_of_a_published_set_opens_with_the_papers_number_and_the_measured_one() -> None:
    for name in list_recipes():
        if name.startswith(("fgvc/", "vtab/")):
            opening = get_header_comment(find_recipe(name).text)
            assert "\nPaper: " in opening and "\nMeasured: " in opening and "\nCommand: toast tune" in opening, name


def test_the_segmentation_recipes_open_with_the_papers_number() -> None:
    papers = {
        "ade20k-vit_b16_in21k-toast": "45.11 mean IoU (table 6; early feedback, section 4.4)",
        "ade20k-vit_b16_in21k-toast-full-feedback": "43.59 mean IoU (section 5), against early feedback's 45.11",
        "voc-vit_b16_in21k-toast": "80.44 mean IoU (table 6; early feedback, section 4.4)",
        "ade20k-vit_b16_in21k-full": "47.89 mean IoU (table 6)",
        "voc-vit_b16_in21k-full": "82.05 mean IoU (table 6)",
        "ade20k-vit_b16_in21k-lora": "42.94 mean IoU (table 6)",
        "voc-vit_b16_in21k-lora": "78.43 mean IoU (table 6)",
        "ade20k-vit_b16_in21k-vpt": "41.42 mean IoU (table 6)",
        "voc-vit_b16_in21k-vpt": "76.80 mean IoU (table 6)",
        "ade20k-vit_b16_in21k-linear": "no number for linear",
    }
    for name, paper in papers.items():
        opening = get_header_comment(find_recipe(f"segmentation/{name}").text)
        assert f"\nPaper: {paper}" in opening and "\nMeasured: " in opening and "\nCommand: toast tune" in opening, name


def test_every_recipe_for_segmentation_says_what_the_paper_has() -> None:
    for name in list_recipes():
        if name.startswith("segmentation/"):
            assert "\nPaper: " in get_header_comment(
                find_recipe(name).text
            ) and "No rate was tuned" in get_header_comment(find_recipe(name).text), name


def test_texts_take_settings_made_for_texts() -> None:
    resolved = resolve_recipe(backbone="llama:somewhere", dataset="text:some.txt", method="toast-lite")
    assert resolved.name == "general/language-toast-lite"
    assert resolved.recipe.training.optimizer == "adamw"
    assert not [message for message in resolved.messages if "dataset.path" in message]
    assert resolve_recipe(backbone="llama_7b", dataset="alpaca:a.json", method="lora").name == "language/alpaca-lora"
    assert resolve_recipe(dataset="sharegpt:a.json").name == "language/sharegpt-toast"


@pytest.mark.parametrize("method", ["toast", "toast-lite", "lora", "full"])
def test_a_small_language_model_takes_no_settings_made_for_a_large_one(method: str) -> None:
    resolved = resolve_recipe(backbone="llama:x", dataset="alpaca:a.json", method=method)
    assert resolved.name == f"general/language-{method}"
    assert resolved.recipe.dataset.path == "a.json"  # type: ignore[attr-defined]
    small, papers = (
        found.recipe.training
        for found in (resolved, resolve_recipe(backbone="llama_7b", dataset="alpaca:a.json", method=method))
    )
    assert papers.lr == 0.00002 and papers.batch_size * papers.accumulate == 128
    assert small.lr == "recommended" and small.batch_size * small.accumulate <= 16
    talk = resolve_recipe(backbone="llama:x", dataset="sharegpt:a.json", method=method)
    assert talk.name == f"general/language-{method}" and not talk.messages


def test_a_bare_folder_is_answered_with_how_to_name_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        resolve_recipe(backbone="vit_b16", dataset=str(tmp_path))
    assert f"folder:{tmp_path}" in refused.value.what_to_do


def test_a_size_made_for_one_backbone_is_not_put_on_another() -> None:
    resolved = resolve_recipe(backbone="vit_s14_dinov2", dataset="cub", method="toast")
    assert resolved.recipe.images.resize is None
    assert any("images.resize" in message for message in resolved.messages)
    asked = resolve_recipe(backbone="vit_s14_dinov2", dataset="cub", method="toast", overrides=["images.resize=600"])
    assert asked.recipe.images.resize == 600
    assert resolve_recipe(backbone="vit_s14_dinov2", dataset="folder:x", method="toast").recipe.images.resize is None
