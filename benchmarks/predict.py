"""Images per second of `toast predict` against `toast eval`, over the same folder, side by side in one process.

    python benchmarks/predict.py --images path/to/folder --backbone vit_t16 --workers 2
    python benchmarks/predict.py                     # draws a folder of photographs' size first

Both read, decode and compute every image with the same model and the same batches, in turns. `eval` measures accuracy;
`predict` finds the files, writes every row, and makes the table. The median of each, and their ratio, are printed; the
ratio is to be at least 0.97.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from accelerate import Accelerator
from loading import drawn

from toast_cli.data.base import BatchOptions
from toast_cli.evaluation.open_run import OpenedRun, RunRequest
from toast_cli.evaluation.prediction.predict import PredictionRequest, write_predictions
from toast_cli.model.model import build_model
from toast_cli.model.recipe_data import build_batches, open_data
from toast_cli.recipe.parse import build_recipe
from toast_cli.training.evaluate import evaluate_model
from toast_cli.training.reporter import Reporter

TARGET = 0.97


def open_untrained_run(images: Path, backbone: str, workers: int, batch: int) -> OpenedRun:
    """A model with random weights on a folder without labels: numbers mean nothing, times do."""
    raw = {
        "backbone": {"name": backbone, "weights": "none"},
        "dataset": {"name": "images", "path": str(images), "val_fraction": 0},
        "method": "linear",
        "task": "classification",
        "training": {"workers": workers, "eval_batch_size": batch},
    }
    recipe, accelerator = build_recipe(raw, {}, origin="a benchmark"), Accelerator()
    classes = tuple(f"class {number}" for number in range(10))
    model = build_model(recipe, classes).to(accelerator.device).eval()
    return OpenedRun(RunRequest(Path("untrained")), model, recipe, classes, accelerator)


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
    for name, default in (("batch", 32), ("workers", 0), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = given.images or drawn(Path(folder), 256)
        run = open_untrained_run(images, given.backbone, given.workers, given.batch)
        works = {"eval": lambda: evaluate(run), "predict": lambda: predict(run, images, Path(folder) / "table.csv")}
        rates: dict[str, list[float]] = {name: [] for name in works}
        for repeat in range(given.repeats + 1):
            for name, work in works.items():
                began = time.perf_counter()
                count = work()
                if repeat:  # the first reads the files from the disk
                    rates[name].append(count / (time.perf_counter() - began))
        for name, each in rates.items():
            print(f"{name:8} {statistics.median(each):7.1f} images/s ({min(each):.1f} to {max(each):.1f})")
        ratio = statistics.median(one / other for one, other in zip(rates["predict"], rates["eval"], strict=True))
        print(f"ratio    {ratio:7.3f}, to be at least {TARGET}")


if __name__ == "__main__":
    main()
