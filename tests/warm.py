"""Imported by a server of forks: everything that `toast` imports late, so that a fork's time is the work's.

No gradient is taken here: autograd's threads do not outlive a fork.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

import toast_cli.bench.scheduler.worker
import toast_cli.export.export_run
import toast_cli.training.feature_cache
import toast_cli.training.loop
import toast_cli.training.pretune
import toast_cli.training.tune  # noqa: F401
from tests.cli.conftest import TINY_DEMO, toast

torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as folder:
    toast("tune", *TINY_DEMO, "--device", "cpu", "--dry-run", "--output-dir", Path(folder) / "run")
AcceleratorState._reset_state(reset_partial_state=True)  # a fork may be one of two processes that work together
