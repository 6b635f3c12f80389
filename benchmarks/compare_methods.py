"""Tune several methods over several seeds and print a Markdown table: mean ± std over seeds.

    python benchmarks/compare_methods.py --out runs/demo-table -- --dataset demo
    python benchmarks/compare_methods.py --rows linear toast,method.feedback=early --rates 0.003 0.01 --out runs/some

A row is a method, with changes to its recipe after commas. With --rates, each row takes the one that validates best
under the first seed. What stands after `--` goes to every `toast tune`. A run that is already finished below --out is
read, not repeated, so an interrupted comparison continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

EVERYTHING = [
    "linear",
    "full",
    "lora",
    "vpt",
    "toast,method.start=random",
    "toast",
    "toast-lite",
    "toast,method.feedback=early",
    "toast,method.feedback=late",
    "toast,method.token_selection=false",
    "toast,method.channel_selection=false,method.start=random",
]
"""The methods, feedbacks and ablations of the paper's tables 1, 7, 8 and 9."""


def finished(given: argparse.Namespace, row: str, rate: str | None, seed: int) -> dict[str, Any]:
    """The results of one run, made now unless they are there already."""
    method, *changes = row.split(",")
    if rate is not None:
        changes.append(f"training.lr={rate}")
    run = given.out / re.sub(r"[^\w.=-]+", "-", "-".join([method, *changes, f"seed{seed}"]))
    if not (run / "results.json").is_file():
        command = [sys.executable, "-m", "toast_cli", "tune", "--method", method, "--seed", str(seed)]
        words = ["--output-dir", str(run), *given.options, *changes]
        subprocess.run([*command, *words], check=True, stdout=subprocess.DEVNULL)
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


def chosen_rate(given: argparse.Namespace, row: str) -> str | None:
    """The rate that validates best under the first seed; None: the recipe's."""
    if len(given.rates) < 2:
        return given.rates[0] if given.rates else None
    first = {rate: finished(given, row, rate, given.seeds[0])["validation"] for rate in given.rates}
    return max(first, key=lambda rate: (first[rate]["accuracy"], -first[rate]["loss"]))


def spread(values: list[float], scale: float = 100, digits: int = 1) -> str:
    mean = statistics.fmean(values) * scale
    return f"{mean:.{digits}f}" + (f" ± {statistics.stdev(values) * scale:.{digits}f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=EVERYTHING, help="METHOD[,KEY=VALUE...]; default: all")
    parser.add_argument("--rates", nargs="+", default=[], help="learning rates to choose from; default: the recipe's")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("options", nargs="*", help="after --: options of 'toast tune'")
    given = parser.parse_args()

    print("| method | rate | trained | FLOPs | validation | test | on the object, pass one | pass two | minutes |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in given.rows:
        rate = chosen_rate(given, row)
        runs = [finished(given, row, rate, seed) for seed in given.seeds]
        shares = [run["test"].get("attention_share", {}) for run in runs]
        cells = [
            row.replace(",", ", "),
            rate or "recipe's",
            f"{runs[0]['trained_parameters']:,}",
            f"{runs[0]['flops'] / runs[0]['flops_plain']:.2f} ×",
            spread([run["validation"]["accuracy"] for run in runs]),
            spread([run["test"]["accuracy"] for run in runs]),
            *(
                spread([share[name] for share in shares]) if all(name in share for share in shares) else "–"
                for name in ("pass_one", "pass_two")
            ),
            spread([run["seconds"] / 60 for run in runs], scale=1),
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
