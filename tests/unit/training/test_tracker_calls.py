"""What the tracking libraries are given, with a fake in place of each: the locked environment has none of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from accelerate import Accelerator
from PIL import Image

from tests.unit.training.test_protocol import recipe_of
from toast_cli.training.automatic.settings import choose_automatic_settings
from toast_cli.training.reporter import Reporter
from toast_cli.training.tracking.trackers import Trackers
from toast_cli.utils.errors import ToastError

PICTURE = Image.new("RGB", (4, 4))
LIBRARIES = ("wandb", "mlflow", "trackio", "swanlab")


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, MagicMock]:
    """Every library as a module that keeps its calls, and gives its runs the id `one`."""
    found = {}
    for name in LIBRARIES:
        module = found[name] = MagicMock(name=name)
        module.init.return_value.id = module.init.return_value.name = "one"
        module.start_run.return_value.info.run_id = "one"
        module.search_experiments.return_value = []
        module.utils.validation.MAX_PARAM_VAL_LENGTH = 500
        module.utils.validation.MAX_PARAMS_TAGS_PER_BATCH = 100
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("toast_cli.training.tracking.libraries.get_available_trackers", lambda: list(LIBRARIES))
    return found


def track(name: str, folder: Path, step: int = 0) -> None:
    trackers = Trackers(Reporter())
    trackers.start([name], Accelerator(cpu=True), folder, {"training": {"lr": 0.5}}, step)
    trackers.log({"loss": 1.5, "validation": {"f1@5": 2}, "best": True, "kind": "epoch"}, step + 3)
    trackers.log_pictures(lambda: {"first_batch": PICTURE})
    trackers.finish()


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_gets_the_run_its_numbers_and_pictures_and_a_resumed_run_its_id(
    name: str, fakes: dict[str, MagicMock], tmp_path: Path
) -> None:
    folder, fake = tmp_path / "pets-toast", fakes[name]
    folder.mkdir()
    track(name, folder)
    run, numbers = fake.init.return_value, {"loss": 1.5, "validation/f1_5": 2}
    if name == "mlflow":
        (started,) = fake.start_run.call_args_list
        assert started.kwargs["run_name"] == "pets-toast" and started.kwargs["run_id"] is None
        assert fake.create_experiment.call_args.kwargs["name"] == "toast"
        fake.log_params.assert_called_once_with({"training.lr": 0.5})
        assert fake.log_metrics.call_args.args[0] == numbers and fake.log_metrics.call_args.kwargs["step"] == 3
        fake.log_image.assert_called_once_with(PICTURE, artifact_file="first_batch.png")
        fake.end_run.assert_called_once()
    else:
        (started,) = fake.init.call_args_list
        assert started.kwargs["project"] == "toast" and started.kwargs["name"] == "pets-toast"
        assert "id" not in started.kwargs
        assert fake.config.update.call_args.args[0] == {"training.lr": 0.5}
        first, last = run.log.call_args_list
        assert first.args[0] == numbers and first.kwargs["step"] == last.kwargs["step"] == 3
        assert list(last.args[0]) == ["first_batch"]
        assert fake.Image.call_args.args[0] is PICTURE
        assert fake.finish.called or run.finish.called
    track(name, folder, step=3)
    again = (fake.start_run if name == "mlflow" else fake.init).call_args.kwargs
    assert again[{"mlflow": "run_id", "trackio": "name"}.get(name, "id")] == "one"
    assert name == "mlflow" or again["resume"] == "allow"


def test_a_login_that_fails_ends_the_run_before_the_search_for_settings(
    fakes: dict[str, MagicMock], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    fakes["wandb"].login.side_effect = ValueError("no API key")
    recipe = recipe_of(training={"trackers": ["wandb"], "lr": "auto"})

    def search(*_: Any) -> Any:
        raise AssertionError("searched")

    with pytest.raises(ToastError, match="no API key") as refused:
        choose_automatic_settings(recipe, search, Reporter(), None)
    assert refused.value.code == "training.tracker-unavailable" and "WANDB_MODE=offline" in refused.value.what_to_do
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(AssertionError, match="searched"):
        choose_automatic_settings(recipe, search, Reporter(), None)
