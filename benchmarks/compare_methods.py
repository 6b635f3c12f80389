"""Tune several methods over several seeds with one recipe each and print a Markdown table: mean ± std over seeds.

    python benchmarks/compare_methods.py --methods linear toast toast-lite --seeds 0 1 2 --out runs/demo-table -- \
        --dataset demo

What stands after `--` goes to every `toast tune`. A run that is already finished below --out is read, not repeated, so
an interrupted comparison continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any


def finished(folder: Path, method: str, seed: int, options: list[str]) -> dict[str, Any]:
    run = folder / f"{method}-seed{seed}"
    if not (run / "results.json").is_file():
        command = [sys.executable, "-m", "toast_cli", "tune", "--method", method, "--seed", str(seed)]
        subprocess.run([*command, "--output-dir", str(run), *options], check=True, stdout=subprocess.DEVNULL)
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


def spread(values: list[float], scale: float = 100, digits: int = 1) -> str:
    mean = statistics.fmean(values) * scale
    return f"{mean:.{digits}f}" + (f" ± {statistics.stdev(values) * scale:.{digits}f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["linear", "toast", "toast-lite"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("options", nargs="*", help="after --: options of 'toast tune'")
    given = parser.parse_args()

    print("| method | trained | FLOPs | validation | test | on the object, pass one | pass two | minutes |")
    print("|---|---|---|---|---|---|---|---|")
    for method in given.methods:
        runs = [finished(given.out, method, seed, given.options) for seed in given.seeds]
        shares = [run["test"].get("attention_share", {}) for run in runs]
        cells = [
            method,
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
