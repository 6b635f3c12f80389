"""What the training loop costs beside the steps: toast's loop against a bare PyTorch loop over the same batches.

    python benchmarks/loop.py --backbone vit_t16 --batch 8 --steps 10 --repeats 5

Both take the same optimizer steps of TOAST on the same images, in turns; the ratio of the medians is printed. What each
loop keeps at the end of an epoch (two checkpoints, for toast's) is told apart.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from toast_cli.data.base import DataSet
from toast_cli.model.model import Model, build_model
from toast_cli.recipe.parse import build_recipe
from toast_cli.recipe.schema import Recipe
from toast_cli.storage.run_folder import RunFolder
from toast_cli.training.loop import TrainingLoop
from toast_cli.training.optimization import make_optimizer
from toast_cli.training.reporter import Reporter
from toast_cli.training.run import Run
from toast_cli.training.session import Session
from toast_cli.training.step import TrainingStep


class Given:
    """The same batches in every epoch."""

    notes: tuple[str, ...] = ()

    def __init__(self, batches: list[dict[str, Any]]) -> None:
        self.batches = batches
        self.skipped: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.batches)

    def set_epoch(self, epoch: int, begin: int = 0) -> None: ...


def bare(model: Model, recipe: Recipe, batches: list[dict[str, Any]]) -> float:
    step, optimizer = TrainingStep(model), make_optimizer(model, recipe.training)
    model.train()
    began = time.perf_counter()
    for batch in batches:
        optimizer.zero_grad()
        loss = step(batch).loss / len(batch["label"])
        loss.backward()
        optimizer.step()
    return time.perf_counter() - began


def ours(model: Model, recipe: Recipe, batches: list[dict[str, Any]], folder: Path) -> tuple[float, float]:
    """Seconds of an epoch's steps, and of what ends it."""
    run = Run(Session(recipe, DataSet((), {}), model, Accelerator(cpu=True)), Reporter())
    run.folder = RunFolder.create(folder, "run")
    fitting = TrainingLoop(run, TrainingStep(model), Given(batches), None)
    began = time.perf_counter()
    fitting.train_epoch()
    steps = time.perf_counter() - began
    fitting.end_epoch(fitting.validate())
    return steps, time.perf_counter() - began - steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_t16")
    for name, default in (("batch", 8), ("steps", 10), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    raw = {"backbone": {"name": given.backbone, "weights": "none"}, "dataset": "demo", "method": "toast"}
    recipe = build_recipe({**raw, "training": {"optimizer": "adamw", "lr": 1e-4}}, {}, origin="a benchmark")
    model = build_model(recipe, tuple(map(str, range(10))))
    torch.manual_seed(0)
    batches = [
        {"image": model.backbone.example(given.batch), "label": torch.randint(10, (given.batch,))}
        for _ in range(given.steps)
    ]
    times: dict[str, list[float]] = {"bare": [], "toast": [], "end": []}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(given.repeats + 1):
            alone = bare(model, recipe, batches)
            steps, end = ours(model, recipe, batches, Path(folder) / str(repeat))
            if repeat:  # the first of each warms up
                for name, seconds in (("bare", alone), ("toast", steps), ("end", end)):
                    times[name].append(seconds)
    medians = {name: statistics.median(each) for name, each in times.items()}
    per_step = {name: 1000 * medians[name] / given.steps for name in ("bare", "toast")}
    print(
        f"{given.backbone}, batch {given.batch}: {per_step['bare']:.1f} ms a step bare, {per_step['toast']:.1f} ms ours"
    )
    print(f"ratio {medians['toast'] / medians['bare']:.3f}; the end of an epoch {1000 * medians['end']:.0f} ms")


if __name__ == "__main__":
    main()
