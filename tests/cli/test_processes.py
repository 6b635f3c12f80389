"""Several processes share a run's batches and come to what one process comes to."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import MakePictures, Said, toast, toast_in_new_process
from tests.forks import begin_two, free_port
from tests.language import instructions, make_model, write_json

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
UNEVEN = [
    "backbone=vit_demo_3",
    "training.validate_every=1",
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
    """Run `toast` in two processes that work together, as a user does: imports, launcher and all."""
    port = ["--main_process_port", str(free_port())] if launcher is ACCELERATE else []
    end = ["--"] if launcher is TORCHRUN else []  # torchrun takes --run for an option of its own
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *port, "-m", "toast_cli", *end, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_LOG_LEVEL": "ERROR"},
        timeout=150,
    )
    return Said(done.returncode, done.stdout, done.stderr)


def two_forks(*arguments: str | Path) -> Said:
    """The same without a launcher, and with everything imported; what the first of the two says."""
    with tempfile.TemporaryDirectory() as folder:
        first, second = begin_two(Path(folder) / "said", *arguments)
        code = first.end()
        assert second.end() == code, first.err + second.err
        return Said(code, first.out, first.err)


def results(run: Path) -> dict[str, Any]:
    kept = json.loads((run / "results.json").read_text())
    return {name: value for name, value in kept.items() if name not in ("seconds", "sha256")}


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


def same_answers(ours: Path, theirs: Path) -> None:
    """Every test image has a row with the same file, label and choice, and the classes have the same counts."""
    mine, others = (list(csv.DictReader((run / "predictions.csv").open())) for run in (ours, theirs))
    assert len(mine) == 17
    for row, other in zip(mine, others, strict=True):
        assert float(row.pop("probability")) == pytest.approx(float(other.pop("probability")), abs=1e-4)
        assert row == other
    assert (ours / "confusion.csv").read_text() == (theirs / "confusion.csv").read_text()


@pytest.mark.parametrize("launcher", [ACCELERATE, pytest.param(TORCHRUN, marks=pytest.mark.slow)])
def test_two_processes_tune_as_one_does_and_speak_as_one(here: Path, launcher: list[str]) -> None:
    balanced = ["training.sampler=balanced", "task.class_weights=balanced", "task.loss=focal"]
    words = ["--dataset", "demo", "--method", "toast-lite", *UNEVEN, *balanced]
    alone = toast_in_new_process("tune", "--output-dir", here / "one", *words)
    assert alone.code == 0, alone.err
    together = two_processes(launcher, "tune", "--output-dir", here / "two", *words, "training.trackers=tensorboard")
    assert together.code == 0, together.err
    same_run(here / "two", here / "one", "adapter/adapter_model.safetensors")
    assert together.out.count("│ accuracy, test") == 1
    assert together.err.count("epoch   2/2") == 1
    assert len(list((here / "two" / "tensorboard").iterdir())) == 1 and (here / "two" / "curves.png").is_file()
    assert len((here / "two" / "metrics.jsonl").read_text().splitlines()) == 3
    assert json.loads((here / "two" / "environment.json").read_text())["processes"] == 2
    same_answers(here / "two", here / "one")

    (here / "two" / "results.json").unlink()
    toast("tune", "--resume", here / "two").fails(2, "2 processes", error="resume.wrong-process-count")
    resumed = two_forks("tune", "--resume", here / "two")
    assert resumed.code == 0, resumed.err
    assert "Resuming after epoch 2 of 2" in resumed.err
    same_run(here / "two", here / "one", "adapter/adapter_model.safetensors")


def test_two_processes_weigh_every_learned_token_of_accumulated_batches_alike(here: Path) -> None:
    entries = [{"instruction": "Say yes.", "input": "", "output": "yes " * (1 + 7 * n % 40)} for n in range(31)]
    model, texts = make_model(here / "model"), write_json(here / "texts.json", entries)
    words = ["--backbone", f"llama:{model}", "--dataset", f"alpaca:{texts}", "--method", "full"]
    short = ["dataset.val_fraction=0.3", "training.batch_size=3", "training.accumulate=3"]
    plain = ["training.epochs=2", "training.optimizer=sgd", "training.lr=0.1", "--device", "cpu"]
    alone = toast("tune", "--output-dir", here / "one", *words, *short, *plain)
    assert alone.code == 0, alone.err
    together = two_forks("tune", "--output-dir", here / "two", *words, *short, *plain)
    assert together.code == 0, together.err
    same_run(here / "two", here / "one", "adapter/adapter_model.safetensors")


@pytest.mark.slow
def test_two_processes_pretune_as_one_does(here: Path) -> None:
    words = ["--backbone", "vit_demo_3", "--dataset", "demo", "pretuning.target=first-pass", *UNEVEN]
    alone = toast("pretune", "--output-dir", here / "one", *words)
    assert alone.code == 0, alone.err
    together = two_processes(TORCHRUN, "pretune", "--output-dir", here / "two", *words)
    assert together.code == 0, together.err
    same_run(here / "two", here / "one", "artifact/feedback.safetensors")


@pytest.mark.slow
def test_an_error_that_one_process_meets_is_said_and_stops_all(here: Path, pictures: MakePictures) -> None:
    root = pictures(cat=12, dog=12)
    for path in (root / "dog").iterdir():
        if path.stem != "0":
            path.write_bytes(b"no image")
    said = two_processes(TORCHRUN, "tune", "--backbone", "vit_demo_3", "--dataset", f"folder:{root}", *UNEVEN[6:])
    assert said.code != 0
    assert "Error:" in said.err and ".png" in said.err


@pytest.mark.slow
def test_processes_do_not_run_into_each_others_folder(here: Path) -> None:
    (here / "run").mkdir()
    (here / "run" / "recipe.yaml").write_text("mine")
    said = two_processes(TORCHRUN, "tune", "--output-dir", here / "run", *UNEVEN)
    assert said.code != 0
    assert said.err.count("The output folder") == 1
    assert (here / "run" / "recipe.yaml").read_text() == "mine"


@pytest.mark.parametrize("launcher", [None, pytest.param(TORCHRUN, marks=pytest.mark.slow)])
def test_two_processes_write_the_table_that_one_writes(
    here: Path, toast_run: Path, pictures: MakePictures, launcher: list[str] | None
) -> None:
    folder = pictures(cat=7, dog=4)
    (folder / "cat" / "0.png").write_bytes(b"no image")
    (folder / "dog" / "4.png").write_bytes(b"no image")  # alone in the last batch, which one process takes
    words = ["predict", folder, "--run", toast_run, "--batch-size", "11", "--device", "cpu", "--out"]
    assert toast(*words, here / "one.csv").code == 0
    two = two_processes(launcher, *words, here / "two.csv") if launcher else two_forks(*words, here / "two.csv")
    assert two.code == 0, two.err
    assert (here / "two.csv").read_text() == (here / "one.csv").read_text()
    assert two.err.count("10 of 12 images labelled") == 1
    again = two_forks(*words, here / "two.csv", "--resume")
    assert again.code == 0 and (here / "two.csv").read_text() == (here / "one.csv").read_text()
    words = ["predict", folder, "--run", toast_run, "--batch-size", "11", "--device", "cpu", "--features"]
    assert toast(*words, here / "one.safetensors").code == 0
    assert two_forks(*words, here / "two.safetensors").code == 0
    ours, theirs = (load_file(here / f"{which}.safetensors") for which in ("two", "one"))
    assert torch.equal(ours["paths"], theirs["paths"])
    torch.testing.assert_close(ours["features"], theirs["features"], rtol=1e-4, atol=1e-5)
    failed = two_forks("predict", here / "gone", "--run", toast_run)
    assert failed.code == 2 and failed.err.count("Error:") == 1


def test_two_processes_divide_prompts_and_write_one_table(here: Path, text_run: Path) -> None:
    prompts = write_json(here / "p.json", ["Hi", "Say yes.", {"prompt": ""}, "Good morning", "Ü?"])  # type: ignore[list-item]
    words = ["predict", prompts, "--run", text_run, "--batch-size", "2", "--max-new-tokens", "5", "--out"]
    assert toast(*words, here / "one.csv").code == 0
    two = two_forks(*words, here / "two.csv")
    assert two.code == 0, two.err
    assert (here / "two.csv").read_text() == (here / "one.csv").read_text()
    assert two.err.count("4 of 5 prompts answered, 1 could not be answered") == 1


SHARDED = {
    "toast-lite": ["--method", "toast-lite", "training.checkpoint_gradients=true", "training.ema=0.5"],
    "full": pytest.param(["--method", "full"], marks=pytest.mark.slow),
    "lora": pytest.param(["--method", "lora"], marks=pytest.mark.slow),
    "vpt": pytest.param(["--method", "vpt"], marks=pytest.mark.slow),
}


@pytest.mark.parametrize("method", SHARDED.values(), ids=SHARDED)
def test_a_model_divided_among_processes_is_trained_and_kept_as_a_whole_one(here: Path, method: list[str]) -> None:
    words = ["tune", "--dataset", "demo", *method, *UNEVEN, "training.clip_grad=1"]
    assert toast(*words, "--output-dir", here / "one").code == 0
    together = two_forks(*words, "--output-dir", here / "two", "training.shard=true")
    assert together.code == 0, together.err
    for tensors in ("adapter/adapter_model", "checkpoints/last/model"):
        same_run(here / "two", here / "one", f"{tensors}.safetensors")

    assert "accuracy, test" in toast("eval", "--run", here / "two").out


@pytest.mark.slow
def test_a_divided_run_goes_on_where_it_was(here: Path) -> None:
    words = ["tune", "--dataset", "demo", "--method", "toast", *UNEVEN, "training.optimizer=adamw", "training.lr=0.001"]
    for run in ("whole", "cut"):
        done = two_processes(
            TORCHRUN, *words, "--output-dir", here / run, "training.shard=true", "training.save_every=7"
        )
        assert done.code == 0, done.err
    checkpoints = here / "cut" / "checkpoints"
    shutil.rmtree(checkpoints / "last")
    assert json.loads((checkpoints / ".last.old" / "state.json").read_text())["at"]["steps"] == 7
    (here / "cut" / "results.json").unlink()
    resumed = two_processes(TORCHRUN, "tune", "--resume", here / "cut")
    assert resumed.code == 0, resumed.err
    same_run(here / "cut", here / "whole", "checkpoints/last/training.safetensors")
    same_run(here / "cut", here / "whole", "adapter/adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["labels", "first-pass"])
def test_pretuning_divided_among_processes_comes_to_the_same(here: Path, target: str) -> None:
    words = [
        "--backbone",
        "vit_demo_3",
        "--dataset",
        "demo",
        f"pretuning.target={target}",
        "pretuning.passes=both",
        *UNEVEN,
    ]
    assert toast("pretune", "--output-dir", here / "one", *words).code == 0
    together = two_processes(TORCHRUN, "pretune", "--output-dir", here / "two", *words, "training.shard=true")
    assert together.code == 0, together.err
    same_run(here / "two", here / "one", "artifact/feedback.safetensors")


@pytest.mark.slow
def test_a_language_model_with_tied_weights_is_divided_too(here: Path) -> None:
    model, texts = make_model(here / "model"), write_json(here / "texts.json", instructions(31))
    words = [
        "tune",
        "--backbone",
        f"llama:{model}",
        "--dataset",
        f"alpaca:{texts}",
        "--method",
        "full",
        "--device",
        "cpu",
    ]
    short = ["training.batch_size=4", "training.accumulate=2", "training.epochs=2", "training.optimizer=momentum"]
    rate = ["training.lr=0.1", "dataset.val_fraction=0.3", "training.checkpoint_gradients=true"]
    assert toast(*words, *short, *rate, "--output-dir", here / "one").code == 0
    together = two_processes(TORCHRUN, *words, *short, *rate, "--output-dir", here / "two", "training.shard=true")
    assert together.code == 0, together.err
    same_run(here / "two", here / "one", "adapter/adapter_model.safetensors")


def test_a_model_is_divided_among_several_processes_only(here: Path) -> None:
    toast("tune", "--output-dir", here / "run", *UNEVEN, "training.shard=true").fails(
        2, "torchrun", error="training.single-process"
    )
    assert not (here / "run").exists()


PROGRAM = """
import os, sys
import toast_cli
from tests.layouts import photograph

