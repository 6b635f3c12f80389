"""Imported by a server of forks: everything that `toast` imports late, so that a fork's time is the work's.

No gradient is taken here: autograd's threads do not outlive a fork.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

import toast_cli.bench.worker
import toast_cli.export.exporting
import toast_cli.training.caching
import toast_cli.training.loop
import toast_cli.training.pretuning
import toast_cli.training.tuning  # noqa: F401
from tests.cli.conftest import TINY_DEMO, toast

torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as folder:
    toast("tune", *TINY_DEMO, "--device", "cpu", "--dry-run", "--output-dir", Path(folder) / "run")
AcceleratorState._reset_state(reset_partial_state=True)  # a fork may be one of two processes that work together
