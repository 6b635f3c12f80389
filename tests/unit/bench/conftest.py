"""A small experiment and a ledger of it, without a single run being made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toast_cli.bench.scheduler.jobs import Experiment, Job
from toast_cli.bench.scheduler.trials import Ledger
from toast_cli.bench.suite import parse_suite

SUITE = """
backbone: vit_demo_3
datasets: {Markings: demo, More: demo}
rows:
  linear: {method: linear}
  lora: {method: lora, on: [Markings]}
seeds: [0, 1]
set: {training.epochs: 2}
search:
  space: {training.lr: [0.01, 0.001]}
final: {training.epochs: 3}
tables:
  both:
    title: Both
    columns: {M: Markings, Avg: average, trained: parameters, looks: "attention:pass_one", then: "attention:pass_two"}
    rows:
      Linear: {run: linear, paper: [51.5, null, 0.2M, null, null]}
      LoRA: {run: lora, paper: [50.0, null, null, null, null]}
      Theirs: {paper: [1, 2, 3, 4, 5]}
"""


@pytest.fixture
def experiment() -> Experiment:
    return Experiment("small", parse_suite(SUITE, "small.yaml"))


@pytest.fixture(params=["sqlite", "journal"])
def open_again(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Ledger]:
    """Opens the same ledger as another worker would, with runs and locks in the folder `one` or another."""
    url = f"sqlite:///{tmp_path / 'l.db'}" if request.param == "sqlite" else f"journal:{tmp_path / 'l.log'}"
    return lambda folder="one", **more: Ledger(url, tmp_path / folder / "locks", **more)


@pytest.fixture
def jobs(experiment: Experiment) -> list[Job]:
    return experiment.make_search_jobs("Markings", "linear")


def record(seed: int, accuracy: float, run: str = "runs/none", **more: Any) -> dict[str, Any]:
    """What a finished run leaves in the ledger."""
    metrics = {"accuracy": accuracy, "loss": 1 - accuracy}
    return {
        "run": run,
        "seed": seed,
        "params": {},
        "split_hashes": {"train": "a", "val": "b", "test": "c"},
        "trained_parameters": 645,
        "flops": 2,
        "flops_plain": 1,
        "selected_epoch": 1,
        "seconds": 3.0,
        "validation": metrics,
        "test": metrics,
        "attention": {"pass_one": 0.25},
        "versions": {"toast": "0", "torch": "2"},
        "device": "cpu",
        "precision": "fp32",
        "processes": 1,
        **more,
    }
