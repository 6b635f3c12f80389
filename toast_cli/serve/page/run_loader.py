"""Loading of the runs in the background, after the page is shown."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from toast_cli.serve.page.page_options import PageOptions
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from toast_cli.data.base import ImageSplit
    from toast_cli.evaluation.open_run import OpenedRun

LOGGER = logging.getLogger(__name__)


@dataclass
class LoadedRuns:
    """The opened runs by name, in order, and the test images of the first one with images.

    `test` is None if there are none, for the reason in `test_error`. `errors` has a message for each run that could not
    be opened; at least one run could.
    """

    runs: dict[str, OpenedRun] = field(default_factory=dict)
    test: ImageSplit | None = None
    test_error: ToastError | None = None
    errors: list[ToastError] = field(default_factory=list)


class RunLoader:
    """A thread that opens the runs, with a sentence on what it does and the share that is done.

    Args:
        options: The runs and how to open them.
        report: Called with the message of an error, for the terminal.
    """

    def __init__(self, options: PageOptions, report: Callable[[str], object]) -> None:
        self.options = options
        self.stage, self.done = "Waiting", 0.0
        self.changed = threading.Condition()
        self._report = report
        self._loaded: LoadedRuns | None = None
        self._error: ToastError | None = None
        self._thread = threading.Thread(target=self._load, daemon=True, name="toast-app-loader")
        self._started = False

    @property
    def finished(self) -> bool:
        """Return whether the runs are loaded, or an error ended it."""
        return self._loaded is not None or self._error is not None

    def start(self) -> None:
        """Begin to load; called again, it has no effect."""
        with self.changed:
            if not self._started:
                self._started = True
                self._thread.start()

    def wait(self) -> LoadedRuns:
        """Wait for the runs and return them.

        Raises:
            ToastError: A run could not be opened.
        """
        self.start()
        with self.changed:
            self.changed.wait_for(lambda: self.finished)
        if self._error is not None:
            raise self._error
        assert self._loaded is not None
        return self._loaded

    def _enter(self, stage: str, done: float) -> None:
        with self.changed:
            self.stage, self.done = stage, done
            self.changed.notify_all()

    def _load(self) -> None:
        try:
            loaded = self._open_runs()
        except ToastError as error:  # no run could be opened, as the terminal says already
            self._fail(error)
        except Exception as error:
            LOGGER.exception("The runs could not be loaded.")
            failure = make_internal_error(error)
            self._report(str(failure))
            self._fail(failure)
        else:
            with self.changed:
                self._loaded, self.stage, self.done = loaded, "Ready", 1.0
                self.changed.notify_all()

    def _fail(self, error: ToastError) -> None:
        with self.changed:
            self._error = error
            self.changed.notify_all()

    def _open_runs(self) -> LoadedRuns:
        self._enter("Starting PyTorch", 0.05)
        from toast_cli.evaluation.open_run import RunRequest, open_run

        options, loaded = self.options, LoadedRuns()
        for number, (name, path) in enumerate(zip(options.names, options.runs, strict=True)):
            self._enter(f"Loading {name}", 0.4 + 0.4 * number / len(options.runs))
            request = RunRequest(path, data_dir=options.data_dir, weights=options.weights, device=options.device)
            try:
                run = open_run(request)
            except ToastError as error:
                self._report(str(error))
                loaded.errors.append(error)
            else:
                run.model.eval()
                loaded.runs[name] = run
        if not loaded.runs:
            raise loaded.errors[0]
        self._enter("Opening the test pictures", 0.85)
        self._open_test_images(loaded)
        self._enter("Warming up", 0.95)
        return loaded

    def _open_test_images(self, loaded: LoadedRuns) -> None:
        from toast_cli.evaluation.open_run import open_run_data
        from toast_cli.training.reporter import Reporter
        from toast_cli.visualize.view import get_test_split

        run = next(filter(takes_images, loaded.runs.values()), None)
        if run is None:
            return
        try:
            loaded.test = get_test_split(open_run_data(run, Reporter()))
        except ToastError as error:
            loaded.test_error = error


def takes_images(run: OpenedRun) -> bool:
    """Return whether the model of a run takes images."""
    return run.model.backbone.preprocessing is not None


def make_internal_error(error: Exception) -> ToastError:
    """Return the error that is shown for an exception that toast does not expect."""
    return ToastError(
        "Something went wrong inside of toast.",
        f"{type(error).__name__}: {error}",
        "The terminal has the details; please report them.",
        code="app.internal",
    )
