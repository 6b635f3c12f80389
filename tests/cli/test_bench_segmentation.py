"""The demo's segmentation suite: full fine-tuning, LoRA, TOAST with early and with full feedback, over its seeds."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.cli.conftest import toast

ROWS = ("full", "lora", "toast-early", "toast-full")
ONLY = [word for row in ROWS for word in ("--row", row)]
SMALL = ["dataset.train_images=8", "dataset.val_images=4", "dataset.test_images=4", "training.epochs=1"]


def measured(out: Path, seeds: int, *changes: str) -> list[float]:
    """Run the suite over the first so many of its seeds; the test's mean IoU of every run."""
    chosen = [word for seed in range(seeds) for word in ("--seed", seed)] if seeds < 3 else []
    said = toast("bench", "demo-segmentation", "--out", out, "--device", "cpu", *ONLY, *chosen, *changes)
    assert said.code == 0, said.err
    assert f"over seeds {', '.join(map(str, range(seeds)))}." in said.out
    with (out / "tables" / "runs.csv").open(encoding="utf-8", newline="") as file:
        runs = [run for run in csv.DictReader(file) if run["split"] == "test" and run["metric"] == "mean_iou"]
    assert [(run["row"], int(run["seed"])) for run in runs] == [(row, seed) for row in ROWS for seed in range(seeds)]
    assert len({run["run"] for run in runs}) == len(ROWS) * seeds
    return [float(run["value"]) for run in runs]


def test_every_method_is_run_over_seeds_and_shown(tmp_path: Path) -> None:
    assert all(0 < value < 1 for value in measured(tmp_path / "out", 2, *SMALL))
    table = (tmp_path / "out" / "tables" / "demo-segmentation.md").read_text(encoding="utf-8")
    for name in ("full", "lora", "toast, feedback early", "toast, feedback full"):
        (line,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
        assert line.count("±") == 2, "mean and spread of validation and test"


@pytest.mark.slow
def test_every_method_learns_what_is_where(tmp_path: Path) -> None:
    assert min(measured(tmp_path / "out", 3)) > 0.35, "ground alone, of seven classes, has 0.08"
