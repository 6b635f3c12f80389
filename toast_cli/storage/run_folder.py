"""The run folder, which holds all files of one run and is never overwritten."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from toast_cli.storage.checksums import add_checksum, read_checksummed_json
from toast_cli.storage.lineage import RunLineage, read_lineage, write_lineage
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.files import append_json_line, make_write_error, write_json, write_text
from toast_cli.utils.hashing import add_checksum_line, is_checksum_valid
from toast_cli.utils.names import number_names, quote_argument
from toast_cli.utils.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from toast_cli.model.model import Model

DEFAULT_RUNS_FOLDER = Path("runs")
"""Default parent folder of runs, relative to the current folder."""
ANSWERS_FILE = "test_answers.json"
"""File of a run folder with the class predicted for each test sample."""
DATA_FILE = "data.json"
"""File of a run folder with the identity of its data: classes, and the samples of each split."""
LR_RANGE_FILE = "lr_range.csv"
"""File of a run folder with the range test that chose the learning rate, if one did."""
LOCK_FILE = ".lock"
"""Lock file among the checkpoints, held by the process that writes them."""


class RunFolder:
    """The files of one run.

    These are `recipe.yaml`, `environment.json`, `data.json`, `metrics.jsonl`, `checkpoints/`, `adapter/` and
    `results.json`, and `lineage.json` if the run starts from an earlier model or was extended.

    With several processes, only one `writes`. The methods of the others write nothing.
    """

    def __init__(self, path: Path, writes: bool = True, made: Sequence[Path] = ()) -> None:
        self.path = path
        self.writes = writes
        self.made = made
        """The folders that `create` made, the innermost first."""
        self.adapter = path / "adapter"
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.spent = 0.0
        """Seconds that the run had taken before it was resumed."""
        self._since = time.perf_counter()

    @classmethod
    def create(cls, path: Path | None, default_name: str) -> RunFolder:
        """Create a run folder: `path`, or `runs/<default_name>` with the first free number.

        Raises:
            UsageError: The folder `path` already holds files.
            ToastError: The folder cannot be created.
        """
        cls.require_free(path)
        root = DEFAULT_RUNS_FOLDER if path is None else path
        made = [folder for folder in (root, *root.parents) if not folder.exists()]
        try:
            if path is not None:
                path.mkdir(parents=True, exist_ok=True)
            else:
                path = _create_numbered_folder(DEFAULT_RUNS_FOLDER, default_name)
                made = [path, *made]
        except OSError as error:
            raise ToastError(
                f"The run folder {path or DEFAULT_RUNS_FOLDER} could not be created.",
                error.strerror or str(error),
                code="disk.cannot-write",
            ) from error
        return cls(path, made=made)

    def remove(self) -> None:
        """Remove the files of a run that has not begun, and the folders that `create` made for it."""
        if not self.writes:
            return
        for each in self.path.iterdir():
            shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
        for folder in self.made:
            with suppress(OSError):  # another run may be in it
                folder.rmdir()

    @staticmethod
    def require_free(path: Path | None) -> None:
        """Check that a run may be written to `path`; None stands for a new folder.

        Raises:
            UsageError: The folder already holds files.
        """
        if path is not None and path.exists() and (not path.is_dir() or any(path.iterdir())):
            resumable = (path / "recipe.yaml").is_file() and not (path / "results.json").exists()
            raise UsageError(
                f"The output folder {path} already exists.",
                "A run never overwrites another one.",
                (f"Resume the run in it with: --resume {quote_argument(path)}. " if resumable else "")
                + "Choose another --output-dir, or move the folder away.",
                code="disk.already-exists",
            )

    @classmethod
    def reopen(cls, path: Path, extend: bool = False) -> RunFolder:
        """Open the folder of an interrupted run, or to `extend` it that of a finished one.

        Raises:
            UsageError: There is no such run, or it has finished.
            ToastError: The recipe was changed after the run started.
        """
        if not (path / "recipe.yaml").is_file():
            why = "It holds no recipe.yaml, so no run was started in it." if path.is_dir() else "It does not exist."
            raise UsageError(
                f"{path} is not a run folder.",
                why,
                "Give the folder of the run to resume, or start a new run.",
                code="run.not-a-run-folder",
            )
        try:
            intact = is_checksum_valid((path / "recipe.yaml").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            intact = False
        if not intact:
            raise ToastError(
                f"{path / 'recipe.yaml'} is not the recipe that the run was started with.",
                "It was edited or damaged: the SHA-256 in its first line does not match.",
                "Restore it, or start a new run from it with --recipe.",
                code="run.changed-recipe",
            )
        if not extend and has_finished(path):
            raise UsageError(
                f"The run {path} has already finished.",
                what_to_do="Evaluate it with 'toast eval --run', or train it for longer: "
                f"--resume {quote_argument(path)} training.epochs=N.",
                code="run.already-finished",
            )
        return cls(path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run against other processes. The lock is released if this process dies.

        Raises:
            ToastError: Another process holds the lock, or the folder cannot be written to.
        """
        with nullcontext() if not self.writes else self._make_lock():
            yield

    def _make_lock(self) -> AbstractContextManager[Any]:
        try:
            self.checkpoints.mkdir(exist_ok=True)
            return FileLock(self.checkpoints / LOCK_FILE).acquire(blocking=False)
        except Timeout:
            raise ToastError(
                f"Another process is using the run {self.path}.",
                what_to_do="Wait until it has finished, or stop it.",
                code="run.locked",
            ) from None
        except OSError as error:
            raise make_write_error(self.checkpoints, error) from error
        except NotImplementedError:  # the file system has no locks; run without one
            return nullcontext()

    def is_locked(self) -> bool:
        """Return whether another process is writing the run."""
        lock = self.checkpoints / LOCK_FILE
        if not lock.is_file():
            return False
        try:
            with FileLock(lock).acquire(blocking=False):
                return False
        except Timeout:
            return True
        except (OSError, NotImplementedError):  # the folder is read-only, or its file system has no locks
            return False

    def truncate_metrics_after(self, step: int, epoch: int) -> None:
        """Drop metrics logged after the last checkpoint of an interrupted run, at `step` and after `epoch` epochs."""
        if self.writes and self.metrics.is_file():
            lines = self.metrics.read_bytes().splitlines(keepends=True)
            write_text(
                self.metrics, b"".join(line for line in lines if _is_before_checkpoint(line, step, epoch)).decode()
            )

    def write_recipe(self, text: str) -> None:
        """Write the resolved recipe."""
        if self.writes:
            write_text(self.path / "recipe.yaml", add_checksum_line(text))

    def read_toast_version(self) -> str:
        """Return the version of toast that started the run, or the current one if none is recorded."""
        try:
            return str(json.loads((self.path / "environment.json").read_text(encoding="utf-8"))["versions"]["toast"])
        except (OSError, ValueError, KeyError, TypeError):
            return __version__

    def write_environment(self, environment: dict[str, Any]) -> None:
        """Write versions, device and machine."""
        if self.writes:
            write_json(self.path / "environment.json", add_checksum(environment))

    def write_lr_range(self, text: str) -> None:
        """Write the steps of the range test that chose the learning rate, as CSV."""
        if self.writes:
            write_text(self.path / LR_RANGE_FILE, text)

    def write_data(self, identity: dict[str, Any]) -> None:
        """Write the identity of the data: classes and samples."""
        if self.writes:
            write_text(self.path / DATA_FILE, json.dumps(add_checksum(identity)) + "\n")

    def write_lineage(self, lineage: RunLineage) -> None:
        """Write the models that the run starts from, and its extensions."""
        if self.writes:
            write_lineage(self.path, lineage)

    def write_results(self, results: dict[str, Any]) -> None:
        """Write the final metrics."""
        if self.writes:
            write_json(self.path / "results.json", add_checksum(results))

    def write_answers(self, answers: dict[str, Any]) -> None:
        """Write the class predicted for each test sample, on one line. Two runs can be compared by sample with it."""
        if self.writes:
            write_text(self.path / ANSWERS_FILE, json.dumps(add_checksum(answers)) + "\n")

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Append one line to `metrics.jsonl`."""
        if self.writes:
            append_json_line(self.metrics, line)

    def save_checkpoint(
        self, name: str, model: Model, state: dict[str, Any], besides: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write `checkpoints/<name>`, see `storage.checkpoint.save_checkpoint`. All processes must call it."""
        from toast_cli.storage.checkpoint import (
            save_checkpoint,  # these import torch, which a list of runs does without
        )
        from toast_cli.utils.tensor_fingerprints import gather_full_tensors

        trained, besides = gather_full_tensors(model.get_trained_parameters()), gather_full_tensors(besides or {})
        state = {**state, "spent": self.spent + time.perf_counter() - self._since}
        if self.writes:
            save_checkpoint(self.checkpoints, name, trained, state, besides)


