"""Tune a language model by several methods on instructions made from real text: held-out loss before and after.

    python benchmarks/language_methods.py --model stories260k --out runs/stories

The instructions are the standard library's own: what does a function do, answered by the first line of its docstring.
They are read from the source files of the running Python, so another version gives slightly other texts. Every method's
rate is the one of --rates with the lowest validation loss under the first seed; the test texts are seen by the chosen
runs alone. A run that is already finished below --out is read, not repeated.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import statistics
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from toast_cli.recipe.parse import build_recipe
from toast_cli.training.evaluate import evaluate_model
from toast_cli.training.session import prepare_session

SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "__pycache__"}


def instructions(count: int) -> list[dict[str, str]]:
    """Questions about the standard library's public functions and classes; a fixed draw of all there are."""
    library = Path(sysconfig.get_paths()["stdlib"])
    entries = []
    for file in sorted(library.rglob("*.py")):
        if SKIPPED & set(file.relative_to(library).parts):
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError):
            continue
        module = ".".join(file.relative_to(library).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            said = (ast.get_docstring(node) or "").split("\n")[0].strip()
            if 20 <= len(said) <= 120:
                entries.append({"instruction": f"What does {node.name} of {module} do?", "input": "", "output": said})
    random.Random(0).shuffle(entries)
    return entries[:count]


def tuned(given: argparse.Namespace, method: str, rate: str, seed: int) -> dict[str, Any]:
    """The results of one run."""
    run = given.out / f"{method}-{rate}-seed{seed}"
    if not (run / "results.json").is_file():
        command = [sys.executable, "-m", "toast_cli", "tune", *options(given), "--method", method, "--seed", str(seed)]
        subprocess.run(
            [*command, "--output-dir", str(run), f"training.lr={rate}", f"training.epochs={given.epochs}"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


def options(given: argparse.Namespace) -> list[str]:
    fixed = ["training.batch_size=16", "training.accumulate=1", "training.checkpoint_gradients=false"]
    data = ["--backbone", f"llama:{given.model}", "--dataset", f"alpaca:{given.out / 'instructions.json'}"]
    return [*data, *fixed, "dataset.val_fraction=0.1", "dataset.test_fraction=0.2", "training.warmup_epochs=0.1"]


def before(given: argparse.Namespace) -> float:
    """Test loss of the model as it came."""
    dataset = {
        "name": "alpaca",
        "path": str(given.out / "instructions.json"),
        "val_fraction": 0.1,
        "test_fraction": 0.2,
    }
    raw = {"backbone": f"llama:{given.model}", "dataset": dataset, "method": "full", "task": "language"}
    session = prepare_session(build_recipe(raw, {}, origin="this benchmark"))
    return float(evaluate_model(session.model, session.make_loader("test"), session.accelerator)["loss"])


def spread(values: list[float], digits: int = 3) -> str:
    more = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{more}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a language model with its tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="folder for texts and runs")
    parser.add_argument("--methods", nargs="+", default=["toast", "toast-lite", "lora", "full"])
    parser.add_argument("--rates", nargs="+", default=["0.001", "0.003", "0.01"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "instructions.json").write_text(json.dumps(instructions(given.texts), indent=1), encoding="utf-8")
    start = before(given)
    print("| method | trained | FLOPs | rate | validation loss | test loss before | after | minutes |")
    print("|---|---|---|---|---|---|---|---|")
    for method in given.methods:
        first = {rate: tuned(given, method, rate, given.seeds[0]) for rate in given.rates}
        rate = min(first, key=lambda rate: first[rate]["validation"]["loss"])
        runs = [tuned(given, method, rate, seed) for seed in given.seeds]
        cells = [
            method,
            f"{runs[0]['trained_parameters']:,}",
            f"{runs[0]['flops'] / runs[0]['flops_plain']:.2f} ×",
            rate,
            spread([run["validation"]["loss"] for run in runs]),
            f"{start:.3f}",
            spread([run["test"]["loss"] for run in runs]),
            spread([run["seconds"] / 60 for run in runs], digits=1),
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
