"""The reference pages say what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGES = ROOT / "docs" / "reference"


def test_generated_pages_are_up_to_date() -> None:
    command = [sys.executable, "docs/generate_reference.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"Run 'python docs/generate_reference.py'. {done.stdout}{done.stderr}"


@pytest.mark.parametrize("run", ["run_0_2_lora", "run_0_2_toast_lite"])
def test_the_page_on_run_folders_names_every_file_of_a_run(run: str) -> None:
    page = (PAGES / "run-folder.md").read_text(encoding="utf-8")
    folder = ROOT / "tests" / "fixtures" / run
    names = {part for file in folder.rglob("*") for part in file.relative_to(folder).parts}
    assert names
    assert [name for name in sorted(names) if name not in page] == []
