from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import pytest

from toast_cli import registry
from toast_cli.backbones.base import Card, Family
from toast_cli.methods.linear import METHOD
from toast_cli.utils.errors import ToastError, UsageError

LINEAR = "toast_cli.methods.linear:METHOD"
CARD = Card("vit_x", "vit", 1, "nowhere", lambda options: None)  # type: ignore[arg-type,return-value]
OLD = Card("old", "vit", 1, "nowhere", lambda options: None, contract=0)  # type: ignore[arg-type,return-value]
FAMILY = Family("vit", "a library", lambda model: Card(model, "vit", None, "", lambda options: None))  # type: ignore[arg-type,return-value]


class Package:
    def __init__(self, name: str) -> None:
        self.name = name


class Point:
    """An entry point with a package, as importlib hands them out; it leads to an object, or to an import path."""

    def __init__(self, name: str, target: Any, package: str) -> None:
        self.name, self.target, self.dist = name, target, Package(package)
        self.value = target if isinstance(target, str) else f"somewhere:{name}"

    def load(self) -> Any:
        return EntryPoint(self.name, self.value, "group").load() if isinstance(self.target, str) else self.target


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that these are the installed entry points; the registry's memory is cleared around the test."""

    def pretend(**groups: list[Point]) -> None:
        monkeypatch.setattr(registry, "_select_entry_points", lambda group: groups.get(group.rpartition(".")[2], []))
        registry.list_entries.cache_clear()

    yield pretend
    registry.list_entries.cache_clear()


def test_a_name_leads_to_its_object(installed: Any) -> None:
    installed(methods=[Point("linear", LINEAR, "a")])
    assert registry.load_entry(registry.METHODS, "linear") is METHOD
    assert registry.list_names(registry.METHODS) == ["linear"]


@pytest.mark.parametrize(
    ("group", "word"), [(registry.METHODS, "method"), (registry.SOURCES, "data set"), (registry.TASKS, "task")]
)
def test_an_unknown_name_is_answered_with_the_nearest(installed: Any, group: str, word: str) -> None:
    installed(**{group.rpartition(".")[2]: [Point("birds", "json:dumps", "a")]})
    with pytest.raises(UsageError, match="'brids'") as refused:
        registry.load_entry(group, "brids")
    assert refused.value.code == "plugin.unknown-name"
    assert "Did you mean 'birds'?" in refused.value.what_to_do


def test_two_packages_with_one_name_are_both_named(installed: Any) -> None:
    installed(methods=[Point("x", "json:dumps", "one"), Point("x", "json:loads", "two")])
    with pytest.raises(ToastError) as failed:
        registry.load_entry(registry.METHODS, "x")
    assert failed.value.code == "plugin.registered-twice"
    assert "one (json:dumps) and two (json:loads)" in failed.value.why


def test_one_package_seen_twice_is_no_duplicate(installed: Any) -> None:
    installed(methods=[Point("linear", LINEAR, "one"), Point("linear", LINEAR, "one")])
    assert registry.load_entry(registry.METHODS, "linear") is METHOD


@pytest.mark.parametrize("value", ["no_such_module_here:X", "json:no_such_thing"])
def test_a_plugin_that_fails_names_its_package(installed: Any, value: str) -> None:
    installed(methods=[Point("x", value, "culprit"), Point("linear", LINEAR, "fine")])
    with pytest.raises(ToastError, match="package culprit") as failed:
        registry.load_entry(registry.METHODS, "x")
    assert failed.value.code == "plugin.cannot-load"
    assert value in failed.value.why
    assert registry.load_entry(registry.METHODS, "linear"), "the others go on working"


def test_a_backbone_is_a_short_name_or_a_model_of_a_family(installed: Any) -> None:
    installed(backbones=[Point("vit_x", CARD, "a")], families=[Point("vit", FAMILY, "a")])
    card = registry.load_backbone_card("vit_x")
    assert (card.name, card.source, card.options) == (CARD.name, CARD.source, CARD.options)
    assert registry.load_backbone_card("vit:any").name == "any"
    with pytest.raises(UsageError, match="'vit_y'") as refused:
        registry.load_backbone_card("vit_y")
    assert refused.value.code == "backbone.unknown-name"
    assert "Did you mean 'vit_x'?" in refused.value.what_to_do
    assert "vit:<model>" in refused.value.what_to_do
    with pytest.raises(UsageError, match="'vti'") as refused:
        registry.load_backbone_card("vti:any")
    assert refused.value.code == "plugin.unknown-name"


def test_a_card_of_another_contract_is_refused(installed: Any) -> None:
    installed(backbones=[Point("old", OLD, "a")])
    with pytest.raises(ToastError, match="version 0") as refused:
        registry.load_backbone_card("old")
    assert refused.value.code == "plugin.wrong-contract"


@pytest.mark.parametrize(
    ("point", "code", "words"),
    [
        (Point("vit", FAMILY, "culprit"), "plugin.wrong-type", "is a Family, expected a Method."),
        (Point("linear", Card, "culprit"), "plugin.wrong-type", "is the class Card, expected a Method."),
        (Point("norms", LINEAR, "culprit"), "plugin.wrong-name", "another name than its own, 'linear'"),
    ],
)
def test_an_object_of_another_kind_or_name_is_the_plugins_mistake(
    installed: Any, point: Point, code: str, words: str
) -> None:
    installed(methods=[point])
    with pytest.raises(ToastError, match=f"Plugin culprit: toast.methods {point.name}") as failed:
        registry.load_entry(registry.METHODS, point.name)
    assert failed.value.code == code and words in failed.value.what


def test_an_error_belongs_to_the_plugin_whose_code_is_innermost(installed: Any) -> None:
    installed(methods=[Point("x", "their_plugin.method:METHOD", "theirs")])
    code = "def fail(call): return call()"
    names: dict[str, Any] = {"__name__": "their_plugin.method"}
    exec(code, names)

    def package_of(call: Any) -> str | None:
        try:
            call()
        except Exception as error:
            return registry.find_faulty_package(error.__traceback__)
        return "no error"

    assert package_of(lambda: names["fail"](lambda: {}["key"])) == "theirs"
    assert package_of(lambda: names["fail"](lambda: registry.load_entry("nowhere", "x"))) is None, "toast failed inside"
    assert package_of(lambda: {}["key"]) is None
