from __future__ import annotations

import pytest

from toast_cli.recipe.overrides import apply_overrides
from toast_cli.recipe.parse import validate_partial_recipe
from toast_cli.recipe.safe_yaml import parse_value
from toast_cli.recipe.unvalidated_recipe import PartialRecipe
from toast_cli.utils.errors import UsageError


def draft() -> PartialRecipe:
    method = {"name": "lite", "rank": 8}
    return PartialRecipe({"backbone": "vit_b", "dataset": "birds", "method": method, "seed": 1}, {}, "r.yaml")


def test_overrides_reach_any_field() -> None:
    changed = draft()
    dropped = apply_overrides(
        changed, ["training.lr=1e-3", "method.train_P=false", "images.mean=[0.5,0.5,0.5]", "backbone.weights=none"]
    )
    recipe = validate_partial_recipe(changed)
    assert dropped == []
    assert recipe.training.lr == 0.001
    assert recipe.method.train_P is False  # type: ignore[attr-defined]
    assert recipe.images.mean == (0.5, 0.5, 0.5)
    assert recipe.backbone.weights == "none"


@pytest.mark.parametrize("override", ["method=toast", "method.name=toast"])
def test_another_name_drops_the_fields_of_the_former_one(override: str) -> None:
    changed = draft()
    assert apply_overrides(changed, [override]) == ["method.rank"]
    assert changed.values["method"] == {"name": "toast"}


def test_the_same_name_keeps_the_fields() -> None:
    changed = draft()
    assert apply_overrides(changed, ["method=lite"]) == []
    assert changed.values["method"]["rank"] == 8


def test_a_name_counts_before_the_fields_given_with_it() -> None:
    changed = draft()
    apply_overrides(changed, ["dataset.path=/x", "dataset=folder"])
    assert changed.values["dataset"] == {"name": "folder", "path": "/x"}


def test_the_later_of_two_overrides_counts() -> None:
    changed = draft()
    apply_overrides(changed, ["seed=2", "seed=3"])
    assert changed.values["seed"] == 3


@pytest.mark.parametrize(
    ("override", "code"),
    [
        ("training.lr", "recipe.invalid-override"),
        ("training.lr=", "recipe.invalid-override"),
        ("training..lr=1", "recipe.invalid-override"),
        ("=1", "recipe.invalid-override"),
        ("seed.x=1", "recipe.not-a-section"),
        ("images.mean=[1,", "recipe.invalid-yaml"),
    ],
)
def test_an_override_of_the_wrong_form_is_refused(override: str, code: str) -> None:
    with pytest.raises(UsageError) as refused:
        apply_overrides(draft(), [override])
    assert refused.value.code == code
    assert override in str(refused.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.lrr=1", ["training.lrr = 1 (from training.lrr=1)", "Did you mean 'lr'?"]),
        ("trainig.lr=1", ["(from trainig.lr=1)", "Did you mean 'training'?"]),
        ("training.lr=fast", ["training.lr = 'fast' (from training.lr=fast)", "must be a number"]),
        ("method=lit", ["method.name = 'lit' (from method=lit)", "Did you mean 'lite'?"]),
    ],
)
def test_a_wrong_value_is_traced_to_its_override(override: str, words: list[str]) -> None:
    changed = draft()
    apply_overrides(changed, [override])
    with pytest.raises(UsageError) as refused:
        validate_partial_recipe(changed)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize("mark", ["|", ",", ";", "/", "-", "&", "*"])
def test_a_single_mark_is_text(mark: str) -> None:
    assert parse_value(mark, "a test") == mark
