"""Search the learning rate of language models by method and number of texts, on three tasks.

    python benchmarks/small_language_models.py --out runs/small-models
    python benchmarks/language_rates.py grid --out runs/rates --models stories260k runs/small-models/{code,prose}
    python benchmarks/language_rates.py test --out runs/rates --models ...
    python benchmarks/language_rates.py longer --out runs/rates --models ...
    python benchmarks/language_rates.py ends --out runs/rates --models ...
    python benchmarks/language_rates.py table --out runs/rates

The tasks: `docstrings` (what does a function of the standard library do), `glosses` (what is a heron; WordNet's
definitions, as timm has them), and `facts` (made sentences with a question about one of them). `grid` climbs a ladder
of rates, with the first seed, from a middle step until the validation loss has a neighbour on both sides that is worse.
`test` trains at the best rate of each cell with every seed and evaluates the test split once for each. `longer` trains
at the best rate for twice as many epochs. `ends` trains at the recommended rate with the output rows of the end tokens
frozen, as the other commands do, and trained (`task.end_tokens=auto`), and measures the loss without the end. All other
settings are those of the recipe that toast uses. Every run is a line of results.jsonl below --out; a run that has a
line is not repeated, so commands can be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from language_methods import instructions

from toast_cli.recipe.lookup import resolve_recipe
from toast_cli.recipe.parse import build_recipe
from toast_cli.training.evaluate import evaluate_model
from toast_cli.training.reporter import Reporter
from toast_cli.training.session import prepare_session
from toast_cli.training.tune import tune_model
from toast_cli.utils.errors import ToastError

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
METHODS: dict[str, tuple[list[str], float]] = {
    "toast": ([], 1e-2),
    "toast-late": (["method.feedback=late"], 1e-2),
    "toast-lite": ([], 3e-2),
    "lora": ([], 3e-2),
    "full": ([], 1e-3),
}
"""Overrides of each method, and the rate that its climb starts from."""
TASKS = ("docstrings", "glosses", "facts")
VALIDATION, TEST = 64, 200
"""Texts that are held out."""


def make_glosses() -> list[dict[str, str]]:
    place = find_spec("timm")
    assert place is not None and place.origin is not None
    folder = Path(place.origin).parent / "data" / "_info"
    names, texts = (
        dict(line.split("\t", 1) for line in (folder / f"imagenet_synset_to_{kind}.txt").read_text().splitlines())
        for kind in ("lemma", "definition")
    )
    return [
        {"instruction": f"What is {names[key].split(',')[0]}?", "output": text}
        for key, text in sorted(texts.items())
        if 20 <= len(text) <= 120
    ]


def make_facts(draw: random.Random) -> dict[str, str]:
    """Four sentences on who has what, and a question about one of them: the answer is in the text."""
    people = draw.sample(["Tom", "Lily", "Max", "Sue", "Ben", "Mia", "Sam", "Anna"], 4)
    colors = draw.sample(["red", "blue", "green", "big", "small", "pretty", "old", "new"], 4)
    things = draw.sample(["ball", "hat", "car", "book", "toy", "box", "dog", "cat", "tree", "cake"], 4)
    told = [f"{who} has a {color} {thing}." for who, color, thing in zip(people, colors, things, strict=True)]
    asked = draw.randrange(4)
    return {"instruction": " ".join(told) + f" What does {people[asked]} have?", "output": told[asked]}


def write_task(task: str, texts: int, folder: Path) -> Path:
    """Write the file of a task with `texts` training texts, and return its path. The held-out texts follow from it."""
    path, count, draw = folder / f"{task}-{texts}.json", texts + VALIDATION + TEST, random.Random(0)
    if not path.is_file():
        if task == "facts":
            entries = [make_facts(draw) for _ in range(count)]
        else:
            entries = instructions(10**6) if task == "docstrings" else make_glosses()
            entries = list({entry["instruction"]: entry for entry in entries}.values())
            draw.shuffle(entries)
        assert len(entries) >= count, f"{task} has {len(entries)} texts"
        path.write_text(json.dumps(entries[:count], indent=1), encoding="utf-8")
    return path


class Ledger:
    """The finished runs, one JSON line each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        if path.is_file():
            self.lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def find(self, **fields: Any) -> list[dict[str, Any]]:
        return [line for line in self.lines if all(line.get(name) == value for name, value in fields.items())]

    def add(self, line: dict[str, Any]) -> dict[str, Any]:
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return line


def list_overrides(texts: int, end_tokens: str = "frozen") -> list[str]:
    count = texts + VALIDATION + TEST
    held_out = [f"dataset.val_fraction={VALIDATION / (texts + VALIDATION)}", f"dataset.test_fraction={TEST / count}"]
    fast = ["training.checkpoint_gradients=false", "training.eval_batch_size=50", "training.workers=0"]
    return [*held_out, *fast, f"task.end_tokens={end_tokens}"]


