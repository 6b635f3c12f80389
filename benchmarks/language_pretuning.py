"""What pre-tuning on little text is worth: tuning from it, from least squares, and from a random start.

    python benchmarks/language_pretuning.py --out runs/pretuning --model stories260k

The feedback path is pre-tuned on docstrings of torch, transformers and numpy with the recipe pretune/language, by its
start and by its rate. TOAST and TOAST-Lite are then tuned on tasks of benchmarks/language_rates.py from every result.
Losses are those of the validation split. Every run is a line of results.jsonl below --out, and is not repeated.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
from pathlib import Path

from language_rates import Ledger, train
from small_language_models import read_prose

from toast_cli.recipe.lookup import resolve_recipe
from toast_cli.training.pretune import pretune_model
from toast_cli.training.reporter import Reporter

STARTS = {"random": "method.start=random", "least-squares": "method.start=least-squares"}
RATES = {"toast": 1e-2, "toast-lite": 3e-2}
"""The rates of tuning: the best ones of benchmarks/language_rates.py."""


def write_documents(folder: Path) -> Path:
    path = folder / "prose.jsonl"
    if not path.is_file():
        texts = list(read_prose())
        random.Random(0).shuffle(texts)
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def pretune(out: Path, model: Path, start: str, rate: float, documents: int) -> Path:
    """Return the run of a pre-tuning, which is made if it is not there."""
    run = out / f"pretuned-{start}-{rate:g}-{documents}"
    if (run / "artifact").is_dir():
        return run
    shutil.rmtree(run, ignore_errors=True)
    overrides = [STARTS[start], f"training.lr={rate}", f"dataset.documents={documents}", "training.eval_batch_size=8"]
    resolved = resolve_recipe(
        recipe="pretune/language",
        backbone=f"llama:{model}",
        dataset=f"text:{write_documents(out)}",
        device="cpu",
        overrides=[*overrides, "training.checkpoint_gradients=false", "training.workers=0"],
    )
    pretune_model(resolved.recipe, run, Reporter())
    return run


def count_steps(run: Path) -> int:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return int(max(line["step"] for line in lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for texts and runs")
    parser.add_argument("--model", type=Path, required=True, help="folder of a language model")
    parser.add_argument("--documents", nargs="+", type=int, default=[300, 1500])
    parser.add_argument("--rates", nargs="+", type=float, default=[3e-5, 1e-3])
    parser.add_argument("--tasks", nargs="+", default=["docstrings", "facts"])
    parser.add_argument("--methods", nargs="+", choices=list(RATES), default=list(RATES))
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(given.out / "results.jsonl")
    starts: dict[str, tuple[str, ...]] = {name: (change,) for name, change in STARTS.items()}
    for documents in given.documents:
        for start in STARTS:
            for rate in given.rates:
                run = pretune(given.out, given.model, start, rate, documents)
                steps = count_steps(run)
                starts[f"pre-tuned from {start}, {rate:g}, {steps} steps"] = (f"init_from={run.absolute()}",)
    print("| start | " + " | ".join(f"{task}, {method}" for task in given.tasks for method in given.methods) + " |")
    print("|---" * (1 + len(given.tasks) * len(given.methods)) + "|")
    for name, changes in starts.items():
        cells = []
        for task in given.tasks:
            for method in given.methods:
                cell = {"model": given.model.name, "task": task, "texts": given.texts, "method": method}
                losses = [
                    train(ledger, cell, given.model, RATES[method], seed, changes=changes)["loss"]
                    for seed in given.seeds
                ]
                spread = f" ± {statistics.stdev(losses):.3f}" if len(losses) > 1 else ""
                cells.append(f"{statistics.fmean(losses):.3f}{spread}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
