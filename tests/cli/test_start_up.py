"""What commands import before they do their work. No test measures a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent.parent
TRAINING = ("timm.optim", "toast_cli.training.session", "toast_cli.data.audit")
"""Modules that only training needs."""


def find_imported(modules: tuple[str, ...], *arguments: str) -> str:
    """Run a command in a process of its own and return which of the modules it has imported, one a line."""
    script = (
        "import sys\n"
        "from toast_cli.cli.app import main\n"
        f"sys.argv = ['toast', *{arguments!r}]\n"
        "try:\n    main()\n"
        "except SystemExit as ended:\n    assert not ended.code, ended.code\n"
        f"print('imported:', *sorted(set({modules!r}) & set(sys.modules)))\n"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", script]
    ended = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.rpartition("imported:")[2].strip()


def test_predicting_an_image_imports_neither_training_nor_matplotlib(toast_run: Path, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    absent = (*TRAINING, "matplotlib", "jinja2")
    assert find_imported(absent, "predict", str(tmp_path / "a.png"), "--run", str(toast_run)) == ""


def test_drawing_an_image_imports_no_training(toast_run: Path, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    arguments = ("visualize-attention", str(tmp_path / "a.png"), "--run", str(toast_run), "--out", str(tmp_path))
    assert find_imported((*TRAINING, "matplotlib.pyplot"), *arguments) == ""


def test_a_dry_run_imports_nothing_of_texts_audits_or_pages() -> None:
    absent = ("matplotlib", "jinja2", "transformers", "toast_cli.data.text.loader", "toast_cli.data.audit")
    assert find_imported(absent, "tune", "--dry-run", "dataset.train_images=40") == ""


def test_generating_text_imports_neither_training_nor_timm(text_run: Path) -> None:
    absent = (*TRAINING, "timm", "matplotlib", "toast_cli.data.images.loader")
    assert find_imported(absent, "generate", "a", "--max-new-tokens", "1", "--run", str(text_run)) == ""
