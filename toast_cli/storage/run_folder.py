"""The run folder: where everything about one run lies, never overwritten silently."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from toast_cli.model.model import Model
from toast_cli.storage.adapter import ADAPTER_CONFIG_FILE
from toast_cli.storage.checkpoint import save_checkpoint
from toast_cli.storage.checksums import add_checksum
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.files import append_json_line, make_write_error, number_names, write_json, write_text
from toast_cli.utils.hashing import add_checksum_line, is_checksum_valid
from toast_cli.utils.tensors import gather_full_tensors
from toast_cli.utils.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_RUNS_FOLDER = Path("runs")
"""Where runs lie unless told otherwise, below the current folder."""
ANSWERS_FILE = "test_answers.json"
"""Which class each test sample was given, in a run's folder."""
LOCK_FILE = ".lock"
"""Among the checkpoints, held by the process that makes them."""


class RunFolder:
    """`recipe.yaml`, `environment.json`, `metrics.jsonl`, `checkpoints/`, `adapter/` and `results.json` of one run.

    Of several processes one `writes`; what the others write goes nowhere.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        self.adapter = path / "adapter"
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.spent = 0.0
        """Seconds that the run took before it was gone on with."""
        self._since = time.perf_counter()

    @classmethod
    def create(cls, path: Path | None, default_name: str) -> RunFolder:
        """A new run folder: the one named, or `runs/<default_name>` with the first free number after it.

        Raises:
            UsageError: the folder that was named already holds something.
            ToastError: it cannot be made.
        """
        if path is not None and path.exists() and (not path.is_dir() or any(path.iterdir())):
            begun = (path / "recipe.yaml").is_file() and not (path / "results.json").exists()
            raise UsageError(
                f"The output folder {path} already exists.",
                "A run never writes over another one.",
                (f"'--resume {path}' goes on with the run that was begun there. " if begun else "")
                + "Choose another --output-dir, or move the folder away.",
                code="run.already-exists",
            )
        try:
            if path is not None:
                path.mkdir(parents=True, exist_ok=True)
            else:
                path = _create_numbered_folder(DEFAULT_RUNS_FOLDER, default_name)
        except OSError as error:
            raise ToastError(
                f"The run folder {path or DEFAULT_RUNS_FOLDER} could not be made.",
                error.strerror or str(error),
                code="disk.cannot-write",
            ) from error
        return cls(path)

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """The folder of a run that was interrupted.

        Raises:
            UsageError: there is no such run, or it got to its end.
            ToastError: its recipe is not the one that it was begun with.
        """
        if not (path / "recipe.yaml").is_file():
            why = (
                "It holds no recipe.yaml: it was stopped before it had begun." if path.is_dir() else "It is not there."
            )
            raise UsageError(
                f"{path} is no run folder.",
                why,
                "Name the run to go on with, or begin it anew.",
                code="run.not-a-run-folder",
            )
        try:
            whole = is_checksum_valid((path / "recipe.yaml").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            whole = False
        if not whole:
            raise ToastError(
                f"{path / 'recipe.yaml'} is not what the run was begun with.",
                "It is damaged or was changed: its sha256, in its first line, is another.",
                "Put it back, or start a new run by it with --recipe.",
                code="run.changed-recipe",
            )
        if (path / "results.json").is_file():
            raise UsageError(
                f"The run {path} got to its end.",
                what_to_do="'toast eval --run' measures it.",
                code="run.already-finished",
            )
        return cls(path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from going on with the run meanwhile; who dies lets go of it.

        Raises:
            ToastError: another one has it, or the folder cannot be written to.
        """
        with nullcontext() if not self.writes else self._lock():
            yield

    def _lock(self) -> AbstractContextManager[Any]:
        try:
            self.checkpoints.mkdir(exist_ok=True)
            return FileLock(self.checkpoints / LOCK_FILE).acquire(blocking=False)
        except Timeout:
            raise ToastError(
                f"Another process is at work on the run {self.path}.",
                what_to_do="Wait until it has ended, or stop it.",
                code="run.locked",
            ) from None
        except OSError as error:
            raise make_write_error(self.checkpoints, error) from error
        except NotImplementedError:  # a file system without locks: better a run without one than none
            return nullcontext()

    def truncate_metrics_after(self, step: int, epoch: int) -> None:
        """Drop what was logged after an interrupted run's last checkpoint, of that step and so many whole epochs."""
        if self.writes and self.metrics.is_file():
            lines = self.metrics.read_bytes().splitlines(keepends=True)
            write_text(
                self.metrics, b"".join(line for line in lines if _is_before_checkpoint(line, step, epoch)).decode()
            )

    def write_recipe(self, text: str) -> None:
        """Keep the recipe as it was resolved."""
        if self.writes:
            write_text(self.path / "recipe.yaml", add_checksum_line(text))

    def toast_version(self) -> str:
        """Return the version of toast that began the run; this one where none is recorded."""
        try:
            return str(json.loads((self.path / "environment.json").read_text(encoding="utf-8"))["versions"]["toast"])
        except (OSError, ValueError, KeyError, TypeError):
            return __version__

    def write_environment(self, environment: dict[str, Any]) -> None:
        """Keep versions, device and machine."""
        if self.writes:
            write_json(self.path / "environment.json", add_checksum(environment))

    def write_results(self, results: dict[str, Any]) -> None:
        """Keep the closing numbers."""
        if self.writes:
            write_json(self.path / "results.json", add_checksum(results))

    def write_answers(self, answers: dict[str, Any]) -> None:
        """Keep which class each test sample was given, on one line: two runs are compared sample by sample with it."""
        if self.writes:
            write_text(self.path / ANSWERS_FILE, json.dumps(add_checksum(answers)) + "\n")

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add one line to `metrics.jsonl`."""
        if self.writes:
            append_json_line(self.metrics, line)

    def save_checkpoint(
        self, name: str, model: Model, state: dict[str, Any], besides: Mapping[str, Tensor] | None = None
    ) -> None:
        """Keep `checkpoints/<name>`, see `storage.checkpoint.save_checkpoint`; all processes must ask for it."""
        trained, besides = gather_full_tensors(model.trained()), gather_full_tensors(besides or {})
        state = {**state, "spent": self.spent + time.perf_counter() - self._since}
        if self.writes:
            save_checkpoint(self.checkpoints, name, trained, state, besides)


def _is_before_checkpoint(line: bytes, step: int, epoch: int) -> bool:
    try:
        logged = json.loads(line.decode())
        return bool(logged["step"] <= step and (logged["kind"] != "epoch" or logged["epoch"] <= epoch))
    except (ValueError, TypeError, KeyError, RecursionError):  # cut short, or damaged
        return False


def find_newest_run(root: Path = DEFAULT_RUNS_FOLDER) -> Path | None:
    """The finished run below `root` whose adapter was written last, or None."""
    finished = list(root.glob(f"*/adapter/{ADAPTER_CONFIG_FILE}")) if root.is_dir() else []
    return max(finished, key=lambda path: path.stat().st_mtime_ns).parent.parent if finished else None


def _create_numbered_folder(root: Path, name: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for free in number_names(name):
        with suppress(FileExistsError):  # raised when another process was quicker, so two runs never share a folder
            (root / free).mkdir()
            return root / free
    raise AssertionError("numbers never end")
