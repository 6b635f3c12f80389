from __future__ import annotations

import time
from typing import Any

import pytest

from toast_cli.recipe.safe_yaml import parse_recipe, parse_value
from toast_cli.utils.errors import UsageError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-2E5", -2e5),
        ("0.5", 0.5),
        (".5", 0.5),
        ("010", 10),
        ("-3", -3),
        ("1:30", "1:30"),
        ("no", "no"),
        ("true", True),
        ("none", "none"),
        ("null", None),
        ("~", None),
        ("2024-01-01", "2024-01-01"),
        ("'1e-3'", "1e-3"),
        ("[0.5, 1e-1, a]", [0.5, 0.1, "a"]),
        ("{a: [1, {b: false}]}", {"a": [1, {"b": False}]}),
        ("1" * 5000, "1" * 5000),
    ],
)
def test_values_are_read_as_their_writer_means_them(text: str, value: Any) -> None:
    found = parse_value(text, "here")
    assert found == value
    assert type(found) is type(value)


def test_infinity_is_a_number() -> None:
    assert parse_value("-.inf", "here") == float("-inf")


def test_every_value_knows_its_line() -> None:
    draft = parse_recipe("# comment\nmethod: lite\nimages:\n  mean:\n    - 1\n    - 2\n", "cub.yaml")
    assert draft.places[("images", "mean", 1)] == "cub.yaml:6"
    assert draft.locate(("method", "name")) == "cub.yaml:2"
    assert draft.locate(("images", "std")) == "cub.yaml:3"


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", "recipe.unsupported-yaml", ["r.yaml:3", "'a'", "r.yaml:1"]),
        ("x: {a: 1, a: 2}", "recipe.unsupported-yaml", ["'x.a'"]),
        ("a: &x 1\nb: *x", "recipe.unsupported-yaml", ["r.yaml:2", "'*x'"]),
        ("a: !!python/object/apply:os.system [ls]", "recipe.unsupported-yaml", ["r.yaml:1", "python/object"]),
        ("a: 1\n---\nb: 2", "recipe.unsupported-yaml", ["r.yaml:2"]),
        ("- 1\n- 2", "recipe.not-a-mapping", ["a list"]),
        ("hello", "recipe.not-a-mapping", ["a single value"]),
        ("# nothing", "recipe.not-a-mapping", ["nothing"]),
        ("", "recipe.not-a-mapping", ["nothing"]),
        ("a: [1,\nb: 2", "recipe.invalid-yaml", ["r.yaml:3"]),
        ("a:\n\tb: 1", "recipe.invalid-yaml", ["r.yaml:2"]),
        ("a: \x00", "recipe.invalid-yaml", ["control characters"]),
        ("? [a]\n: 1", "recipe.unsupported-yaml", ["r.yaml:1"]),
        ("a: " + "x" * 1_000_001, "recipe.oversized-file", ["1 MB"]),
    ],
)
def test_what_is_no_recipe_is_refused_with_its_line(text: str, code: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as refused:
        parse_recipe(text, "r.yaml")
    assert refused.value.code == code
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize("bomb", ["[" * 500_000, "{a: " * 100_000, "- " * 100_000])
def test_a_bomb_is_refused_at_once(bomb: str) -> None:
    began = time.perf_counter()
    with pytest.raises(UsageError) as refused:
        parse_recipe(bomb, "bomb.yaml")
    assert refused.value.code in ("recipe.unsupported-yaml", "recipe.invalid-yaml")
    assert time.perf_counter() - began < 2
