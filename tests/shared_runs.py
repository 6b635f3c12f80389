"""Finished runs that many tests read, each made once, by the first worker that asks for it."""

from __future__ import annotations

import json
from pathlib import Path

from filelock import FileLock


class SharedRuns:
    """Runs in one folder that all workers of a test session share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.handed_out: set[Path] = set()

    def get(self, name: str) -> Path:
        """Return the finished run of this name, made now if no worker has made it yet."""
        run, contents = self.folder / name / "run", self.folder / name / "contents.json"
        run.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{run.parent}.lock"):
            if not contents.exists():
                make_run(name, run)
                contents.write_text(json.dumps(list_contents(run)))
        self.handed_out.add(run)
        return run

    def assert_unchanged(self) -> None:
        """Fail if a test has written into a run that others read."""
        for run in self.handed_out:
            assert list_contents(run) == json.loads((run.parent / "contents.json").read_text()), f"{run} was changed"


def list_contents(run: Path) -> dict[str, list[int]]:
    """Return the size and the time of the last change of every file in a run."""
    files = sorted(file for file in run.rglob("*") if file.is_file())
    return {str(file.relative_to(run)): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


def make_run(name: str, run: Path) -> None:
    """Make a run as a user does."""
    from tests.cli.conftest import TINY_DEMO, toast
    from tests.language import instructions, make_model, write_json

    demo = ["--device", "cpu", *TINY_DEMO]
    if name == "text":
        data = write_json(run.parent / "data.json", instructions(20))
        model = make_model(run.parent / "model")
        words = ["tune", "--backbone", f"llama:{model}", "--dataset", f"alpaca:{data}", "--method", "toast-lite"]
        words += ["training.epochs=1"]
    elif name == "pretuned":
        words = ["pretune", "--least-squares", *demo]
    else:
        words = ["tune", "--method", name, *demo]
    said = toast(*words, "--output-dir", run)
    assert said.code == 0, said.err
