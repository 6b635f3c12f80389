"""Everything that is measured on a GPU, unattended and within eight minutes; prints a page of Markdown.

    python benchmarks/gpu.py --out gpu.md
    python benchmarks/gpu.py --dry           # the same steps on the CPU, tiny, to check this script

Each step is a process of its own with a limit: the tests that need a GPU, and `speed.py` under automatic mixed
precision (bf16) at several batch sizes. A step that fails or exceeds its limit is reported, and the next one runs. The
exit code is 1 if any step did not finish. Images per second are the batch divided by the time of a batch or a step.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUDGET = 480
"""Seconds for all steps together."""
NO_TESTS = 5
"""Exit code of pytest if it collected nothing."""


@dataclass(frozen=True)
class Step:
    """A command, the most seconds that it may take, and the batch size that its table is of."""

    name: str
    command: tuple[str, ...]
    seconds: int
    batch: int | None = None


def list_steps(backbone: str, batches: list[int], repeats: int, dry: bool) -> list[Step]:
    """Return the steps in the order of their importance: those that do not fit into the budget are left out."""
    speed, device = ("benchmarks/speed.py", "--backbone", backbone, "--bf16"), "cpu" if dry else "cuda"
    steps = [
        Step("tests", ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests/unit/test_gpu.py"), 150)
    ]
    for batch in batches:
        fewer = ("--methods", "full", "lite") if dry else ()
        given = (*speed, "--device", device, "--batch", str(batch), "--repeats", str(repeats), *fewer)
        steps.append(Step(f"batch {batch}", given, 200, batch))
    return steps


def run_step(step: Step, seconds: float, environment: dict[str, str]) -> tuple[str, str]:
    """Return what a step printed, and why it did not finish; empty if it did."""
    process = subprocess.Popen(
        [sys.executable, *step.command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the workers that it started
        return process.communicate()[0], f"it took longer than {seconds:.0f} s"
    if process.returncode == NO_TESTS and step.batch is None:
        return printed, "no test was collected"
    return printed, "" if process.returncode == 0 else f"exit code {process.returncode}"


def format_step(step: Step, printed: str, problem: str) -> list[str]:
    """Return the lines about a step: its tables with images per second, or the end of what it printed."""
    lines = ["", f"## {step.name}", ""]
    if problem:
        return [*lines, f"**Not finished: {problem}.**", "", "```", *printed.splitlines()[-15:], "```"]
    if step.batch is None:
        return [*lines, printed.strip().splitlines()[-1]]
    for line in printed.splitlines():
        if line and not line.startswith("|") and "shortcuts" not in line:
            continue  # warnings of libraries
        if line.startswith("|"):
            cells = line.split("|")
            number = cells[2].strip()
            added = (
                f" {1000 * step.batch / float(number):.0f} " if re.fullmatch(r"\d+", number) and number != "0" else ""
            )
            if not added:
                added = "---" if set(number) == {"-"} else " images/s "
            cells.insert(3, added)
            line = "|".join(cells)
        lines.append(line)
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_b16")
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the page to this file too")
    parser.add_argument("--dry", action="store_true", help="on the CPU, with a tiny backbone: checks this script")
    given = parser.parse_args()

    import torch

    if not (given.dry or torch.cuda.is_available()):
        sys.exit("This machine has no CUDA device. Use --dry to check the script on the CPU.")
    if given.dry:
        given.backbone, given.batch, given.repeats = "vit_demo", [2, 4], 1
    paths = os.pathsep.join([str(ROOT), str(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "TOAST_GPU_TESTS_ON": "cpu" if given.dry else "cuda"}
    device = "CPU (dry run)" if given.dry else torch.cuda.get_device_name()
    lines = [f"# {given.backbone} on {device}, PyTorch {torch.__version__}, bf16"]
    began, failed = time.monotonic(), False
    for step in list_steps(given.backbone, given.batch, given.repeats, given.dry):
        left = BUDGET - (time.monotonic() - began)
        printed, problem = (
            run_step(step, min(step.seconds, left), environment) if left > 1 else ("", "no time was left")
        )
        failed |= bool(problem)
        lines += format_step(step, printed, problem)
        print(f"{step.name}: {problem or 'done'}", file=sys.stderr)
    lines += ["", f"All steps took {time.monotonic() - began:.0f} s."]
    page = "\n".join(lines) + "\n"
    print(page)
    if given.out is not None:
        given.out.write_text(page, encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
