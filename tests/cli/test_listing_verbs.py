from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from toast_cli import registry
from toast_cli.cli.app import app
from toast_cli.cli.commands import doctor as doctor_module


def toast(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout, result.stderr


def entry(name: str, value: str) -> tuple[registry.RegistryEntry, ...]:
    return (registry.RegistryEntry(name, value, "house", EntryPoint(name, value, "group")),)


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """One backbone, one family; a test may add to it."""
    found: dict[str, Any] = {
        registry.BACKBONES: {"vit_b16": entry("vit_b16", "toast_vit.cards:VIT_B16")},
        registry.FAMILIES: {"vit": entry("vit", "toast_vit.cards:FAMILY")},
    }
    monkeypatch.setattr(registry, "list_entries", lambda group: found.get(group, {}))
    return found


def test_backbones_tells_size_source_and_package(house: dict[str, Any]) -> None:
    code, out, err = toast("backbones")
    assert (code, err) == (0, "")
    line = next(line for line in out.splitlines() if "vit_b16" in line)
    assert "85.8M" in line
    assert line.split()[-1] == "house"
    assert "vit:<...>" in out


def test_backbones_is_json_for_machines(house: dict[str, Any]) -> None:
    _, out, _ = toast("backbones", "--json")
    listing = json.loads(out)
    assert [card["name"] for card in listing["backbones"]] == ["vit_b16"]
    assert listing["backbones"][0]["parameters"] == 85_798_656
    assert listing["families"] == [{"name": "vit", "library": "timm", "package": "house"}]
    assert listing["failures"] == []


def test_a_failing_plugin_is_a_line_and_the_rest_is_listed(house: dict[str, Any]) -> None:
    house[registry.BACKBONES]["broken"] = entry("broken", "no_such_module_here:X")
    code, out, err = toast("backbones")
    assert code == 0
    assert "vit_b16" in out
    assert err.startswith("broken: ")
    assert "no_such_module_here" in err


def test_a_name_claimed_twice_is_a_line_too(house: dict[str, Any]) -> None:
    house[registry.BACKBONES]["vit_b16"] *= 2
    code, out, err = toast("backbones")
    assert code == 0
    assert "registered twice" in err
    assert "vit:<...>" in out


def test_doctor_is_content_with_a_whole_installation(house: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOAST_DATA_DIR", "/birds [1]")
    code, out, _ = toast("doctor")
    assert code == 0
    assert "cpu: " in out
    assert "TOAST_DATA_DIR: /birds [1] (set, does not exist yet)" in out
    assert "toast.backbones vit_b16 (house): ok" in out


def test_doctor_says_how_much_a_cache_holds_and_counts_linked_files_once(
    house: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "blob").write_bytes(bytes(3_000_000))
    (tmp_path / "hub" / "model.safetensors").symlink_to(tmp_path / "hub" / "blob")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    _, out, _ = toast("doctor")
    assert f"HF_HUB_CACHE: {tmp_path / 'hub'} (set, 3.0 MB)" in out


def test_doctor_names_a_plugin_that_fails(house: dict[str, Any]) -> None:
    house[registry.METHODS] = {"broken": entry("broken", "no_such_module_here:X")}
    code, out, _ = toast("doctor")
    assert code == 1
    assert "toast.methods broken (house): The method 'broken' of package house could not be loaded." in out
    code, out, _ = toast("doctor", "--json")
    assert (code, json.loads(out)["failed"]) == (1, ["broken"])


def test_doctor_names_a_missing_package(house: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "CORE_PACKAGES", (*doctor_module.CORE_PACKAGES, "no-such-package-here"))
    code, out, _ = toast("doctor")
    assert code == 1
    assert "no-such-package-here: missing" in out
