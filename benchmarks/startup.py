"""How long commands take from the shell to their end, against importing the library that they need, in turns.

    python benchmarks/startup.py
    python benchmarks/startup.py --run runs/pets --image a.jpg --model path/to/llama --rounds 5

Without options, only commands that import no library are measured. With `--run` (a run of an image model) and
`--image`, a prediction and a picture of one image follow, and a dry run of the same recipe; with `--model` (a folder
with a language model of transformers), one generated token. Wall time and CPU time (user and system) are printed: the
median, and the ratios to the reference round by round, the median, the smallest and the largest. Byte code is cached
and warm, whatever PYTHONDONTWRITEBYTECODE says.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOAST = ("-m", "toast_cli")
IMPORT_TIMM = ("-c", "import timm")
IMPORT_LLAMA = ("-c", "import transformers.models.llama.modeling_llama")


def list_groups(given: argparse.Namespace, folder: str) -> list[dict[str, tuple[str, ...]]]:
    """The commands that are compared; the first of each group is the reference."""
    groups: list[dict[str, tuple[str, ...]]] = [
        {
            "python -c pass": ("-c", "pass"),
            "toast --help": (*TOAST, "--help"),
            "toast recipes validate": (*TOAST, "recipes", "validate", "demo/toast"),
        }
    ]
    if given.run is not None and given.image is not None:
        run, image = ("--run", str(given.run)), str(given.image)
        groups.append(
            {
                "import timm": IMPORT_TIMM,
                "toast tune --dry-run": (*TOAST, "tune", "--dry-run", "--recipe", str(given.run / "recipe.yaml")),
                "toast predict IMAGE": (*TOAST, "predict", image, *run),
                "toast visualize-attention IMAGE": (*TOAST, "visualize-attention", image, *run, "--out", folder),
            }
        )
    if given.model is not None:
        generate = ("generate", "Once", "--backbone", str(given.model), "--max-new-tokens", "1")
        groups.append({"import LLaMA of transformers": IMPORT_LLAMA, "toast generate": (*TOAST, *generate)})
    return groups


def measure(arguments: tuple[str, ...]) -> tuple[float, float]:
    """The seconds and the CPU seconds of a process and of those that it started."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before, began = os.times(), time.perf_counter()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([sys.executable, *arguments], check=True, env=environment, **quiet)  # type: ignore[call-overload]
    seconds, after = time.perf_counter() - began, os.times()
    used = after.children_user - before.children_user + after.children_system - before.children_system
    return seconds, used


def compare(times: list[float], reference: list[float]) -> str:
    """The median of the rounds' ratios, with the smallest and the largest."""
    ratios = [ours / theirs for ours, theirs in zip(times, reference, strict=True)]
    return f"{statistics.median(ratios):.2f} × ({min(ratios):.2f}–{max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run of an image model")
    parser.add_argument("--image", type=Path, help="an image")
    parser.add_argument("--model", type=Path, help="a folder with a language model of transformers")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print("| command | s | ratio | CPU s | ratio |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for commands in list_groups(given, folder):
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
            for number in range(given.rounds + 1):
                for name, arguments in commands.items():
                    measured = measure(arguments)
                    if number:  # the first writes byte code and fills the disk cache
                        times[name].append(measured)
            walls = {name: [wall for wall, _ in each] for name, each in times.items()}
            cpus = {name: [cpu for _, cpu in each] for name, each in times.items()}
            first = next(iter(commands))
            for name in commands:
                wall, cpu = statistics.median(walls[name]), statistics.median(cpus[name])
                ratios = (compare(walls[name], walls[first]), compare(cpus[name], cpus[first]))
                print(f"| {name} | {wall:.2f} | {ratios[0]} | {cpu:.2f} | {ratios[1]} |")


if __name__ == "__main__":
    main()
