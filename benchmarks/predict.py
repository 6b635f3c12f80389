"""Images per second of `toast predict` and `toast eval` against a bare loop, over the same folder, in one process.

    python benchmarks/predict.py --images path/to/folder --backbone vit_t16 --workers 2
    python benchmarks/predict.py                     # draws a folder of photographs' size first

All read, decode and compute every image with the same weights and the same batches, in turns. `bare` is a loop over
timm's loader and the folded model, and nothing else. `eval` measures accuracy; `predict` finds the files, writes every
row, and makes the table. The median of each is printed, and the ratios to `bare` round by round: the median, the
smallest and the largest. They are to be at least 0.97. `--method linear` compares without feedback.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from loading import drawn, of_timm

from toast_cli.data.base import BatchOptions
from toast_cli.evaluation.open_run import OpenedRun, RunRequest
from toast_cli.evaluation.prediction.predict import PredictionRequest, write_predictions
from toast_cli.model.model import Model, build_model, fold_model
from toast_cli.model.recipe_data import build_batches, open_data
from toast_cli.recipe.parse import build_recipe
from toast_cli.training.evaluate import evaluate_model
from toast_cli.training.reporter import Reporter

TARGET = 0.97


def open_untrained_run(images: Path, backbone: str, method: str, workers: int, batch: int) -> OpenedRun:
    """A model with random weights on a folder without labels: numbers mean nothing, times do."""
    raw = {
        "backbone": {"name": backbone, "weights": "none"},
        "dataset": {"name": "images", "path": str(images), "val_fraction": 0},
        "method": {"name": method, **({"start": "random"} if method.startswith("toast") else {})},
        "task": "classification",
        "training": {"workers": workers, "eval_batch_size": batch},
    }
    recipe, accelerator = build_recipe(raw, {}, origin="a benchmark"), Accelerator()
    classes = tuple(f"class {number}" for number in range(10))
    model = build_model(recipe, classes).to(accelerator.device).eval()
    return OpenedRun(RunRequest(Path("untrained")), model, recipe, classes, accelerator)


def loop(model: Model, loader: Iterable[Any]) -> int:
    """The images of a loop that does nothing but compute scores."""
    count = 0
    with torch.no_grad():
        for images, _ in loader:
            count += len(model(images.to(next(model.parameters()).device)))
    return count


def evaluate(run: OpenedRun) -> int:
    """The images of an evaluation, as `toast eval` makes it."""
    split = open_data(run.recipe).splits["train"]
    size = run.recipe.training.eval_batch_size or 1
    batches = build_batches(split, run.recipe, run.model.backbone, BatchOptions(size))
    return evaluate_model(run.model, batches, run.accelerator)["images"]


def predict(run: OpenedRun, images: Path, out: Path) -> int:
    """The images of a prediction, as `toast predict` makes it."""
    result = write_predictions(run, PredictionRequest(run.request, (str(images),)), out, Reporter())
    return result.summary.images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of images; left out: drawn")
    parser.add_argument("--backbone", default="vit_t16")
    parser.add_argument("--method", default="toast", choices=("toast", "toast-lite", "linear"))
    for name, default in (("batch", 32), ("workers", 0), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = given.images or drawn(Path(folder), 256)
        run = open_untrained_run(images, given.backbone, given.method, given.workers, given.batch)
        model = run.model if given.method == "linear" else fold_model(run.model)
        loader = of_timm(images, given.batch, given.workers, train=False)
        works = {
            "bare": lambda: loop(model, loader),
            "eval": lambda: evaluate(run),
            "predict": lambda: predict(run, images, Path(folder) / "table.csv"),
        }
        rates: dict[str, list[float]] = {name: [] for name in works}
        for repeat in range(given.repeats + 1):
            for name, work in works.items():
                began = time.perf_counter()
                count = work()
                if repeat:  # the first reads the files from the disk
                    rates[name].append(count / (time.perf_counter() - began))
        for name, each in rates.items():
            print(f"{name:8} {statistics.median(each):7.1f} images/s ({min(each):.1f} to {max(each):.1f})")
        for name in ("eval", "predict"):
            ratios = [ours / bare for ours, bare in zip(rates[name], rates["bare"], strict=True)]
            spread = f"({min(ratios):.3f} to {max(ratios):.3f})"
            print(f"{name} / bare {statistics.median(ratios):.3f} {spread}, to be at least {TARGET}")


if __name__ == "__main__":
    main()
