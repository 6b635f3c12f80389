from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from toast_cli.recipe.parse import build_recipe, load_recipe
from toast_cli.utils.errors import ToastError, UsageError

GOOD = "backbone: vit_b\ndataset: birds\nmethod: lite\n"


def problems_of(text: str, folder: Path, code: str) -> str:
    path = folder / "cub.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as refused:
        load_recipe(path)
    assert refused.value.exit_code == 2
    assert refused.value.code == code
    message = str(refused.value).replace(str(path), "cub.yaml")
    assert "pydantic" not in message
    assert "Input should" not in message
    return message


def test_a_bare_name_and_a_mapping_mean_the_same() -> None:
    short = build_recipe({"backbone": "vit_b", "dataset": "folder:/data/x:y", "method": "lite"}, {}, "here")
    long = build_recipe(
        {
            "backbone": {"name": "vit_b"},
            "dataset": {"name": "folder", "path": "/data/x:y"},
            "method": {"name": "lite"},
            "task": "classification",
        },
        {},
        "here",
    )
    assert short == long


def test_a_family_takes_any_model() -> None:
    recipe = build_recipe({"backbone": "vit:some_model", "dataset": "birds", "method": "toast"}, {}, "here")
    assert recipe.backbone.name == "vit:some_model"


def test_what_a_recipe_is_made_of_stays_as_it_was() -> None:
    raw: dict[str, Any] = {"backbone": "vit_b", "dataset": "birds", "method": "toast"}
    build_recipe(raw, {}, "here")
    assert raw == {"backbone": "vit_b", "dataset": "birds", "method": "toast"}


def test_exponents_without_a_dot_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD + "training: {lr: 1e-3}\n")
    assert load_recipe(path).training.lr == 0.001


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (
            GOOD.replace("vit_b", "vit_x"),
            "recipe.unknown-name",
            ["backbone.name = 'vit_x' (cub.yaml:1)", "Did you mean 'vit_", "vit:<model>"],
        ),
        (
            GOOD.replace("birds", "brids"),
            "recipe.unknown-name",
            ["dataset.name = 'brids' (cub.yaml:2)", "Did you mean 'birds'?"],
        ),
        (
            GOOD.replace("lite", "lit"),
            "recipe.unknown-name",
            ["method.name = 'lit' (cub.yaml:3)", "Did you mean 'lite'?"],
        ),
        (GOOD + "task: clasification", "recipe.unknown-name", ["(cub.yaml:4)", "Did you mean 'classification'?"]),
        (
            GOOD + "training:\n  epochz: 3",
            "recipe.unknown-field",
            ["training.epochz = 3 (cub.yaml:5)", "Did you mean 'epochs'?"],
        ),
        (GOOD + "trainign: {}", "recipe.unknown-field", ["trainign = {} (cub.yaml:4)", "Did you mean 'training'?"]),
        (GOOD + "lr: 0.1", "recipe.unknown-field", ["lr = 0.1 (cub.yaml:4)", "Did you mean 'training.lr'?"]),
        (
            GOOD.replace("lite", "{name: lite, rnk: 2}"),
            "recipe.unknown-field",
            ["method.rnk = 2 (cub.yaml:3)", "Did you mean 'rank'?"],
        ),
        (
            GOOD.replace("lite", "{name: lite, rank: 0}"),
            "recipe.out-of-range",
            ["method.rank = 0 (cub.yaml:3)", "must be at least 1."],
        ),
        (GOOD.replace("lite", "{rank: 0}"), "recipe.missing", ["method.name (cub.yaml:3): is missing."]),
        (GOOD.replace("lite", "{name: 3}"), "recipe.wrong-type", ["method.name = 3 (cub.yaml:3): must be a name."]),
        (
            GOOD.replace("lite", "[lite]"),
            "recipe.wrong-type",
            ['method = ["lite"] (cub.yaml:3)', "must be a name, or a mapping"],
        ),
        (
            GOOD.replace("method: lite\n", ""),
            "recipe.missing",
            ["method (cub.yaml): is missing. Write 'method: NAME'."],
        ),
        (GOOD.replace("birds", "folder"), "recipe.missing", ["dataset.path (cub.yaml:2): is missing."]),
        (
            GOOD.replace("birds", "birds:/x"),
            "recipe.unknown-field",
            ["dataset.path = '/x' (cub.yaml:2)", "no such field"],
        ),
        (
            GOOD + "images: {augment: flop}",
            "recipe.unknown-choice",
            ["images.augment = 'flop'", "'crop-flip'", "Did you mean 'flip'?"],
        ),
        (
            GOOD + "images: {mean: [0.5, a, 0.5]}",
            "recipe.wrong-type",
            ["images.mean[1] = 'a' (cub.yaml:4): must be a number."],
        ),
        (
            GOOD + "images: {std: [1, 2]}",
            "recipe.out-of-range",
            ["images.std = [1, 2]", "must have at least 3 entries."],
        ),
        (GOOD + "images: 3", "recipe.wrong-type", ["images = 3 (cub.yaml:4): must hold 'key: value' lines."]),
        (
            GOOD + "training: {lr: fast}",
            "recipe.wrong-type",
            ["training.lr = 'fast'", "must be a number, auto or recommended."],
        ),
        (GOOD + "training: {epochs: true}", "recipe.wrong-type", ["training.epochs = true", "must be a whole number."]),
        (GOOD + "training: {epochs: '3'}", "recipe.wrong-type", ["training.epochs = '3'", "must be a whole number."]),
        (
            GOOD + "training: {tensorboard: no}",
            "recipe.wrong-type",
            ["training.tensorboard = 'no'", "must be true or false."],
        ),
        (GOOD + "training: {warmup_epochs: .inf}", "recipe.out-of-range", ["must be a finite number"]),
        (
            GOOD.replace("vit_b", "{name: vit_b, image_size: big}"),
            "recipe.wrong-type",
            ["backbone.image_size = 'big'", "a whole number, or must be a list."],
        ),
        (
            GOOD.replace("vit_b", "{name: vit_b, image_size: [224, x]}"),
            "recipe.wrong-type",
            ["backbone.image_size[1] = 'x' (cub.yaml:1): must be a whole number."],
        ),
    ],
)
def test_a_mistake_is_named_with_field_value_line_and_expectation(
    text: str, code: str, words: list[str], tmp_path: Path
) -> None:
    message = problems_of(text, tmp_path, code)
    for word in words:
        assert word in message
    assert message.count("\n") == 1, "one problem, one line"
    assert "cub.yaml" in message.partition("\n")[0]


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    text = "backbone: vit_x\ndataset: brids\nmethod: {name: lite, rank: 0}\ntraining: {lr: -1}\nsed: 1\n"
    message = problems_of(text, tmp_path, "recipe.invalid")
    for field in ("backbone.name", "dataset.name", "method.rank", "training.lr", "sed"):
        assert f"  {field} = " in message


def test_a_plugin_that_fails_is_not_the_recipes_fault(house: dict[str, Any], broken: dict[str, Any]) -> None:
    house["toast.methods"].update(broken)
    with pytest.raises(ToastError, match="missing_dep") as failed:
        build_recipe({"backbone": "vit_b", "dataset": "birds", "method": "broken"}, {}, "here")
    assert failed.value.exit_code == 1


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"#" * 1_000_001])
def test_a_file_that_is_no_text_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"r\.yaml"):
        load_recipe(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        load_recipe(tmp_path / "gone.yaml")
    assert refused.value.code == "recipe.unreadable-file"
