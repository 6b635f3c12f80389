from __future__ import annotations

from pathlib import Path

import pytest

from toast_cli.data.paths import get_data_dir


def test_what_the_user_gave_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOAST_DATA_DIR", "/elsewhere")
    assert get_data_dir(Path("mine")) == Path("mine")


def test_the_environment_comes_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOAST_DATA_DIR", "~/sets")
    assert get_data_dir(None) == Path.home() / "sets"


@pytest.mark.parametrize("value", [None, ""])
def test_the_last_resort_is_a_folder_called_data(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    if value is not None:
        monkeypatch.setenv("TOAST_DATA_DIR", value)
    assert get_data_dir(None) == Path("data")