def train(
    ledger: Ledger,
    cell: dict[str, Any],
    model: Path,
    rate: float,
    seed: int,
    *,
    test: bool = False,
    changes: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Return the line of a run, which is trained if there is none."""
    key = {**cell, "rate": rate, "seed": seed, "changes": list(changes)}
    if found := [line for line in ledger.find(**key) if not test or "test" in line]:
        return found[0]
    overrides, _ = METHODS[cell["method"]]
    resolved = resolve_recipe(
        backbone=f"llama:{model}",
        dataset=f"alpaca:{write_task(cell['task'], cell['texts'], ledger.path.parent)}",
        method=cell["method"].removesuffix("-late"),
        seed=seed,
        device="cpu",
        overrides=[
            *list_overrides(cell["texts"]),
            *overrides,
            f"training.lr={rate}",
            f"test={str(test).lower()}",
            *changes,
        ],
    )
    folder = Path(tempfile.mkdtemp())
    try:
        run, results = tune_model(resolved.recipe, folder / "run", Reporter())
        epochs = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
        epochs = [line for line in epochs if line["kind"] == "epoch"]
        outcome = {
            "loss": results["validation"]["loss"],
            "losses": [line["validation"]["loss"] for line in epochs],
            "train_losses": [line["train"]["loss"] for line in epochs],
            "trained": results["trained_parameters"],
            "flops": results["flops"] / results["flops_plain"],
            "warnings": results["warnings"],
            "seconds": results["seconds"],
            **({"test": results["test"]["loss"]} if test else {}),
        }
    except ToastError as error:
        if error.code != "training.non-finite":
            raise
        outcome = {"loss": None, "diverged": True}
    finally:
        shutil.rmtree(folder)
    return ledger.add({**key, **outcome})


def measure_before(ledger: Ledger, cell: dict[str, Any], model: Path) -> None:
    """Add the losses of the model as it came, on the validation and the test texts of a task."""
    key = {**cell, "method": "none"}
    if ledger.find(**key):
        return
    path = write_task(cell["task"], cell["texts"], ledger.path.parent)
    count = cell["texts"] + VALIDATION + TEST
    dataset = {
        "name": "alpaca",
        "path": str(path),
        "val_fraction": VALIDATION / (cell["texts"] + VALIDATION),
        "test_fraction": TEST / count,
    }
    raw = {"backbone": f"llama:{model}", "dataset": dataset, "method": "full", "task": "language", "device": "cpu"}
    session = prepare_session(build_recipe(raw, {}, origin="this benchmark"))
    val, test = (
        evaluate_model(session.model, session.make_loader(split), session.accelerator)["loss"]
        for split in ("val", "test")
    )
    ledger.add({**key, "loss": float(val), "test": float(test)})


def measure_ends(ledger: Ledger, cell: dict[str, Any], model: Path, seed: int) -> None:
    """Print the test loss with and without the end of answers, with its output row frozen and trained."""
    for ends in ("frozen", "auto"):
        key = {**cell, "command": "ends", "end_tokens": ends, "seed": seed}
        if not (found := ledger.find(**key)):
            resolved = resolve_recipe(
                backbone=f"llama:{model}",
                dataset=f"alpaca:{write_task(cell['task'], cell['texts'], ledger.path.parent)}",
                method=cell["method"].removesuffix("-late"),
                seed=seed,
                device="cpu",
                overrides=[*list_overrides(cell["texts"], ends), *METHODS[cell["method"]][0]],
            )
            with tempfile.TemporaryDirectory() as folder:
                _, results = tune_model(resolved.recipe, Path(folder) / "run", Reporter())
            found = [ledger.add({**key, "changes": [ends], "measured": results["test"]})]
        test = found[0]["measured"]
        print(
            *cell.values(),
            f"{ends}: loss {test['loss']:.3f}, without the end {test['loss_without_end']:.3f}, ended "
            f"{test['end_accuracy']:.0%}",
            flush=True,
        )


def iterate_cells(given: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Path]]:
    for texts in given.texts:
        for model in given.models:
            for task in given.tasks:
                for method in given.methods:
                    yield {"model": model.name, "task": task, "texts": texts, "method": method}, model


def get_loss(line: dict[str, Any]) -> float:
    return math.inf if line["loss"] is None else float(line["loss"])


def choose_first_rate(ledger: Ledger, cell: dict[str, Any], seed: int) -> float:
    """Return the rate to climb from: the best one for fewer texts of the task, or for another task, or a fixed one."""
    for fields in ({"model": cell["model"], "task": cell["task"]}, {"model": cell["model"], "texts": cell["texts"]}):
        found = ledger.find(**fields, method=cell["method"], seed=seed, changes=[])
        found = [line for line in found if line["texts"] <= cell["texts"] and "test" not in line]
        if found:
            nearest = max(line["texts"] for line in found)
            return float(min((line for line in found if line["texts"] == nearest), key=get_loss)["rate"])
    return METHODS[cell["method"]][1]


def climb(ledger: Ledger, cell: dict[str, Any], model: Path, seed: int) -> dict[str, Any]:
    """Return the line of the rate with the lowest validation loss, whose neighbours were tried too."""
    at = RATES.index(choose_first_rate(ledger, cell, seed))
    while True:
        near = [i for i in (at, at + 1, at - 1) if 0 <= i < len(RATES)]
        lines = {i: train(ledger, cell, model, RATES[i], seed) for i in near}
        best = min(near, key=lambda i: get_loss(lines[i]))
        if best == at:
            return lines[at]
        at = best


def print_excess(ledger: Ledger, seed: int) -> None:
    """Print how much higher the validation loss of every rate is than that of the best one: mean and worst cell."""
    cells: dict[tuple[Any, ...], dict[float, float]] = defaultdict(dict)
    for line in ledger.find(seed=seed, changes=[]):
        if "test" not in line:
            cells[line["method"], line["texts"], line["model"], line["task"]][line["rate"]] = get_loss(line)
    excess: dict[tuple[str, int, float], list[float]] = defaultdict(list)
    for (method, texts, *_), losses in cells.items():
        for rate, loss in losses.items():
            excess[method, texts, rate].append(loss / min(losses.values()) - 1)
    print("| method | texts | rate | mean excess | worst | tasks and models |")
    print("|---|---|---|---|---|---|")
    for (method, texts, rate), values in sorted(excess.items()):
        mean, worst = f"{statistics.fmean(values):.1%}", f"{max(values):.1%}"
        print(f"| {method} | {texts} | {rate:g} | {mean} | {worst} | {len(values)} |")


def print_table(ledger: Ledger) -> None:
    """Print the best rate of every cell, the rates within 2% of its loss, and the test losses."""
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for line in ledger.lines:
        if line["method"] != "none" and not line["changes"]:
            cells[line["texts"], line["task"], line["model"], line["method"]].append(line)
    columns = ["texts", "task", "model", "method", "trained", "best rate", "within 2%", "validation", "test (seeds)"]
    print("| " + " | ".join([*columns, "test before"]) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for (texts, task, model, method), lines in sorted(cells.items()):
        searched = [line for line in lines if line["seed"] == 0 and "test" not in line] or lines
        best = min(searched, key=get_loss)
        close = sorted({line["rate"] for line in searched if get_loss(line) <= 1.02 * get_loss(best)})
        tested = [line["test"] for line in lines if "test" in line and line["rate"] == best["rate"]]
        spread = f" ± {statistics.stdev(tested):.3f}" if len(tested) > 1 else ""
        shown = f"{statistics.fmean(tested):.3f}{spread} ({len(tested)})" if tested else ""
        before = ledger.find(model=model, task=task, texts=texts, method="none")
        cells_of_row = [
            *(str(texts), task, model, method, f"{best.get('trained', 0):,}", f"{best['rate']:g}"),
            *(f"{close[0]:g} to {close[-1]:g}", f"{get_loss(best):.3f}", shown),
            f"{before[0]['test']:.3f}" if before else "",
        ]
        print("| " + " | ".join(cells_of_row) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["grid", "test", "longer", "ends", "table"])
    parser.add_argument("--out", type=Path, required=True, help="folder for the texts and results.jsonl")
    parser.add_argument("--models", nargs="+", type=Path, default=[], help="folders of language models")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--texts", nargs="+", type=int, default=[32, 128, 512], help="numbers of training texts")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of 'test'; 'grid' uses the first"
    )
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(given.out / "results.jsonl")
    if given.command == "table":
        print_table(ledger)
        print()
        print_excess(ledger, given.seeds[0])
        return
    for cell, model in iterate_cells(given):
        if given.command == "ends":
            measure_ends(ledger, cell, model, given.seeds[0])
            continue
        measure_before(ledger, cell, model)
        best = climb(ledger, cell, model, given.seeds[0])
        print(*cell.values(), f"rate {best['rate']:g}, validation loss {get_loss(best):.3f}", flush=True)
        if given.command == "longer":
            train(ledger, cell, model, best["rate"], given.seeds[0], changes=("training.epochs=6",))
        if given.command == "test":
            for seed in given.seeds:
                train(ledger, cell, model, best["rate"], seed, test=True)


if __name__ == "__main__":
    main()
