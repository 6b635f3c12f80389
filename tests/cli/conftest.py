"""The command line as a user types it, on work small enough for a test."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.forks import begin
from toast_cli.cli.app import app
from toast_cli.cli.output import console
from toast_cli.export import verification_worker
from toast_cli.utils.errors import ToastError

ROOT = Path(__file__).parent.parent.parent

TINY_DEMO = [
    "dataset.train_images=40",
    "dataset.val_images=20",
    "dataset.test_images=20",
    "training.epochs=2",
    "training.batch_size=20",
    "training.log_every=1",
    "training.validate_every=1",
    "training.warmup_epochs=1",
]
"""The demo, small: two epochs of two steps, each validated."""


@dataclass(frozen=True)
class Said:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str
    error: str | None = None
    """Code of the error that ended it, where it ran in this process."""

    def fails(self, code: int, *words: str, error: str | None = None) -> None:
        """It ended with this exit code and this error's code, said all these words, and showed no traceback."""
        assert self.code == code, self.err or self.out
        assert error is None or self.error == error, f"{self.error}: {self.err}"
        assert "Traceback" not in self.err and "Internal error" not in self.err
        flat = " ".join(self.err.split())
        for word in words:
            assert word in flat, f"{word!r} is not in: {flat}"


def toast(*arguments: str | Path) -> Said:
    """Run `toast` in this process."""
    codes: list[str] = []
    print_error = console.print_error

    def record(error: ToastError, **how: bool) -> None:
        codes.append(error.code)
        print_error(error, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "print_error", record)
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return Said(result.exit_code, result.stdout, result.stderr, codes[-1] if codes else None)


def toast_in_new_process(*arguments: str | Path) -> Said:
    """Run `toast` in a process of its own, which begins with everything imported."""
    with tempfile.TemporaryDirectory() as folder:
        command = begin(Path(folder) / "said", *arguments)
        return Said(command.end(), command.out, command.err)


def toast_from_the_shell(*arguments: str | Path, **environment: str) -> Said:
    """Run `toast` as a user does, imports and all: seconds more, for what may depend on it."""
    done = subprocess.run(
        [sys.executable, "-m", "toast_cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=300,
    )
    return Said(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports are checked in this process: for tests of something else than that they are checked in another."""
    monkeypatch.setattr(verification_worker, "run_in_new_process", verification_worker.open_and_run_export)


MakePictures = Callable[..., Path]


@pytest.fixture
def pictures(tmp_path: Path) -> MakePictures:
    """`pictures(cat=6, dog=6)` makes a folder of two classes that differ in colour."""

    def make(**classes: int) -> Path:
        root = tmp_path / "pictures"
        for shade, (name, count) in enumerate(classes.items()):
            (root / name).mkdir(parents=True)
            for number in range(count):
                rng = np.random.default_rng(number)
                pixels = rng.integers(80 * shade, 80 * shade + 80, (70, 90, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / name / f"{number}.png")
        return root

    return make
