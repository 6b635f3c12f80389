"""How long the command line takes to answer, against a bare interpreter: medians of interleaved runs.

python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "toast --help": ["-m", "toast_cli", "--help"],
    "toast recipes validate": ["-m", "toast_cli", "recipes", "validate", "demo/toast"],
    "import torch": ["-c", "import torch"],
}
ROUNDS = 9


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, arguments in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - start)
    bare = statistics.median(seconds["python -c pass"])
    print("| command | median s | of a bare interpreter |")
    print("|---|---|---|")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"| {name} | {median:.3f} | {median / bare:.1f} × |")


if __name__ == "__main__":
    main()
