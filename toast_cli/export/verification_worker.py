"""The other process: opens an export as its users would, runs it, and leaves what came out and how long it took.

`python -m toast_cli.export.verification_worker JOB` reads a job of `verification`: format, wanted, path and inputs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from toast_cli import registry
from toast_cli.export.base import ExportRequest, ExportRunner
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from torch import Tensor

TIMING_REPEATS = 5
ERROR_FILE = "told.txt"
"""Beside a job: why it could not be done, where toast itself says so."""


def open_and_run_export(job: Path) -> None:
    """Do a job: outputs lie beside the inputs, as `<inputs>.out.safetensors`, seconds in `seconds.json`."""
    import torch
    from safetensors.torch import load_file, save_file

    asked = json.loads(job.read_text(encoding="utf-8"))
    torch.set_num_threads(asked["threads"])
    export_format = registry.load_entry(registry.EXPORTS, asked["format"])
    run = export_format.reopen(ExportRequest(**asked["wanted"]), Path(asked["path"]))
    with torch.no_grad():
        for name in asked["inputs"]:
            inputs = load_file(job.parent / f"{name}.safetensors")
            outputs = run(inputs)
            save_file(
                {key: tensor.contiguous() for key, tensor in outputs.items()}, job.parent / f"{name}.out.safetensors"
            )
    seconds = measure_seconds(run, load_file(job.parent / f"{asked['timed_on']}.safetensors"))
    (job.parent / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")


def measure_seconds(run: ExportRunner, inputs: dict[str, Tensor]) -> float:
    """Seconds of the quickest of a few runs, after one that does not count."""
    import torch

    found = []
    with torch.no_grad():
        for _ in range(TIMING_REPEATS + 1):
            started = time.perf_counter()
            run(inputs)
            found.append(time.perf_counter() - started)
    return min(found[1:])


def run_in_new_process(job: Path) -> None:
    """Have a job done by a Python that knows nothing of this one.

    Raises:
        ToastError: it could not open or run the export.
    """
    # One process: whatever this one is part of (a launcher's group) is not its business.
    own = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run([sys.executable, "-m", __name__, str(job)], capture_output=True, text=True, env=own)
    if done.returncode:
        told = job.parent / ERROR_FILE
        lines = told.read_text(encoding="utf-8") if told.is_file() else done.stderr
        last = (lines.strip().splitlines() or [f"It ended with {done.returncode}."])[-1]
        raise ToastError(
            "The export could not be opened and run by another process.",
            last[:400],
            "No file was left.",
            code="export.cannot-open",
        )


def run_verification_job(job: Path) -> int:
    """Do a job; what is wrong is left beside it in the words that a user of the export would see, on one line."""
    try:
        open_and_run_export(job)
    except ToastError as error:
        told = " ".join(part for part in (error.what, *error.reasons, error.what_to_do) if part)
        (job.parent / ERROR_FILE).write_text(" ".join(told.split()), encoding="utf-8")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(run_verification_job(Path(sys.argv[1])))
