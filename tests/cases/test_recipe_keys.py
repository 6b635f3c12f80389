"""A key of a YAML file that is no field (a number, a date, null, yes, nothing, a repeated key) is named with its line.

YAML 1.1 reads `0`, `on` and `2020-01-01` as a number, a Boolean and a date; a recipe has names alone.
"""

from __future__ import annotations

import pytest

from toast_cli.bench.suite import parse_suite
from toast_cli.recipe.parse import validate_partial_recipe
from toast_cli.recipe.safe_yaml import parse_recipe
from toast_cli.utils.errors import UsageError

KEYS = {
    "0: x": "0 = 'x' (r.yaml:4)",
    "1.5: x": "1.5 = 'x' (r.yaml:4)",
    "0x10: x": "0x10 = 'x' (r.yaml:4)",
    "null: x": "null = 'x' (r.yaml:4)",
    "~: x": "~ = 'x' (r.yaml:4)",
    "on: x": "on = 'x' (r.yaml:4)",
    "yes: x": "yes = 'x' (r.yaml:4)",
    "true: x": "true = 'x' (r.yaml:4)",
    "2020-01-01: x": "2020-01-01 = 'x' (r.yaml:4)",
    "training: {0: 1}": "training.0 = 1 (r.yaml:4): there is no such field. Known: accumulate",
    "pretuning: {0: 1}": "pretuning.0 = 1 (r.yaml:4): there is no such field. Known: passes",
    "images: {mean: {0: 0.5}}": 'images.mean = {"0": 0.5} (r.yaml:4): must be a list',
    "images: {mean: [0, {1: 2}, 3]}": 'images.mean[1] = {"1": 2} (r.yaml:4): must be a number',
    "0: x\n0: y": "r.yaml:5: '0' is given twice, first at r.yaml:4",
    "training: {lr: 1, lr: 2}": "r.yaml:4: 'training.lr' is given twice",
    "? \n: x": "r.yaml:4: a key is empty",
    "? [a]\n: x": "r.yaml:4: a key must be a plain word",
    "seed: 2020-01-01": "seed = '2020-01-01' (r.yaml:4): must be a whole number",
}


@pytest.mark.parametrize("text", KEYS)
def test_a_key_that_is_no_field_is_named_with_its_line(text: str) -> None:
    whole = f"backbone: vit_demo\ndataset: demo\nmethod: linear\n{text}\n"
    with pytest.raises(UsageError) as caught:
        validate_partial_recipe(parse_recipe(whole, "r.yaml"))
    assert KEYS[text] in " ".join(str(caught.value).split()) and caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["0: x", "rows: {a: {method: linear, 0: x}}", "null: x", "? \n: x"])
def test_so_is_one_of_a_suite(text: str) -> None:
    lines = [
        "backbone: vit_demo",
        "datasets: {demo: demo}",
        *(["rows: {a: {method: linear}}"] if "rows" not in text else []),
    ]
    with pytest.raises(UsageError) as caught:
        parse_suite("\n".join([*lines, text]), "s.yaml")
    assert f"s.yaml:{len(lines) + 1}" in str(caught.value)
