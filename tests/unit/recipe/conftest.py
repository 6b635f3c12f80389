"""A small house of plugins, so that these tests depend on no real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from toast_cli import registry
from toast_cli.backbones.base import BackboneOptions, Card, Family
from toast_cli.data.base import DataSource
from toast_cli.methods.base import Method
from toast_cli.recipe import builtin
from toast_cli.tasks.base import Task
from toast_cli.utils.config import NamedOptions
from toast_cli.utils.errors import ToastError


class Vit(BackboneOptions):
    image_size: int | tuple[int, int] | None = None


class Birds(NamedOptions):
    name: Literal["birds"] = "birds"
    shots: int | None = None


class Folder(NamedOptions):
    name: Literal["folder"] = "folder"
    path: str


class Toast(NamedOptions):
    name: Literal["toast"] = "toast"
    train_P: bool = True
    start: str = "least-squares"


class Lite(Toast):
    name: Literal["lite"] = "lite"  # type: ignore[assignment]
    rank: int = Field(4, ge=1)


class Bare(NamedOptions):
    name: Literal["bare"] = "bare"


class Classification(NamedOptions):
    name: Literal["classification"] = "classification"


def card(name: str) -> Card:
    return Card(name, "vit", 1_000_000, "nowhere", lambda options: None, Vit)  # type: ignore[arg-type,return-value]


class Point:
    """Stands in for an entry point: loads an object, or raises it."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def load(self) -> Any:
        if isinstance(self.thing, Exception):
            raise self.thing
        return self.thing


def plugins(**things: Any) -> dict[str, tuple[registry.RegistryEntry, ...]]:
    return {
        name: (registry.RegistryEntry(name, f"{name}:THING", "house", Point(thing)),)  # type: ignore[arg-type]
        for name, thing in things.items()
    }


@pytest.fixture
def house() -> dict[str, dict[str, tuple[registry.RegistryEntry, ...]]]:
    """What is registered; a test may add to it."""
    unused: Any = None
    methods = {name: Method(options, unused) for name, options in (("toast", Toast), ("lite", Lite), ("bare", Bare))}
    sources = {name: DataSource(options, unused, "") for name, options in (("birds", Birds), ("folder", Folder))}
    found = {
        registry.SOURCES: plugins(**sources),
        registry.METHODS: plugins(**methods),
        registry.TASKS: plugins(classification=Task(Classification, unused)),
    }
    found[registry.BACKBONES] = plugins(vit_b=card("vit_b"), vit_s=card("vit_s"))
    found[registry.FAMILIES] = plugins(vit=Family("vit", "a library", lambda model: card(f"vit:{model}")))
    return found


@pytest.fixture(autouse=True)
def registered(house: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "list_entries", lambda group: house.get(group, {}))


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of built-in recipes."""
    folder = tmp_path / "shelf"
    texts = {
        "demo/toast": "# The demo.\n# Command: toast tune\n\nbackbone: vit_s\ndataset: birds\nmethod: toast\n",
        "fgvc/birds-a": "backbone: vit_s\ndataset: birds\nmethod: lite\n",
        "fgvc/birds-b": "backbone: vit_b\ndataset: birds\nmethod: {name: lite, rank: 8}\ntraining: {lr: 3e-2}\n",
        "fgvc/birds-c": "backbone: vit_b\ndataset: birds\nmethod: toast\n",
        "general/toast": "backbone: vit_b\ndataset: {name: folder, path: .}\nmethod: toast\n",
    }
    for name, text in texts.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(builtin, "get_recipes_folder", lambda: folder)
    return folder


@pytest.fixture
def broken() -> dict[str, tuple[registry.RegistryEntry, ...]]:
    """A plugin whose module cannot be imported."""
    return plugins(broken=ImportError("no module named 'missing_dep'"), cold=ToastError("It is cold."))
