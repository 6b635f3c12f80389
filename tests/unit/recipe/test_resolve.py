from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from toast_cli.recipe import builtin
from toast_cli.recipe import lookup as library
from toast_cli.recipe.builtin import find_recipe, get_header_comment, list_recipes
from toast_cli.recipe.lookup import RecipeMatch, find_nearest_recipe, resolve_recipe
from toast_cli.recipe.safe_yaml import parse_recipe
from toast_cli.utils.errors import UsageError

pytestmark = pytest.mark.usefixtures("shelf")


def test_built_in_recipes_are_found_by_name() -> None:
    assert list_recipes() == ["demo/toast", "fgvc/birds-a", "fgvc/birds-b", "fgvc/birds-c", "general/toast"]
    assert find_recipe("demo/toast").built_in
    assert find_recipe("demo/toast.yaml").name == "demo/toast"


def test_a_file_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "toast").write_text("mine: true")
    assert find_recipe("demo/toast").text == "mine: true"


@pytest.mark.parametrize("name", ["demo/tost", "demo/tost.yaml"])
def test_an_unknown_name_is_answered_with_the_nearest(name: str) -> None:
    with pytest.raises(UsageError, match="Did you mean 'demo/toast'") as refused:
        find_recipe(name)
    assert refused.value.code == "recipe.unknown-recipe"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_recipe_and_is_not_said_to_be_absent(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(UsageError, match=r"a\.yaml") as refused:
        find_recipe(str(tmp_path / "a.yaml"))
    assert refused.value.code == "recipe.not-a-regular-file"


def test_the_header_is_the_opening_comment() -> None:
    assert get_header_comment("# One.\n#  two\n\n# not this\na: 1\n") == "One.\n two"
    assert get_header_comment("a: 1\n# no\n") == ""


@pytest.mark.parametrize(
    ("wanted", "match"),
    [
        ((None, "birds", None), RecipeMatch("demo/toast", ())),
        (("vit_b", "birds", None), RecipeMatch("fgvc/birds-c", ())),
        (("vit_b", "birds", "lite"), RecipeMatch("fgvc/birds-b", ())),
        ((None, "birds", "lite"), RecipeMatch("fgvc/birds-a", ())),
        (("vit:x", "birds:/p", "lite"), RecipeMatch("fgvc/birds-a", ("backbone",))),
        (("vit_s", "birds", "full"), RecipeMatch("demo/toast", ("method",))),
        ((None, "folder:x", None), None),
    ],
)
def test_the_nearest_recipe_goes_by_method_then_backbone(
    wanted: tuple[str | None, str, str | None], match: RecipeMatch | None
) -> None:
    assert find_nearest_recipe(*wanted) == match


def test_thirty_recipes_are_searched_in_a_moment(shelf: Path) -> None:
    for number in range(30):
        text = (shelf / "fgvc/birds-b.yaml").read_text()
        (shelf / f"fgvc/more-{number}.yaml").write_text(text + "images:\n  resize: 256\n")
    find_nearest_recipe(None, "birds", None)
    began = time.perf_counter()
    find_nearest_recipe(None, "birds", None)
    assert time.perf_counter() - began < 0.5  # 0.02 on an idle core; room for a busy one


def test_the_recipes_are_read_but_not_parsed_again_for_every_run_of_a_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed, listed = [], []
    monkeypatch.setattr(
        library, "parse_recipe", lambda text, origin: parsed.append(origin) or parse_recipe(text, origin)
    )
    monkeypatch.setattr(builtin, "list_recipes", lambda: listed.append(1) or list_recipes())
    find_nearest_recipe(None, "birds", None)
    parsed.clear()
    assert find_nearest_recipe("vit_b", "birds", None) == RecipeMatch("fgvc/birds-c", ())
    assert (parsed, listed) == ([], []), "nor is the folder listed for each of them"


def test_without_arguments_it_is_the_demo() -> None:
    resolved = resolve_recipe()
    assert resolved.name == "demo/toast"
    assert resolved.source == "Recipe: demo/toast (built in)"
    assert resolved.messages == []


def test_a_method_alone_is_put_into_the_demo() -> None:
    resolved = resolve_recipe(method="lite")
    assert (resolved.name, resolved.recipe.method.name) == ("demo/toast", "lite")  # type: ignore[attr-defined]
    assert resolved.messages == ["The training settings of demo/toast were made for toast, not lite."]


def test_a_data_set_without_recipes_takes_the_general_one() -> None:
    resolved = resolve_recipe(
        dataset="folder:/x", backbone="vit_s", seed=3, device="cpu", precision="fp32", data_dir="/d"
    )
    recipe = resolved.recipe
    assert resolved.name == "general/toast"
    assert recipe.dataset.path == "/x"  # type: ignore[attr-defined]
    assert (recipe.backbone.name, recipe.seed, recipe.device, recipe.data_dir) == ("vit_s", 3, "cpu", "/d")


def test_a_data_set_without_recipes_needs_a_backbone() -> None:
    with pytest.raises(UsageError, match="Add --backbone") as refused:
        resolve_recipe(dataset="folder:/x")
    assert refused.value.code == "recipe.missing-backbone"


def test_an_unknown_data_set_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"'bird' \(from --dataset\)") as refused:
        resolve_recipe(dataset="bird")
    assert refused.value.code == "recipe.unknown-name"
    assert "Did you mean 'birds'?" in str(refused.value)


