"""`toast_cli.tune` and `evaluate`: data, callbacks, a stop, and resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import toast_cli
from tests.cli.conftest import toast
from tests.layouts import photograph
from toast_cli.utils.errors import UsageError

Pairs = list[tuple[Any, str]]


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return [(photograph(number), "cat" if number % 2 else "dog") for number in range(30)]


def tuned(run: Path, data: Any, *, training: dict[str, Any] | None = None, **arguments: Any) -> toast_cli.TuneResult:
    """A tiny run: of 30 images 22 are for training, in three steps an epoch."""
    settings = {"epochs": 3, "batch_size": 8, "lr": 0.01, "warmup_epochs": 0, **(training or {})}
    overrides = {f"training.{name}": value for name, value in settings.items()}
    arguments = {"backbone": "vit_demo_3", "method": "linear", "device": "cpu", "overrides": overrides, **arguments}
    return toast_cli.tune(dataset=data, output_dir=run, **arguments)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def test_a_run_of_given_data_is_a_run_like_any_other(tmp_path: Path, pairs: Pairs, capsys: Any) -> None:
    done = tuned(tmp_path / "run", pairs)
    assert capsys.readouterr() == ("", "")
    assert json.loads((done.run / "results.json").read_text())["test"] == done.results["test"]
    assert done.results["samples"] == {"train": 22, "val": 2, "test": 6} and done.model.classes == ("cat", "dog")
    measured = toast_cli.evaluate(done.run, pairs, device="cpu")["test"]
    assert measured == done.results["test"]
    whole = toast_cli.evaluate(done.run, {"test": pairs}, device="cpu")["test"]
    right = sum(done.model.predict(image)[0].label == label for image, label in pairs)
    assert whole["images"] == 30 and whole["accuracy"] == pytest.approx(right / 30)
    some = [(image, label) for image, label in pairs if label == "dog"][:3]
    assert toast_cli.evaluate(done.run, {"test": some}, device="cpu")["test"]["images"] == 3


def test_the_labels_choose_the_task(tmp_path: Path, pairs: Pairs) -> None:
    several = [(image, [label, "pet"] if number % 3 else []) for number, (image, label) in enumerate(pairs)]
    done = tuned(tmp_path / "labels", several, training={"epochs": 1})
    assert done.model.classes == ("cat", "dog", "pet")
    assert toast_cli.evaluate(done.run, several, device="cpu")["test"] == done.results["test"]
    assert toast_cli.evaluate(done.run, {"test": several[:3]}, device="cpu")["test"]["images"] == 3
    with pytest.raises(UsageError) as refused:
        toast_cli.evaluate(done.run, {"test": pairs}, device="cpu")
    assert refused.value.code == "task.unfit-data"
    ages = [(image, number / 2) for number, (image, _) in enumerate(pairs)]
    done = tuned(tmp_path / "number", ages, training={"epochs": 1}, classes=["age"])
    assert done.model.classes == ("age",) and "mae" in done.results["test"]
    assert toast_cli.evaluate(done.run, ages, device="cpu")["test"] == done.results["test"]


@pytest.mark.e2e
def test_commands_take_what_was_tuned_and_saved_in_python(tmp_path: Path, pairs: Pairs) -> None:
    done = tuned(tmp_path / "run", pairs)
    said = toast("eval", "--run", done.run)
    assert said.code == 2 and "toast_cli.evaluate(RUN, DATA)" in said.err
    done.model.save(tmp_path / "saved")
    for number, (image, label) in enumerate(pairs):
        (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "photos" / label / f"{number}.png")
    named = ["--dataset", f"folder:{tmp_path / 'photos'}", "--split", "train", "--device", "cpu"]
    said = toast("eval", "--run", tmp_path / "saved", *named, "--json")
    assert said.code == 0 and json.loads(said.out)["train"]["images"] == 22, said.err
    said = toast("export", "--run", tmp_path / "saved", "--out", tmp_path / "model.safetensors")
    assert said.code == 0, said.err
    assert toast_cli.load(tmp_path / "model.safetensors").predict(pairs[0][0]) == done.model.predict(pairs[0][0])


def test_callbacks_hear_of_every_step_and_every_epoch(tmp_path: Path, pairs: Pairs, capsys: Any) -> None:
    steps: list[toast_cli.StepInfo] = []
    epochs: list[toast_cli.EpochInfo] = []
    log = {"log_every": 1}
    done = tuned(tmp_path / "run", pairs, training=log, on_step=steps.append, on_epoch=epochs.append, progress=True)
    lines = [json.loads(line) for line in (done.run / "metrics.jsonl").read_text().splitlines()]
    logged = [(line["step"], line["epoch"], line["loss"], line["lr"]) for line in lines if line["kind"] == "step"]
    assert [(info.step, info.epoch, info.loss, info.lr) for info in steps] == logged and len(logged) == 9
    assert {(info.steps, info.epochs) for info in steps} == {(9, 3)} and steps[0].run == done.run
    ended = [(line["epoch"], line["train"], line["validation"], line["best"]) for line in lines if "best" in line]
    assert [(info.epoch, info.train, info.validation, info.best) for info in epochs] == ended and len(ended) == 3
    told = capsys.readouterr().err
    assert "Run folder" in told and "epoch 3/3  train accuracy" in told


def test_a_stop_ends_training_and_the_rest_is_as_usual(tmp_path: Path, pairs: Pairs) -> None:
    done = tuned(tmp_path / "step", pairs, on_step=lambda info: info.step == 4 and info.stop())
    lines = [json.loads(line) for line in (done.run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"], "validation" in line) for line in lines if line["kind"] == "epoch"] == [
        (1, 3, True),
        (2, 4, True),
    ]
    assert done.results["test"]["images"] == 6 and done.results["selected_epoch"] in (1, 2)
    heard: list[int] = []

    def on_epoch(info: toast_cli.EpochInfo) -> None:
        heard.append(info.epoch)
        info.stop()

    done = tuned(tmp_path / "epoch", pairs, training={"validate_every": 3}, on_epoch=on_epoch)
    assert heard == [1] and done.results["selected_epoch"] == 1 and done.results["validation"]["images"] == 2


def test_an_exception_in_a_callback_leaves_a_run_that_resumes_exactly(tmp_path: Path, pairs: Pairs) -> None:
    steps: list[int] = []

    def on_step(info: toast_cli.StepInfo) -> None:
        steps.append(info.step)
        if info.step == 4:
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine") as raised:
        tuned(tmp_path / "run", pairs, on_step=on_step)
    assert str(tmp_path / "run") in raised.value.__notes__[0]
    with pytest.raises(UsageError) as refused:
        toast_cli.tune(resume=tmp_path / "run")
    assert refused.value.code == "data.given-in-python"
    other = [(image, "dog" if label == "cat" else "cat") for image, label in pairs]
    with pytest.raises(toast_cli.utils.errors.ToastError) as changed:
        toast_cli.tune(dataset=other, resume=tmp_path / "run")
    assert changed.value.code == "resume.changed-data"
    done = toast_cli.tune(dataset=pairs, resume=tmp_path / "run", on_step=lambda info: steps.append(info.step))
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    tuned(tmp_path / "whole", pairs)
    whole, again = weights(tmp_path / "whole"), weights(done.run)
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"backbone": None}, "recipe.missing-backbone"),
        ({"backbone": torch.nn.Linear(1, 1)}, "backbone.not-a-name"),
        ({"overrides": {"training.lr": "fast"}}, "recipe.wrong-type"),
        ({"overrides": {"dataset.path": "x"}}, "recipe.unknown-field"),
        ({"dataset": "demo", "classes": 3}, "task.unneeded-classes"),
        ({"classes": 0}, "task.invalid-classes"),
        ({"resume": "runs/none"}, "resume.conflicting-options"),
        ({"dataset": [("a.jpg", 0)]}, "data.too-few-classes"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_written(
    tmp_path: Path, pairs: Pairs, arguments: dict[str, Any], code: str
) -> None:
    with pytest.raises(toast_cli.utils.errors.ToastError) as refused:
        tuned(tmp_path / "run", **{"data": arguments.pop("dataset", pairs), **arguments})
    assert refused.value.code == code and not (tmp_path / "run").exists()


def test_a_program_may_change_the_precision_between_two_runs(tmp_path: Path, pairs: Pairs) -> None:
    for precision in ("bf16", "fp32"):
        done = tuned(tmp_path / precision, pairs, training={"epochs": 1}, precision=precision)
        assert json.loads((done.run / "environment.json").read_text())["precision"].replace("no", "fp32") == precision
