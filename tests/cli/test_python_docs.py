"""The page on Python: its snippets run from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from tests.layouts import put

PAGE = Path(__file__).parent.parent.parent / "docs" / "how-to" / "python.md"


def test_the_snippets_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        for name in ("cat", "dog"):
            put(tmp_path / "photos" / name / f"{number}.jpg", 100 * (name == "dog") + number)
    create = timm.create_model
    # In place of a download, a small model with random weights: the rest is as it stands.
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, **how: create("test_vit") if how == {"pretrained": True} else create(name, **how),
    )
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {"__name__": "page"}
    for snippet in snippets:
        exec(snippet.replace('"vit_demo"', '"vit_demo_3"'), names)
    assert len(snippets) == 8
    assert len(names["losses"]) == 3 * 3 and names["features"].shape[0] == 2
    assert not torch.equal(names["features"][:1], names["plain"])
