"""The estimate of the time of a run, before its first step: it changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from toast_cli.recipe.parse import build_recipe
from toast_cli.training.plan import run_time
from toast_cli.training.plan.run_time import estimate_run_time
from toast_cli.training.reporter import Reporter
from toast_cli.training.session import prepare_session
from toast_cli.training.tune import build_training_step, tune_model

RAW: dict[str, Any] = {
    "backbone": "vit_demo_3",
    "dataset": {"name": "demo", "train_images": 12, "val_images": 4, "test_images": 4},
    "method": "lora",
    "device": "cpu",
    "training": {"batch_size": 4, "epochs": 2, "warmup_epochs": 0},
}


class Lines(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def report_message(self, text: str) -> None:
        self.lines.append(text)


def test_a_short_run_gets_no_estimate_and_a_longer_one_grows_with_its_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    def estimate(**training: Any) -> float | None:
        recipe = build_recipe({**RAW, "training": {**RAW["training"], **training}}, {}, origin="a test")
        session = prepare_session(recipe)
        train = session.make_loader("train", train=True)
        return estimate_run_time(session, build_training_step(session, train, None)[0], train)

    assert estimate() is None
    monkeypatch.setattr(run_time, "_time_passes", lambda *_: (2.0, 0.5))
    # 3 steps an epoch; one batch of validation an epoch, and one of the test.
    assert estimate(epochs=100) == pytest.approx(300 * 2 + 100 * 0.5 + 0.5)
    assert estimate(epochs=100, validate_every=4) == pytest.approx(300 * 2 + 25 * 0.5 + 0.5)


def test_an_estimate_changes_no_weight_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = build_recipe({**RAW, "method": {"name": "lora", "dropout": 0.5}}, {}, origin="a test")
    weights, said = [], []
    for fewest in (1, 10**9):
        monkeypatch.setattr(run_time, "FEWEST_STEPS", fewest)
        lines = Lines()
        tune_model(recipe, tmp_path / str(fewest), lines)
        weights.append((tmp_path / str(fewest) / "adapter" / "adapter_model.safetensors").read_bytes())
        said.append([line for line in lines.lines if line.startswith("About")])
    assert weights[0] == weights[1] and len(said[0]) == 1 and not said[1]
