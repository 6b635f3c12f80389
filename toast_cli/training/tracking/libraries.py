"""The tracking libraries: how each is installed, started and resumed, and how it takes a picture.

Accelerate wraps the libraries: it starts them and sends them numbers. It has no common way to name a run, to resume
one, or to send a picture. `LIBRARIES` adds these. A library that Accelerate knows and this table does not gets the
numbers alone, in a new run after every start.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from toast_cli.utils.errors import ToastError, UsageError, did_you_mean

if TYPE_CHECKING:
    from PIL.Image import Image

PROJECT = "toast"
"""Name of the project, or experiment, that runs are listed under."""


@dataclass(frozen=True)
class TrackedRun:
    """A run to track: its folder, and for a resumed run the step and the library's id of the run so far."""

    folder: Path
    step: int = 0
    id: str | None = None


@dataclass(frozen=True)
class TrackerLibrary:
    """A tracking library.

    Attributes:
        requirement: What pip installs.
        make_options: Makes the arguments with which the library starts a run.
        get_id: Returns the id with which the library resumes the run of a tracker; None if it has no ids.
        log_picture: Sends a picture with a name and a step to a tracker; None if it takes none.
        project: Returns the name of the project.
        finish: Ends the run of a tracker.
        log_in: Logs in to its server, which the start would otherwise do; None if it needs no account.
        offline: What a user sets to work without a server.
    """

    requirement: str
    make_options: Callable[[TrackedRun], dict[str, Any]] = lambda run: {}
    get_id: Callable[[Any], str] | None = None
    log_picture: Callable[[Any, str, Image, int], Any] | None = None
    project: Callable[[], str] = lambda: PROJECT
    finish: Callable[[Any], Any] = lambda tracker: tracker.finish()
    log_in: Callable[[], Any] | None = None
    offline: str = "its offline mode"


def _make_tensorboard_options(run: TrackedRun) -> dict[str, Any]:
    """Hide what an interrupted run wrote after its checkpoint: these steps are made again."""
    return {"purge_step": run.step + 1} if run.step else {}


def _log_in_to_wandb() -> None:
    import wandb

    if os.environ.get("WANDB_MODE", "online") == "online":
        wandb.login()


def _make_wandb_options(run: TrackedRun) -> dict[str, Any]:
    again = {} if run.id is None else {"id": run.id, "resume": "allow"}
    return {"name": run.folder.name, "dir": str(run.folder), **again}


def _make_swanlab_options(run: TrackedRun) -> dict[str, Any]:
    again = {} if run.id is None else {"id": run.id, "resume": "allow"}
    return {"name": run.folder.name, "log_dir": str(run.folder / "swanlab"), **again}


def _log_trackio_picture(tracker: Any, name: str, picture: Image, step: int) -> None:
    import trackio

    tracker.log({name: trackio.Image(picture)}, step=step)


def _finish_trackio(tracker: Any) -> None:
    """End the run, which the end of the program would otherwise do, with a message on stdout."""
    import trackio

    trackio.finish()


def _log_mlflow_picture(tracker: Any, name: str, picture: Image, step: int) -> None:
    import mlflow

    mlflow.log_image(picture, artifact_file=f"{name}.png")


def _log_picture_list(tracker: Any, name: str, picture: Image, step: int) -> None:
    tracker.log_images({name: [picture]}, step=step)


LIBRARIES = {
    "tensorboard": TrackerLibrary(
        "tensorboard>=2.18",
        _make_tensorboard_options,
        log_picture=lambda tracker, name, picture, step: tracker.tracker.add_image(
            name, np.asarray(picture), step, dataformats="HWC"
        ),
        project=lambda: "tensorboard",  # the folder of the events in the run folder
    ),
    "wandb": TrackerLibrary(
        "wandb",
        _make_wandb_options,
        get_id=lambda tracker: tracker.tracker.id,
        log_picture=_log_picture_list,
        project=lambda: os.environ.get("WANDB_PROJECT") or PROJECT,
        log_in=_log_in_to_wandb,
        offline="WANDB_MODE=offline",
    ),
    "mlflow": TrackerLibrary(
        "mlflow",
        lambda run: {"run_name": run.folder.name, "run_id": run.id},
        get_id=lambda tracker: tracker.tracker.info.run_id,
        log_picture=_log_mlflow_picture,
        offline="MLFLOW_TRACKING_URI=sqlite:///mlflow.db",
    ),
    "trackio": TrackerLibrary(
        "trackio",
        lambda run: {"name": run.id or run.folder.name, "resume": "never" if run.id is None else "allow"},
        get_id=lambda tracker: tracker.tracker.name,
        log_picture=_log_trackio_picture,
        finish=_finish_trackio,
    ),
    "swanlab": TrackerLibrary(
        "swanlab",
        _make_swanlab_options,
        get_id=lambda tracker: tracker.tracker.id,
        log_picture=_log_picture_list,
        offline="SWANLAB_MODE=offline",
    ),
    "comet_ml": TrackerLibrary("comet-ml"),
}


def get_library(name: str) -> TrackerLibrary:
    """Return a tracking library by the name that Accelerate gives it."""
    return LIBRARIES.get(name) or TrackerLibrary(name)


def check_trackers(names: Sequence[str]) -> None:
    """Check that Accelerate knows the trackers, and that they are installed.

    Raises:
        UsageError: a name is unknown.
        ToastError: a tracker is not installed.
    """
    available = [str(each) for each in get_available_trackers()]
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UsageError(
                f"Unknown tracker '{name}' (training.trackers).",
                what_to_do=did_you_mean(name, list(LOGGER_TYPE_TO_CLASS)),
                code="training.unknown-tracker",
            )
        quoted = f'"{get_library(name).requirement}"'
        if name not in available:
            raise ToastError(
                f"The tracker '{name}' is not installed (training.trackers).",
                what_to_do=f"Run pip install {quoted}, or leave it out of training.trackers.",
                code="cli.missing-package",
            )


def log_in_to_trackers(names: Sequence[str]) -> None:
    """Log in to the servers of the trackers, before work that would be lost if a login failed.

    Raises:
        ToastError: a login fails, or the tracker has no account and nobody to ask for one.
    """
    for name in names:
        if (log_in := get_library(name).log_in) is not None:
            try:
                with redirect_stdout(sys.stderr):  # stdout is for results
                    log_in()
            except Exception as error:  # each library has its own
                raise make_tracker_error(name, error, "run the command again") from error


def make_tracker_error(name: str, error: Exception, then: str) -> ToastError:
    """Return the error about a tracker that cannot be started; `then` is what to do after that is mended."""
    return ToastError(
        f"The tracker '{name}' could not be started (training.trackers).",
        f"{type(error).__name__}: {error}",
        f"Log in to its server, or set {get_library(name).offline}, and {then}.",
        code="training.tracker-unavailable",
    )
