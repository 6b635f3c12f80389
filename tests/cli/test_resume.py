"""A run that was killed goes on and ends as one that never was."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import Said, toast, toast_in_new_process
from tests.forks import begin

SIZES = ["dataset.train_images=60", "dataset.val_images=20", "dataset.test_images=20", "training.epochs=6"]
PLAIN = ["backbone=vit_demo_3", "training.validate_every=1", "training.warmup_epochs=1"]
SMALL = [*SIZES, *PLAIN, "training.batch_size=10", "training.log_every=1", "images.augment=crop-flip"]
METHODS = {
    "toast": ["training.optimizer=adamw", "task.mixup=0.4"],
    "toast-lite": [
        "training.optimizer=sgd",
        "training.accumulate=2",
        "training.save_every=1",
        "training.sampler=balanced",
    ],
    "lora": ["training.optimizer=adamw", "method.dropout=0.3", "training.save_every=2", "training.ema=0.9"],
}
STEP = 8
"""Six optimizer steps make an epoch, three with `accumulate=2`: this one is in the middle of one either way."""


def random_step(method: str) -> int:
    """A step of the first five epochs, drawn by the method's name: what fails can be repeated."""
    return random.Random(method).randint(1, 15 if "training.accumulate=2" in METHODS[method] else 30)


def stopped(out: Path, words: list[str], by: signal.Signals, step: int = STEP) -> Said:
    """Start a run in a process of its own and send it a signal a little after a step."""
    command = begin(out.parent / "said", *words, "--output-dir", out)
    metrics = out / "metrics.jsonl"
    until = time.monotonic() + 120
    while f'"step", "step": {step},' not in (metrics.read_text() if metrics.is_file() else ""):
        assert command.ended(0) is None and time.monotonic() < until
        time.sleep(0.005)
    assert command.process.pid is not None
    os.kill(command.process.pid, by)
    code = command.end()
    assert not (out / "results.json").exists()
    return Said(code, command.out, command.err)


def metrics(run: Path) -> list[str]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.get("train", {}).pop("seconds", None)
        line.pop("images_per_second", None)
    return [json.dumps(line) for line in lines]


def same_weights(ours: Path, theirs: Path) -> None:
    mine, other = load_file(ours), load_file(theirs)
    assert mine.keys() == other.keys()
    assert all(torch.equal(tensor, other[key]) for key, tensor in mine.items()), ours


def same_runs(ours: Path, theirs: Path) -> None:
    for name in ("checkpoints/last/model", "checkpoints/best/model", "adapter/adapter_model"):
        same_weights(ours / f"{name}.safetensors", theirs / f"{name}.safetensors")
    assert metrics(ours) == metrics(theirs)


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=pytest.mark.slow if name == "toast" else []) for name in METHODS]
)
def test_a_killed_run_goes_on_to_the_very_weights_of_an_uninterrupted_one(here: Path, method: str) -> None:
    words = ["tune", "--method", method, "--device", "cpu", *SMALL, *METHODS[method]]
    whole = toast_in_new_process(*words, "--output-dir", here / "whole")
    assert whole.code == 0, whole.err
    stopped(here / "cut", words, signal.SIGKILL, random_step(method))
    resumed = toast_in_new_process("tune", "--resume", here / "cut")
    assert resumed.code == 0, resumed.err
    assert "Resuming after epoch" in resumed.err
    same_runs(here / "cut", here / "whole")


@pytest.mark.parametrize("by", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_run_asked_to_stop_keeps_its_last_step_and_goes_on_from_there(here: Path, by: signal.Signals) -> None:
    words = ["tune", "--method", "lora", "--device", "cpu", *SMALL, "training.workers=1", "method.dropout=0.3"]
    assert toast_in_new_process(*words, "--output-dir", here / "whole").code == 0
    said = stopped(here / "cut", words, by)
    assert said.code == 130, said.err
    assert "Traceback" not in said.err
    assert f"toast tune --resume {here / 'cut'}" in said.err.replace("\n", "")
    state = json.loads((here / "cut" / "checkpoints" / "last" / "state.json").read_text())
    assert state["at"]["steps"] >= STEP and state["at"]["batches"] > 0
    resumed = toast_in_new_process("tune", "--resume", here / "cut")
    assert resumed.code == 0, resumed.err
    assert "more batches" in resumed.err
    same_runs(here / "cut", here / "whole")


def test_pretuning_goes_on_as_well(here: Path) -> None:
    words = ["pretune", "--device", "cpu", *SMALL, "training.accumulate=1"]
    assert toast_in_new_process(*words, "--output-dir", here / "whole").code == 0
    assert stopped(here / "cut", words, by=signal.SIGTERM).code == 130
    toast("tune", "--resume", here / "cut").fails(2, error="recipe.for-pretuning")
    assert toast_in_new_process("pretune", "--resume", here / "cut").code == 0
    same_weights(*(here / run / "artifact" / "feedback.safetensors" for run in ("cut", "whole")))
    assert metrics(here / "cut") == metrics(here / "whole")


def test_a_damaged_checkpoint_is_said_and_the_one_before_it_taken(here: Path, linear_run: Path) -> None:
    for file in ("model.safetensors", "training.safetensors", "state.json"):
        cut = shutil.copytree(linear_run, here / file)
        (cut / "results.json").unlink()
        damaged = cut / "checkpoints" / "last" / file
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 1
        damaged.write_bytes(content)
        resumed = toast("tune", "--resume", cut)
        assert resumed.code == 0, resumed.err
        assert "is damaged; resuming from the checkpoint before it" in " ".join(resumed.err.split())
        assert "Resuming after epoch 1 of 2." in resumed.err
        same_runs(cut, linear_run)


def test_only_what_was_interrupted_can_be_resumed(here: Path, linear_run: Path) -> None:
    toast("tune", "--resume", here / "none").fails(2, error="run.not-a-run-folder")
    shutil.copytree(linear_run, here / "run")
    toast("tune", "--resume", here / "run").fails(2, error="run.already-finished")
    (here / "run" / "results.json").unlink()
    for other in (["training.lr=0.1"], ["--seed", "0"], ["--dry-run"], ["--recipe", "demo/toast"]):
        for command in ("tune", "pretune"):
            toast(command, "--resume", here / "run", *other).fails(2, "--device", error="resume.conflicting-options")
    toast("pretune", "--resume", here / "run", "--least-squares").fails(
        2, "--device", error="resume.conflicting-options"
    )


def test_a_run_that_finished_no_epoch_begins_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toast_cli.training import tune

    def stops(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(tune.TrainingLoop, "fit", stops)
        said = toast("tune", "--output-dir", here / "run", *SMALL)
        assert said.code == 130 and f"toast tune --resume {here / 'run'}" in said.err.replace("\n", "")
    assert toast("tune", "--resume", here / "run").code == 0
