"""A run that was killed goes on and ends as one that never was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import toast, toast_in_new_process

SIZES = ["dataset.train_images=60", "dataset.val_images=20", "dataset.test_images=20", "training.epochs=6"]
SMALL = [*SIZES, "training.batch_size=10", "training.log_every=1", "images.augment=crop-flip"]
METHODS = {
    "toast": ["training.optimizer=adamw"],
    "toast-lite": ["training.optimizer=sgd", "training.accumulate=2"],
    "lora": ["training.optimizer=adamw", "method.dropout=0.3"],
}


def killed(out: Path, method: str, epochs_done: int) -> None:
    """Start a run in a process of its own and kill it, without warning, after so many epochs."""
    words = ["tune", "--method", method, "--output-dir", str(out), "--device", "cpu", *SMALL, *METHODS[method]]
    process = subprocess.Popen(
        [sys.executable, "-m", "toast_cli", *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(f"epoch   {epochs_done}/"):
            break
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert not (out / "results.json").exists()


def metrics(run: Path) -> list[str]:
    import json

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.get("train", {}).pop("seconds", None)
    return [json.dumps(line) for line in lines]


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_goes_on_to_the_very_weights_of_an_uninterrupted_one(here: Path, method: str) -> None:
    words = ["--method", method, "--device", "cpu", *SMALL, *METHODS[method]]
    whole = toast_in_new_process("tune", "--output-dir", here / "whole", *words)
    assert whole.code == 0, whole.err
    killed(here / "cut", method, epochs_done=2)
    resumed = toast_in_new_process("tune", "--resume", here / "cut")
    assert resumed.code == 0, resumed.err
    assert "Going on after epoch" in resumed.err
    for name in ("checkpoints/last/model.safetensors", "checkpoints/best/model.safetensors"):
        ours, theirs = (load_file(here / run / name) for run in ("cut", "whole"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items()), name
    ours, theirs = (load_file(here / run / "adapter" / "adapter_model.safetensors") for run in ("cut", "whole"))
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    assert metrics(here / "cut") == metrics(here / "whole")


def test_only_what_was_interrupted_can_be_resumed(here: Path) -> None:
    toast("tune", "--resume", here / "none").fails(2, "is no run folder")
    assert toast("tune", "--output-dir", here / "run", *SMALL, "training.epochs=1").code == 0
    toast("tune", "--resume", here / "run").fails(2, "got to its end")
    (here / "run" / "results.json").unlink()
    toast("tune", "--resume", here / "run", "training.lr=0.1").fails(2, "Leave all but --device out")


def test_a_run_that_finished_no_epoch_begins_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toast_cli.training import session

    def stops(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(session, "fit", stops)
        said = toast("tune", "--output-dir", here / "run", *SMALL)
        assert said.code == 130 and f"toast tune --resume {here / 'run'}" in said.err.replace("\n", "")
    assert toast("tune", "--resume", here / "run").code == 0
