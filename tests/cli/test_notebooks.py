"""The notebooks of tutorials: they equal their pages, and their cells run."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="the development dependencies have nbformat")
nbclient = pytest.importorskip("nbclient", reason="the development dependencies have nbclient")
pytest.importorskip("jupytext", reason="the development dependencies have jupytext")

ROOT = Path(__file__).parent.parent.parent
NOTEBOOK = ROOT / "docs" / "tutorials" / "photographs.ipynb"


def read_results(run: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((run / "results.json").read_text(encoding="utf-8"))
    return results


def test_notebooks_equal_their_pages() -> None:
    script = ROOT / "docs" / "generate_notebooks.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.nightly
def test_the_photographs_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All cells run on drawn scenes, TOAST gains on the linear probe, and the script answers as 'toast predict'."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()

    results = {name: read_results(tmp_path / "runs" / name) for name in ("linear", "toast")}
    assert results["toast"]["test"]["accuracy"] > results["linear"]["test"]["accuracy"] + 0.3
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        predicted = {row["path"]: row["class"] for row in csv.DictReader(file)}
    assert len(predicted) == 10
    printed = "".join(output.text for output in notebook.cells[-2].outputs if output.name == "stdout")
    answers = [line.split("\t") for line in printed.splitlines()]
    assert {file: best.split()[0] for file, best, *_ in answers} == {name: predicted[name] for name, *_ in answers}
    assert len(answers) == 2
