from __future__ import annotations

from typing import Any

import pytest
import yaml

from toast_cli.recipe.json_schema import build_recipe_schema
from toast_cli.recipe.parse import build_recipe, validate_partial_recipe
from toast_cli.recipe.safe_yaml import parse_recipe, to_yaml

RAW: dict[str, Any] = {"backbone": "vit_b", "dataset": "folder:.", "method": "lite"}


@pytest.mark.parametrize(
    "text",
    ["/data/x", "1e-3", "no", "010", "08", "1:30", "2024-01-01", "null", "é [b]: #", "a\nb", "", " x ", "x" * 200],
)
def test_a_recipe_reads_back_as_itself(text: str) -> None:
    training = {"lr": 1e-05, "weight_decay": 1e20, "warmup_epochs": 2.5}
    backbone = {"name": "vit_b", "image_size": [224, 96]}
    recipe = build_recipe({**RAW, "backbone": backbone, "data_dir": text, "training": training}, {}, "here")
    written = to_yaml(recipe)
    assert validate_partial_recipe(parse_recipe(written, "again")) == recipe
    assert "!!" not in written
    assert yaml.safe_load(written)["data_dir"] == text, "other readers of YAML agree about text"


def test_sections_come_first_and_begin_with_their_name() -> None:
    written = to_yaml(build_recipe(RAW, {}, "here"))
    assert written.startswith("backbone:\n  name: vit_b\n")
    assert list(yaml.safe_load(written))[:5] == ["backbone", "dataset", "method", "task", "images"]
    assert to_yaml(build_recipe(RAW, {}, "here")) == written


def test_the_schema_offers_what_is_registered(house: dict[str, Any], broken: dict[str, Any]) -> None:
    house["toast.methods"].update(broken)
    schema = build_recipe_schema()
    assert schema["required"] == ["backbone", "dataset", "method"]
    short, *long = schema["properties"]["method"]["oneOf"]
    assert short == {"enum": ["bare", "lite", "toast"]}, "what fails to load is left out"
    assert [form["properties"]["name"]["enum"] for form in long] == [["bare"], ["lite"], ["toast"]]
    for form in long:
        assert form["allOf"][0]["$ref"].rpartition("/")[2] in schema["$defs"]
