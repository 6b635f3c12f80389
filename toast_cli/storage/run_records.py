"""Summaries of run folders, as `toast runs` lists them. Imports no torch, and reads no tensors."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal

from toast_cli.recipe.safe_yaml import parse_recipe
from toast_cli.storage.checksums import parse_checksummed_json
from toast_cli.storage.run_folder import RunFolder
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.files import make_write_error, require_regular_file

RunState = Literal["finished", "running", "interrupted", "damaged"]

RECIPE_FILE, RESULTS_FILE, ENVIRONMENT_FILE = "recipe.yaml", "results.json", "environment.json"
RUN_CONTENTS = (RESULTS_FILE, ENVIRONMENT_FILE, "checkpoints", "adapter", "artifact")
"""Files and folders of which a run has at least one beside its recipe."""
TAIL_BYTES = 65_536
"""Length of the end of metrics.jsonl that is read for the newest epoch."""


@dataclass(frozen=True)
class RunRecord:
    """What is known about a run without loading it.

    Attributes:
        path: the run folder.
        state: finished, running (another process holds its lock), interrupted, or damaged.
        data: the data set: its name, and the last part of its path.
        backbone: name of the backbone.
        method: name of the method; for a pre-tuning run, with `pretune` before it.
        seed: the seed; None if it is not known.
        epoch: finished epochs; None before the first.
        epochs: epochs of the recipe.
        metrics: numbers of the validation and the test split, by split.
        changed: when the run was last worked on, in seconds since 1970.
        size: bytes of all files.
        damage: what is wrong with a damaged run.
    """

    path: Path
    state: RunState
    data: str = ""
    backbone: str = ""
    method: str = ""
    seed: int | None = None
    epoch: int | None = None
    epochs: int | None = None
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    changed: float = 0.0
    size: int = 0
    damage: str = ""


def is_run_folder(path: Path) -> bool:
    """Return whether a folder holds a run: a recipe and what a run writes, or all of a run but its recipe."""
    held = [name for name in RUN_CONTENTS if (path / name).exists()]
    return bool(held) and ((path / RECIPE_FILE).is_file() or {ENVIRONMENT_FILE, "checkpoints"} <= set(held))


def list_runs(root: Path) -> list[RunRecord]:
    """Return the runs in a folder, the one that was written to last first. Damaged runs are included.

    Raises:
        ToastError: The folder cannot be read.
    """
    try:
        folders = [path for path in root.iterdir() if path.is_dir() and is_run_folder(path)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ToastError(
            f"{root} cannot be read.",
            error.strerror or str(error),
            "Give the folder of the runs with --root.",
            code="disk.cannot-read",
        ) from error
    return sorted(map(read_run, folders), key=lambda run: (-run.changed, run.path.name))


def read_run(path: Path) -> RunRecord:
    """Return the record of a run. If a file of it cannot be read, its state is `damaged`."""
    size = _measure_files(path)
    changed = _get_last_change(path)
    try:
        facts = _read_recipe(path)
        results = read_results(path)
        last = _read_last_epoch(path)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, ToastError) as error:
        why = error.what if isinstance(error, ToastError) else str(error)
        return RunRecord(path, "damaged", changed=changed, size=size, damage=why)
    metrics = {
        split: numbers for split in ("validation", "test") if (numbers := _select_numbers((results or last).get(split)))
    }
    state: RunState = "finished"
    if results is None:
        state = "running" if RunFolder(path).is_locked() else "interrupted"
    return RunRecord(path, state, **facts, epoch=last.get("epoch"), metrics=metrics, changed=changed, size=size)


def remove_run(path: Path) -> None:
    """Delete a run folder. What marks it as a run is deleted last, so that a deletion can be repeated.

    Raises:
        UsageError: The folder holds no run, or is a link.
        ToastError: Another process is using the run, or the folder cannot be deleted.
    """
    require_run_folder(path)
    with RunFolder(path).lock():
        pass  # raises if another process holds it
    try:
        for child in sorted(path.iterdir(), key=lambda child: child.name in (RECIPE_FILE, ENVIRONMENT_FILE)):
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            else:
                child.unlink()
        path.rmdir()
    except OSError as error:
        raise make_write_error(path, error) from error


def require_run_folder(path: Path) -> None:
    """Check that a folder holds a run and is no link to one.

    Raises:
        UsageError: It does not.
    """
    if path.is_symlink() or not is_run_folder(path):
        why = "It is a link." if path.is_symlink() else "It does not hold what a run writes."
        raise UsageError(f"{path} is not a run folder.", why, code="run.not-a-run-folder")


def _read_recipe(path: Path) -> dict[str, Any]:
    file = require_regular_file(path / RECIPE_FILE)
    values = parse_recipe(file.read_text(encoding="utf-8"), str(file)).values
    dataset, method = values["dataset"], values["method"]["name"]
    place = PurePath(str(dataset["path"])).name if dataset.get("path") else ""
    return {
        "data": ":".join(filter(None, (str(dataset["name"]), place))),
        "backbone": str(values["backbone"]["name"]),
        "method": str(method) if values.get("pretuning") is None else f"pretune {method}",
        "seed": values.get("seed"),
        "epochs": values["training"].get("epochs"),
    }


def read_results(path: Path) -> dict[str, Any] | None:
    """Return the results of a run, or None if it has not finished.

    Raises:
        ValueError: The file is damaged.
        OSError: The file cannot be read.
    """
    file = path / RESULTS_FILE
    if not file.exists():
        return None
    try:
        results = parse_checksummed_json(require_regular_file(file).read_bytes())
    except ValueError as error:
        raise ValueError(f"{RESULTS_FILE}: {error}") from error
    if not isinstance(results, dict):
        raise ValueError(f"{RESULTS_FILE} is not a JSON object.")
    return results


def _read_last_epoch(path: Path) -> dict[str, Any]:
    """Return the newest epoch in the end of the metrics file, or an empty mapping."""
    try:
        with require_regular_file(path / "metrics.jsonl").open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - TAIL_BYTES, 0))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return {}
    return next(filter(None, map(_parse_epoch, reversed(lines))), {})


def _parse_epoch(line: bytes) -> dict[str, Any] | None:
    try:
        parsed = json.loads(line)
    except ValueError:  # a line that is cut, or being written
        return None
    return parsed if isinstance(parsed, dict) and parsed.get("kind") == "epoch" else None


def _select_numbers(metrics: Any) -> dict[str, float]:
    if not isinstance(metrics, dict):
        return {}
    return {
        name: value for name, value in metrics.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _measure_files(path: Path) -> int:
    """Return the bytes of all files below a folder."""
    size = 0
    for entry in _iterate_entries(path):
        with suppress(OSError):  # it has just been replaced
            size += entry.stat(follow_symlinks=False).st_size
    return size


def _get_last_change(path: Path) -> float:
    """Return when a run was last worked on: pictures and exports of a finished run do not count."""
    times = [0.0]
    for name in ("results.json", "metrics.jsonl", RECIPE_FILE):
        with suppress(OSError):
            times.append((path / name).stat().st_mtime)
    return max(times)


def _iterate_entries(path: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the files below a folder, without following links."""
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _iterate_entries(Path(entry.path))
                elif entry.name != ".lock":
                    yield entry
    except OSError:
        return
