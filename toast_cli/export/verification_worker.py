"""The verification process, which loads an export as its users would and writes its outputs and its speed.

`python -m toast_cli.export.verification_worker JOB` reads a job file by `verification`: format, request, path, inputs.
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
from toast_cli.utils.files import write_text

if TYPE_CHECKING:
    from torch import Tensor

TIMING_REPEATS = 5
ERROR_FILE = "error.txt"
"""File next to the job with the message of a `ToastError`."""


def open_and_run_export(job: Path) -> None:
    """Run a job: write the outputs to `<inputs>.out.safetensors`, and the time to `seconds.json`."""
    import torch
    from safetensors.torch import load_file, save_file

    request = json.loads(job.read_text(encoding="utf-8"))
    torch.set_num_threads(request["threads"])
    export_format = registry.load_entry(registry.EXPORTS, request["format"])
    run = export_format.reopen(ExportRequest(**request["wanted"]), Path(request["path"]))
    timed: list[dict[str, Tensor]] = []
    with torch.no_grad():
        for name, count in request["inputs"].items():
            batches = [load_file(job.parent / f"{name}.{index}.safetensors") for index in range(count)]
            found = [run(inputs) for inputs in batches]
            outputs = found[0] if count == 1 else {key: torch.cat([each[key] for each in found]) for key in found[0]}
            outputs = {key: tensor.contiguous() for key, tensor in outputs.items()}
            save_file(outputs, job.parent / f"{name}.out.safetensors")
            timed = batches if name == request["timed_on"] else timed
    seconds = sum(measure_seconds(run, inputs) for inputs in timed)
    (job.parent / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")


def measure_seconds(run: ExportRunner, inputs: dict[str, Tensor]) -> float:
    """Return the seconds of the fastest of a few runs, after a warm-up."""
    import torch

    seconds = []
    with torch.no_grad():
        for _ in range(TIMING_REPEATS + 1):
            started = time.perf_counter()
            run(inputs)
            seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def run_in_new_process(job: Path) -> None:
    """Run a job in a new Python process.

    Raises:
        ToastError: The process failed to load or run the export.
    """
    # The new process must not join the process group of a distributed launcher.
    own = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    command = [sys.executable, "-m", __name__, str(job)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=own)
    if done.returncode:
        error_file = job.parent / ERROR_FILE
        lines = error_file.read_text(encoding="utf-8") if error_file.is_file() else done.stderr
        last = (lines.strip().splitlines() or [f"The process exited with code {done.returncode}."])[-1]
        raise ToastError(
            "Another process could not load and run the export.",
            last[:400],
            "No file was written.",
            code="export.cannot-open",
        )


def run_verification_job(job: Path) -> int:
    """Run a job and return the exit code. The message of a `ToastError` is written to `ERROR_FILE` on one line."""
    try:
        open_and_run_export(job)
    except ToastError as error:
        message = " ".join(part for part in (error.what, *error.reasons, error.what_to_do) if part)
        write_text(job.parent / ERROR_FILE, " ".join(message.split()))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(run_verification_job(Path(sys.argv[1])))
