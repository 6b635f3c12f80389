"""A run that is trained for longer ends as one that was as long from the beginning, and keeps its earlier results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.training.test_validation import recipe_of
from toast_cli.recipe.parse import load_recipe
from toast_cli.storage.lineage import read_lineage
from toast_cli.storage.run_folder import RunFolder
from toast_cli.training.reporter import Reporter
from toast_cli.training.tune import tune_model
from toast_cli.utils.errors import ToastError

CONSTANT: dict[str, Any] = {"schedule": "constant", "batch_size": 4, "log_every": 1, "ema": 0.9, "optimizer": "adamw"}


class Hears(Reporter):
    """A reporter that keeps what is reported."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def report_message(self, text: str) -> None:
        """Keep a message."""
        self.said.append(text)


def extend(run: Path, *overrides: str) -> tuple[dict[str, Any], str]:
    reporter = Hears()
    results = tune_model(load_recipe(run / "recipe.yaml"), run, reporter, resume=True, overrides=overrides)[1]
    return results, "\n".join(reporter.said)


def lines_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.get("train", {}).pop("seconds", None)
        line.pop("images_per_second", None)
    return lines


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs, to be copied."""
    run = tmp_path_factory.mktemp("short") / "run"
    tune_model(recipe_of(epochs=2, **CONSTANT), run, Reporter())
    return run


@pytest.fixture
def run(short: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return shutil.copytree(short, tmp_path / "run")


def test_an_extended_run_equals_a_long_one_bit_for_bit(run: Path, tmp_path: Path) -> None:
    _, whole = tune_model(recipe_of(epochs=4, **CONSTANT), tmp_path / "whole", Reporter())
    earlier = json.loads((run / "results.json").read_text())
    results, said = extend(run, "training.epochs=4")
    assert lines_of(run) == lines_of(tmp_path / "whole") and len(lines_of(run)) == 16
    for name in ("checkpoints/last/model", "checkpoints/last/training", "adapter/adapter_model"):
        here, there = (load_file(path / f"{name}.safetensors") for path in (run, tmp_path / "whole"))
        assert here.keys() == there.keys() and all(torch.equal(here[key], there[key]) for key in here)
    assert results["test"] == whole["test"]
    assert "will be those of one run of this length" in said and "evaluated 2 times" in said
    assert (whole["test_evaluations"], results["test_evaluations"], results["extensions"]) == (1, 2, 1)
    (extension,) = read_lineage(run).extensions
    assert extension["changes"] == {"training.epochs": [2, 4]} and extension["results"]["test"] == earlier["test"]
    assert load_recipe(run / "recipe.yaml").training.epochs == 4
    assert "evaluated 2 times" in (run / "adapter" / "README.md").read_text()
    with pytest.raises(ToastError) as refused:
        RunFolder.reopen(run)
    assert refused.value.code == "run.already-finished"


@pytest.mark.parametrize("recipe_written", [True, False])
def test_an_interrupted_extension_keeps_the_results_and_is_resumed_without_its_options(
    run: Path, monkeypatch: pytest.MonkeyPatch, recipe_written: bool
) -> None:
    before, recipe = (run / "results.json").read_bytes(), (run / "recipe.yaml").read_bytes()

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("toast_cli.training.loop.TrainingLoop.train_step", interrupted)
        extend(run, "training.epochs=3")
    assert (run / "results.json").read_bytes() == before
    if not recipe_written:  # as if it was killed between the two files
        (run / "recipe.yaml").write_bytes(recipe)
    RunFolder.reopen(run)
    results, _ = extend(run)
    assert results["extensions"] == 1 and lines_of(run)[-1]["epoch"] == 3
    assert load_recipe(run / "recipe.yaml").training.epochs == 3


def test_under_a_cosine_the_new_schedule_is_said_and_followed(tmp_path: Path) -> None:
    tune_model(recipe_of(epochs=2, batch_size=5, log_every=1), tmp_path / "run", Reporter())
    _, said = extend(tmp_path / "run", "training.epochs=4", "training.workers=0")
    assert "follows the schedule of 4 epochs: it is 0.005 at step 5, where the schedule of 2 epochs has 0." in said
    rates = [line["lr"] for line in lines_of(tmp_path / "run") if line["kind"] == "step"]
    assert rates[4] == pytest.approx(0.005) and len(rates) == 8


def test_a_run_that_ended_within_an_epoch_goes_on_with_the_next(tmp_path: Path) -> None:
    tune_model(recipe_of(epochs=3, max_steps=4, **CONSTANT), tmp_path / "run", Reporter())
    _, said = extend(tmp_path / "run", "training.max_steps=null")
    assert "was cut short" in said and "goes on with epoch 3" in said and "will be those of one run" not in said
    assert [(line["epoch"], line["step"]) for line in lines_of(tmp_path / "run")][-1] == (3, 7)


REFUSED = {
    "training.epochs=2": "run.already-finished",
    "training.epochs=1": "resume.conflicting-options",
    "training.max_steps=99": "resume.conflicting-options",
    "training.workers=1": "run.already-finished",
    "training.lr=1": "resume.conflicting-options",
    "training.epochs=x": "recipe.wrong-type",
    "images.on_error=stop": "run.already-finished",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_cannot_change_is_refused_before_anything_is_written(run: Path, override: str) -> None:
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    with pytest.raises(ToastError) as refused:
        extend(run, override)
    assert refused.value.code == REFUSED[override]
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_a_run_that_stopped_early_needs_more_patience(tmp_path: Path) -> None:
    run = tmp_path / "run"
    results = tune_model(recipe_of(lr=1e-12, epochs=9, patience=2, batch_size=10), run, Reporter())[1]
    assert results["selected_epoch"] == 1
    with pytest.raises(ToastError, match=r"training\.patience=null") as refused:
        extend(run, "training.epochs=12")
    assert refused.value.code == "run.already-finished"
    extend(run, "training.patience=3")
    assert lines_of(run)[-1]["epoch"] == 4


def test_a_run_without_its_checkpoint_is_pointed_to_a_new_one(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ToastError, match="--init-from") as refused:
        extend(run, "training.epochs=4")
    assert refused.value.code == "checkpoint.missing"