pairs = [(photograph(number), "cat" if number % 2 else "dog") for number in range(30)]
heard = []
done = toast_cli.tune(
    "vit_demo_3", pairs, "linear", device="cpu", output_dir=sys.argv[1],
    overrides={"training.epochs": 4, "training.batch_size": 8},
    on_step=lambda info: info.step == 4 and os.environ["RANK"] == "1" and info.stop(),
    on_epoch=lambda info: heard.append((info.epoch, info.step)),
)
assert heard == [(1, 3), (2, 4)], heard
first = toast_cli.evaluate(done.run, pairs, device="cpu")["test"]
assert first["images"] == 6 and abs(first["loss"] - done.results["test"]["loss"]) < 1e-6
print("done", done.run, done.results["test"]["images"])
"""


def test_a_program_tunes_in_two_processes_and_one_of_them_stops_both(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", *TORCHRUN, str(program), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"done {tmp_path / 'run'} 6") == 2
    assert results(tmp_path / "run")["test"]["images"] == 6


def test_two_processes_choose_the_same_settings(here: Path) -> None:
    words = ["tune", "--dataset", "demo", "--method", "linear", *UNEVEN, "dataset.train_images=9"]
    words = [word for word in words if not word.startswith(("training.batch_size=", "training.lr="))]
    said = two_forks(*words, "--lr", "auto", "--batch-size", "auto", "--output-dir", here / "run")
    assert said.code == 0, said.err
    chosen = json.loads((here / "run" / "environment.json").read_text())["automatic"]
    assert chosen["workers"] == 0 and chosen["batch_size"] >= 2 and 1e-6 < chosen["lr"] <= 1
    assert said.err.count("by a range test") == 1
    again = two_forks("tune", "--recipe", here / "run" / "recipe.yaml", "--output-dir", here / "again")
    assert again.code == 0, again.err
    same_run(here / "again", here / "run", "adapter/adapter_model.safetensors")
