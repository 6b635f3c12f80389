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
    assert draft.place(("method", "name")) == "cub.yaml:2"
    assert draft.place(("images", "std")) == "cub.yaml:3"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", ["r.yaml:3", "'a' is given twice, first at r.yaml:1"]),
        ("x: {a: 1, a: 2}", ["'x.a' is given twice"]),
        ("a: &x 1\nb: *x", ["r.yaml:2", "'*x' refers to another part"]),
        ("a: !!python/object/apply:os.system [ls]", ["r.yaml:1", "python/object", "no meaning"]),
        ("a: 1\n---\nb: 2", ["r.yaml:2", "second document"]),
        ("- 1\n- 2", ["this file holds a list"]),
        ("hello", ["this file holds a single value"]),
        ("# nothing", ["this file holds nothing"]),
        ("", ["this file holds nothing"]),
        ("a: [1,\nb: 2", ["r.yaml:3", "not valid YAML"]),
        ("a:\n\tb: 1", ["r.yaml:2", "not valid YAML"]),
        ("a: \x00", ["not valid YAML", "control characters"]),
        ("? [a]\n: 1", ["a key must be a plain word"]),
        ("a: " + "x" * 1_000_001, ["larger than 1 MB"]),
    ],
)
def test_what_is_no_recipe_is_refused_with_its_line(text: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as refused:
        parse_recipe(text, "r.yaml")
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize("bomb", ["[" * 500_000, "{a: " * 100_000, "- " * 100_000])
def test_a_bomb_is_refused_at_once(bomb: str) -> None:
    began = time.perf_counter()
    with pytest.raises(UsageError, match=r"within each other|nesting depth"):
        parse_recipe(bomb, "bomb.yaml")
    assert time.perf_counter() - began < 2