def test_what_is_dropped_and_what_was_made_for_something_else_is_said() -> None:
    resolved = resolve_recipe(recipe="fgvc/birds-b", method="toast", overrides=["training.epochs=2"])
    assert resolved.recipe.training.lr == 0.03
    assert resolved.recipe.training.epochs == 2
    assert resolved.messages == [
        "Dropped because they belong to what was replaced: method.rank.",
        "The training settings of fgvc/birds-b were made for lite, not toast.",
    ]


@pytest.mark.parametrize(
    ("asked", "start"),
    [
        ({}, "shipped"),
        ({"overrides": ["method.start=random"]}, None),
        ({"overrides": ["method.start=random", "init_from=mine"]}, "mine"),
        ({"init_from": "mine", "overrides": ["method.start=random"]}, "mine"),
        ({"backbone": "vit_b"}, None),
        ({"backbone": "vit_b", "init_from": "shipped"}, "shipped"),
        ({"method": "bare"}, None),
        ({"method": "lite"}, "shipped"),
        ({"weights": "none"}, None),
    ],
)
def test_a_recipes_own_start_gives_way_to_one_that_is_asked_for(
    shelf: Path, asked: dict[str, Any], start: str | None
) -> None:
    with (shelf / "demo/toast.yaml").open("a") as recipe:
        recipe.write("init_from: shipped\n")
    resolved = resolve_recipe(recipe="demo/toast", **asked)
    assert resolved.recipe.init_from == start
    assert any("init_from" in message for message in resolved.messages) is (start is None)


def test_weights_stay_with_the_backbone_that_they_are_given_with() -> None:
    assert resolve_recipe(backbone="vit_b", weights="none").recipe.backbone.weights == "none"


def test_a_wrong_option_is_traced_to_the_option() -> None:
    with pytest.raises(UsageError) as refused:
        resolve_recipe(method="lit", backbone="vit_x", seed=-1, precision="fp8")
    message = str(refused.value)
    assert refused.value.code == "recipe.invalid"
    assert "method.name = 'lit' (from --method)" in message
    assert "backbone.name = 'vit_x' (from --backbone)" in message
    assert "seed = -1 (from --seed): must be at least 0." in message
    assert "precision = 'fp8' (from --precision)" in message


def test_settings_that_nobody_changed_are_dropped_in_silence() -> None:
    start = resolve_recipe(recipe="fgvc/birds-a", overrides=["dataset.shots=3"]).recipe.model_dump(mode="json")
    found = resolve_recipe(init_from="first", dataset="folder:pets", method="toast", start=start)
    (dropped,) = [message for message in found.messages if "Dropped" in message]
    assert dropped == "Dropped because they belong to what was replaced: dataset.shots."


def test_a_run_continues_at_a_tenth_of_the_rate_and_not_at_a_hundredth() -> None:
    start = resolve_recipe(backbone="vit_b", overrides=["training.lr=0.003", "training.head_lr=0.01"]).recipe
    values = start.model_dump(mode="json")
    found = resolve_recipe(init_from="first", start=values)
    assert (found.recipe.training.lr, found.recipe.training.head_lr) == (0.0003, 0.001)
    assert any("a tenth of that of the start" in message for message in found.messages)
    again = resolve_recipe(init_from="second", start={**values, "init_from": "first"})
    assert again.recipe.training.lr == 0.003
    chosen = resolve_recipe(init_from="first", start=values, overrides=["training.lr=0.02"])
    assert chosen.recipe.training.lr == 0.02
