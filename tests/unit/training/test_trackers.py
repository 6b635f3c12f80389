"""Trackers show what metrics.jsonl has, and pictures; a resumed run goes on in them; their failure ends no run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import TensorBoardTracker

from tests.unit.training.test_protocol import SIZES, recipe_of
from toast_cli.evaluation.training_figures import CURVES_FIGURE, TrainingFigures
from toast_cli.recipe.lookup import resolve_recipe
from toast_cli.recipe.parse import build_recipe
from toast_cli.recipe.safe_yaml import to_yaml
from toast_cli.storage.run_folder import RunFolder
from toast_cli.training.reporter import Reporter
from toast_cli.training.tracking.trackers import IDS_FILE
from toast_cli.training.tune import tune_model
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.hashing import add_checksum_line


class Listener(Reporter):
    """A reporter that keeps the messages, and interrupts the run after a step."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.said: list[str] = []
        self.stop_after = stop_after

    def report_message(self, text: str) -> None:
        self.said.append(text)

    def report_step(self, step: int, *_: Any) -> None:
        if step == self.stop_after:
            raise KeyboardInterrupt


def tune(path: Path, *names: str, resume: bool = False, stop_after: int | None = None, **training: Any) -> Listener:
    """Tune three epochs of four steps with trackers."""
    recipe = recipe_of(training={"trackers": list(names), "log_every": 1, **training})
    reporter = Listener(stop_after)
    tune_model(recipe, path, reporter, resume=resume, figures=TrainingFigures())
    return reporter


def tune_with_interruption(path: Path, name: str) -> None:
    """Tune, stop in the second epoch, and resume after the first: two steps are made twice."""
    with pytest.raises(KeyboardInterrupt):
        tune(path, name, stop_after=6)
    assert (path / CURVES_FIGURE).is_file() and not (path / "results.json").exists()
    tune(path, name, resume=True)


def lines_of(path: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in RunFolder(path).metrics.read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


PICTURES = {"first_batch", "worst_mistakes", "attention"}


def test_tensorboard_has_the_numbers_the_recipe_and_the_pictures_of_an_interrupted_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tune_with_interruption(tmp_path / "run", "tensorboard")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    steps, epochs = lines_of(tmp_path / "run", "step"), lines_of(tmp_path / "run", "epoch")
    for name in ("loss", "lr", "grad_norm", "images_per_second"):
        kept = {event.step: event.value for event in events.Scalars(name)}
        assert name == "lr" or len(kept) == len(events.Scalars(name))  # epochs have the rate, too
        assert kept == {line["step"]: pytest.approx(line[name]) for line in (*steps, *epochs) if name in line}
    for split in ("train", "validation"):
        written = [event.value for event in events.Scalars(f"{split}/loss")]
        assert written == pytest.approx([line[split]["loss"] for line in epochs])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [event.value for event in events.Scalars("test/accuracy")] == pytest.approx([results["test"]["accuracy"]])
    assert set(events.Tags()["images"]) == PICTURES
    assert [len(events.Images(name)) for name in PICTURES] == [1, 1, 1]
    (text,) = events.Tensors("recipe/text_summary")
    assert "| training.batch_size | 5 |" in text.tensor_proto.string_val[0].decode()


def read_wandb(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], int]:
    # The file of an offline run is a format of its own, so what the library is given is compared.
    pictures = list((path / "wandb").glob("offline-run-*/files/media/images/*.png"))
    runs = {folder.name.rpartition("-")[2] for folder in (path / "wandb").glob("offline-run-*")}
    assert runs == {json.loads((path / IDS_FILE).read_text())["wandb"]}  # both parts belong to one run
    return [], len(pictures)


def read_mlflow(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], int]:
    import mlflow

    (run,) = mlflow.search_runs(experiment_names=["toast"], output_format="list")
    assert run.data.params["training.batch_size"] == "5" and run.info.status == "FINISHED"
    client = mlflow.MlflowClient()
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "grad_norm")]
    return sorted(set(steps)), len(client.list_artifacts(run.info.run_id))


def read_trackio(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], int]:
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs("toast")
    logs = SQLiteStorage.get_logs("toast", name)
    pictures = [key for log in logs for key in log if key in PICTURES]
    return sorted({log["step"] for log in logs if "grad_norm" in log}), len(pictures)


def read_swanlab(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], int]:
    return [], len(list((path / "swanlab").glob("*/media/image/*.png")))


