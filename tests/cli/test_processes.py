"""Several processes share a run's batches and come to what one process comes to."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import MakePictures, Said, toast, toast_in_new_process
from tests.language import make_model, write_json

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
UNEVEN = [
    "dataset.train_images=53",
    "dataset.val_images=21",
    "dataset.test_images=17",
    "training.epochs=2",
    "training.batch_size=13",
    "training.eval_batch_size=20",
    "training.warmup_epochs=0",
    "training.optimizer=sgd",
    "training.lr=0.1",
    "images.augment=crop-flip",
    "--device",
    "cpu",
]
"""Every split ends in a batch of one, which only one of two processes can have."""


def two_processes(launcher: list[str], *arguments: str | Path) -> Said:
    """Run `toast` in two processes that work together."""
    port = ["--main_process_port", str(free_port())] if launcher is ACCELERATE else []
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *port, "-m", "toast_cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_LOG_LEVEL": "ERROR"},
        timeout=150,
    )
    return Said(done.returncode, done.stdout, done.stderr)


def free_port() -> int:
    """A port that no other test's processes meet on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def results(run: Path) -> dict[str, Any]:
    kept = json.loads((run / "results.json").read_text())
    return {name: value for name, value in kept.items() if name != "seconds"}


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """A nested dictionary with lists as one of plain values."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for inner, part in items for key, leaf in flat(part, f"{name}/{inner}").items()}
    return {name: value}


def same_run(ours: Path, theirs: Path, tensors: str) -> None:
    """Metrics and weights of two runs differ by rounding alone."""
    mine, other = flat(results(ours)), flat(results(theirs))
    assert mine.keys() == other.keys()
    for name, value in mine.items():
        assert value == (pytest.approx(other[name], rel=1e-4, abs=1e-6) if isinstance(value, float) else other[name]), (
            name
        )
    weights, others = load_file(ours / tensors), load_file(theirs / tensors)
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("launcher", [TORCHRUN, pytest.param(ACCELERATE, marks=pytest.mark.slow)])
def test_two_processes_tune_as_one_does_and_speak_as_one(here: Path, launcher: list[str]) -> None:
    words = ["--dataset", "demo", "--method", "toast-lite", *UNEVEN]
    alone = toast_in_new_process("tune", "--output-dir", here / "one", *words)
    assert alone.code == 0, alone.err
    together = two_processes(launcher, "tune", "--output-dir", here / "two", *words)
    assert together.code == 0, together.err
    same_run(here / "two", here / "one", "adapter/adapter_model.safetensors")
    assert together.out.count("accuracy, test") == 1
    assert together.err.count("epoch   2/2") == 1
    assert len((here / "two" / "metrics.jsonl").read_text().splitlines()) == 3
    assert json.loads((here / "two" / "environment.json").read_text())["processes"] == 2

    (here / "two" / "results.json").unlink()
    toast("tune", "--resume", here / "two").fails(2, "begun with 2 processes and cannot go on with 1")
    resumed = two_processes(launcher, "tune", "--resume", here / "two")
    assert resumed.code == 0, resumed.err
    assert "Going on after epoch 2 of 2" in resumed.err
    same_run(here / "two", here / "one", "adapter/adapter_model.safetensors")


def test_two_processes_weigh_every_learned_token_of_accumulated_batches_alike(here: Path) -> None:
    entries = [{"instruction": "Say yes.", "input": "", "output": "yes " * (1 + 7 * n % 40)} for n in range(31)]
    model, texts = make_model(here / "model"), write_json(here / "texts.json", entries)
    words = ["--backbone", f"llama:{model}", "--dataset", f"alpaca:{texts}", "--method", "full"]
    short = ["dataset.val_fraction=0.3", "training.batch_size=3", "training.accumulate=3"]
    plain = ["training.epochs=2", "training.optimizer=sgd", "training.lr=0.1", "--device", "cpu"]
    alone = toast("tune", "--output-dir", here / "one", *words, *short, *plain)
    assert alone.code == 0, alone.err
    together = two_processes(TORCHRUN, "tune", "--output-dir", here / "two", *words, *short, *plain)
    assert together.code == 0, together.err
    same_run(here / "two", here / "one", "adapter/adapter_model.safetensors")


def test_two_processes_pretune_as_one_does(here: Path) -> None:
    words = ["--backbone", "vit_demo", "--dataset", "demo", "pretuning.target=first-pass", *UNEVEN]
    alone = toast("pretune", "--output-dir", here / "one", *words)
    assert alone.code == 0, alone.err
    together = two_processes(TORCHRUN, "pretune", "--output-dir", here / "two", *words)
    assert together.code == 0, together.err
    same_run(here / "two", here / "one", "artifact/feedback.safetensors")


def test_an_error_that_one_process_meets_is_said_and_stops_all(here: Path, pictures: MakePictures) -> None:
    root = pictures(cat=12, dog=12)
    for path in (root / "dog").iterdir():
        if path.stem != "0":
            path.write_bytes(b"no image")
    said = two_processes(TORCHRUN, "tune", "--backbone", "vit_demo", "--dataset", f"folder:{root}", *UNEVEN[4:])
    assert said.code != 0
    assert "Error:" in said.err and ".png" in said.err


def test_processes_do_not_run_into_each_others_folder(here: Path) -> None:
    (here / "run").mkdir()
    (here / "run" / "recipe.yaml").write_text("mine")
    said = two_processes(TORCHRUN, "tune", "--output-dir", here / "run", *UNEVEN)
    assert said.code != 0
    assert said.err.count("The output folder") == 1
    assert (here / "run" / "recipe.yaml").read_text() == "mine"
