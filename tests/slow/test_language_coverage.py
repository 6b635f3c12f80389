"""Every causal language model of transformers is steered, or refused with its reason. About two minutes on one core."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.slow


def test_model_types_are_steered_or_refused_with_a_reason_and_the_page_says_so() -> None:
    command = [sys.executable, "benchmarks/language_coverage.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