@pytest.mark.parametrize(
    ("name", "read"),
    [("wandb", read_wandb), ("mlflow", read_mlflow), ("trackio", read_trackio), ("swanlab", read_swanlab)],
)
def test_a_resumed_run_goes_on_in_other_trackers_without_a_network(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    read: Callable[[Path, pytest.MonkeyPatch], tuple[list[int], int]],
) -> None:
    pytest.importorskip(name)
    for variable, value in {
        "WANDB_MODE": "offline",
        "SWANLAB_MODE": "offline",
        "MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.chdir(tmp_path)
    tune_with_interruption(tmp_path / "run", name)
    steps, pictures = read(tmp_path / "run", monkeypatch)
    assert steps in ([], list(range(1, 13)))
    assert pictures == len(PICTURES)
    assert capsys.readouterr().out == ""


def test_a_tracker_that_fails_is_reported_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail(self: Any, values: dict[str, Any], step: int, **_: Any) -> None:
        calls.append(step)
        if step == 3:
            raise ConnectionError("no route to host")

    monkeypatch.setattr(TensorBoardTracker, "log", fail)
    said = tune(tmp_path / "run", "tensorboard").said
    assert calls == [0, 1, 2, 3]
    assert sum("no route to host" in text and "'tensorboard' failed" in text for text in said) == 1
    assert len(lines_of(tmp_path / "run", "step")) == 12 and (tmp_path / "run" / "results.json").is_file()


def test_a_picture_that_cannot_be_drawn_costs_the_picture_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr(TrainingFigures, "draw_results", fail)
    monkeypatch.setattr(TrainingFigures, "write_curves", fail)
    said = tune(tmp_path / "run", "tensorboard", epochs=1).said
    assert sum("no ink" in text for text in said) == 2 and (tmp_path / "run" / "results.json").is_file()


def test_a_tracker_that_does_not_start_ends_the_run_before_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any) -> None:
        raise ConnectionError("not logged in")

    with monkeypatch.context() as patched, pytest.raises(ToastError) as refused:
        patched.setattr(TensorBoardTracker, "start", fail)
        tune(tmp_path / "run", "tensorboard")
    assert refused.value.code == "training.tracker-unavailable" and "not logged in" in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "code"), [("tensorbord", "training.unknown-tracker"), ("aim", "cli.missing-package")])
def test_an_unknown_or_missing_tracker_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: str
) -> None:
    monkeypatch.setattr("toast_cli.training.tracking.libraries.get_available_trackers", lambda: [])
    with pytest.raises(ToastError) as refused:
        tune(tmp_path / "run", name)
    assert refused.value.code == code and f"'{name}'" in refused.value.what
    assert ("pip install" if name == "aim" else "'tensorboard'") in str(refused.value.what_to_do)
    assert not (tmp_path / "run").exists()


def test_the_gradient_norm_is_that_of_the_step_clipped_or_not(tmp_path: Path) -> None:
    """With plain SGD the step of the weights is the rate times the gradient."""
    norms = []
    for limit in (None, 1e-3):
        rate = {"optimizer": "momentum", "momentum": 0, "lr": 0.5, "schedule": "constant"}
        path = tmp_path / str(limit)
        tune(path, max_steps=1, epochs=1, clip_grad=limit, **rate)
        norms.append(lines_of(path, "step")[0]["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-6) and norms[0] > 0.1


def test_the_earlier_spelling_still_means_tensorboard(tmp_path: Path) -> None:
    recipe = recipe_of(training={"tensorboard": True})
    assert recipe.training.trackers == ("tensorboard",)
    text = to_yaml(recipe)
    assert "tensorboard:" not in text and build_recipe(json.loads(recipe.model_dump_json()), {}, "x") == recipe
    assert recipe_of(training={"trackers": "wandb", "tensorboard": False}).training.trackers == ("wandb",)
    with pytest.raises(UsageError) as refused:
        recipe_of(training={"trackers": ["wandb"], "tensorboard": True})
    assert refused.value.code == "recipe.invalid-value"
    old = text.replace("trackers: [tensorboard]", "tensorboard: true")
    assert old != text
    for name, content, warnings in (("own", old, 1), ("recorded", add_checksum_line(old), 0)):
        (tmp_path / f"{name}.yaml").write_text(content)
        resolved = resolve_recipe(recipe=str(tmp_path / f"{name}.yaml"))
        assert resolved.recipe == recipe
        assert sum("deprecated" in message for message in resolved.messages) == warnings
    assert SIZES["train_images"] == 20  # four steps of five, which the tests above count