def is_unfinished(path: Path) -> bool:
    """Return whether `path` is the folder of a run that was started and has no adapter yet."""
    from toast_cli.storage.adapter import ADAPTER_CONFIG_FILE

    return (path / "recipe.yaml").is_file() and not (path / "adapter" / ADAPTER_CONFIG_FILE).is_file()


@dataclass(frozen=True)
class WorkingFolders:
    """The folder that a run was started in, and its folder of data sets."""

    folder: Path
    data_dir: Path


def read_working_folders(path: Path) -> WorkingFolders | None:
    """Return the folders that a run was started with; None for an export and for runs of earlier versions.

    `path` is a run folder, or its adapter folder.
    """
    for place in (path, path.parent):
        try:
            recorded = json.loads((place / "environment.json").read_text(encoding="utf-8"))
            return WorkingFolders(Path(recorded["folder"]), Path(recorded["data_dir"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _is_before_checkpoint(line: bytes, step: int, epoch: int) -> bool:
    try:
        logged = json.loads(line.decode())
        return bool(logged["step"] <= step and (logged["kind"] != "epoch" or logged["epoch"] <= epoch))
    except (ValueError, TypeError, KeyError, RecursionError):  # the line is unfinished or damaged
        return False


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a metrics file; nothing for one that is missing, and no line that was cut off."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def has_finished(run: Path) -> bool:
    """Return whether a run has results of its end: of the last one, if it was extended.

    Raises:
        ToastError: The results or the lineage are damaged.
    """
    file = run / "results.json"
    extensions = len(read_lineage(run).extensions)
    return file.is_file() and (not extensions or read_checksummed_json(file).get("extensions", 0) >= extensions)


def find_newest_run(root: Path = DEFAULT_RUNS_FOLDER) -> Path | None:
    """Return the finished run in `root` whose adapter was written last, or None."""
    from toast_cli.storage.adapter import ADAPTER_CONFIG_FILE

    finished = list(root.glob(f"*/adapter/{ADAPTER_CONFIG_FILE}")) if root.is_dir() else []
    return max(finished, key=lambda path: path.stat().st_mtime_ns).parent.parent if finished else None


def _create_numbered_folder(root: Path, name: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for free in number_names(name):
        with suppress(FileExistsError):  # raised if another process was faster, so two runs never share a folder
            (root / free).mkdir()
            return root / free
    raise AssertionError("numbers never end")
