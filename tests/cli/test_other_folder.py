"""A run is evaluated and drawn from another folder than the one it was started in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import toast

SMALL = ["--backbone", "vit_demo_3", "--method", "linear", "--device", "cpu", "training.epochs=1"]


def test_a_run_finds_its_data_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for shade, name in enumerate(("blue", "red")):
        for number in range(10):
            file = tmp_path / "start" / "birds" / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 24), (100 * shade + number, 90, 200)).save(file)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "start")
    assert toast("tune", *SMALL, "--dataset", "folder:birds").code == 0
    (run,) = Path("runs").resolve().iterdir()
    assert run.name == "birds-vit_demo_3-linear-seed0"
    here = toast("eval", "--run", run, "--json")
    monkeypatch.chdir(tmp_path / "elsewhere")
    there = toast("eval", "--run", run, "--json")
    assert there.code == 0 and json.loads(there.out)["test"] == json.loads(here.out)["test"]
    assert toast("visualize-attention", "--run", run / "adapter", "--test-image", "0", "--out", "seen").code == 0
