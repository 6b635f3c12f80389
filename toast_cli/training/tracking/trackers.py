"""The trackers of a run: they receive numbers and pictures, and a failing one never ends the run."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.utils import LoggerType

from toast_cli.storage.checksums import add_checksum, read_checksummed_json
from toast_cli.training.reporter import Reporter
from toast_cli.training.tracking.libraries import TrackedRun, get_library, make_tracker_error
from toast_cli.utils.files import write_json
from toast_cli.utils.names import escape_markdown

if TYPE_CHECKING:
    from PIL.Image import Image

IDS_FILE = "trackers.json"
"""File of a run folder with the id of the run in each tracker, with which a resumed run continues there."""


class Trackers:
    """The trackers of a run that still work, by name. Only the first process has any."""

    def __init__(self, reporter: Reporter) -> None:
        self.step = 0
        """The newest step of the run."""
        self._reporter = reporter
        self._working: dict[str, Any] = {}

    def __bool__(self) -> bool:
        return bool(self._working)

    def start(
        self, names: Sequence[str], accelerator: Accelerator, folder: Path, recipe: Mapping[str, Any], step: int
    ) -> None:
        """Start the trackers of a run, or those of a run that resumes after a `step`.

        Args:
            names: The names of the trackers.
            accelerator: The accelerator of the run.
            folder: The run folder.
            recipe: The recipe, which the trackers show as the configuration.
            step: The number of steps that an interrupted run had taken; 0 for a new run.

        Raises:
            ToastError: a tracker cannot be started.
        """
        self.step = step
        ids = read_checksummed_json(folder / IDS_FILE) if step and (folder / IDS_FILE).is_file() else {}
        for name in dict.fromkeys(names):
            run = TrackedRun(folder, step, ids.get(name))
            try:
                with redirect_stdout(sys.stderr):  # stdout is for results
                    self._working[name] = _start_tracker(name, accelerator, run, dict(_flatten(recipe, ".")))
            except Exception as error:  # each library has its own
                raise make_tracker_error(name, error, "resume the run") from error
            if (get_id := get_library(name).get_id) is not None:
                ids[name] = get_id(self._working[name])
        if ids:
            write_json(folder / IDS_FILE, add_checksum({name: ids[name] for name in ids if name in names}))

    def log(self, line: Mapping[str, Any], step: int | None = None) -> None:
        """Send the numbers of a line to every tracker, at a step or at the newest one."""
        self.step = step or self.step
        numbers = {
            re.sub(r"[^\w.\- :/]", "_", name): value  # what MLflow takes
            for name, value in _flatten(line, "/")
            if isinstance(value, int | float) and not isinstance(value, bool) and name != "step"
        }
        for name, tracker in list(self._working.items()):
            with self._drop_if_failing(name):
                tracker.log(numbers, step=self.step)

    def log_pictures(self, draw: Callable[[], Mapping[str, Image]]) -> None:
        """Draw pictures and send them to every tracker. A picture that cannot be drawn is reported."""
        takers = [(name, log) for name in self._working if (log := get_library(name).log_picture) is not None]
        if not takers:
            return
        try:
            pictures = draw()
        except Exception as error:  # a picture is not worth a run
            self._reporter.report_message(f"No picture for the trackers: {type(error).__name__}: {error}")
            return
        for name, log_picture in takers:
            with self._drop_if_failing(name):
                for title, picture in pictures.items():
                    log_picture(self._working[name], title, picture, self.step)

    def finish(self) -> None:
        """End the run in every tracker."""
        for name, tracker in list(self._working.items()):
            with self._drop_if_failing(name):
                get_library(name).finish(tracker)
        self._working.clear()

    @contextmanager
    def _drop_if_failing(self, name: str) -> Iterator[None]:
        """Stop using a tracker that raises any error, and report it."""
        try:
            with redirect_stdout(sys.stderr):
                yield
        except Exception as error:  # each library has its own
            del self._working[name]
            self._reporter.report_message(
                f"Warning: the tracker '{name}' failed and gets nothing more of this run, which goes on. "
                f"metrics.jsonl has all numbers. ({type(error).__name__}: {error})"
            )


def _start_tracker(name: str, accelerator: Accelerator, run: TrackedRun, recipe: dict[str, Any]) -> Any:
    """Return a started tracker. A new run gets the recipe: TensorBoard as a text, others as their configuration."""
    library, shows_text = get_library(name), name == "tensorboard"
    accelerator.project_configuration.set_directories(str(run.folder))
    accelerator.log_with, accelerator.trackers = [LoggerType(name)], []
    config = None if run.step or shows_text else recipe
    accelerator.init_trackers(library.project(), config, {name: library.make_options(run)})
    (tracker,) = accelerator.trackers
    if shows_text and not run.step:
        rows = "\n".join(f"| {field} | {escape_markdown(str(value))} |" for field, value in recipe.items())
        tracker.log({"recipe": f"| field | value |\n|---|---|\n{rows}"}, step=0)
    return tracker


def _flatten(values: Mapping[str, Any], separator: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the plain values of nested mappings by their joined keys; lists as texts."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, separator, f"{prefix}{name}{separator}")
        else:
            yield prefix + name, str(value) if isinstance(value, list | tuple) else value
