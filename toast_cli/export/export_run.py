"""Exporting: write, open in another process, compare with the run, and only then keep.

What fails on the way leaves no file behind.
"""

from __future__ import annotations

import glob
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from toast_cli import registry
from toast_cli.export.base import ExportFormat, ExportRequest, log_stage
from toast_cli.export.report import REPORT_FILE, read_reports, require_free_target
from toast_cli.export.verification import VerificationReport, compute_reference, verify_export
from toast_cli.steering.steering import Steering
from toast_cli.storage.load_model import LoadedModel
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.files import get_cache_folder, make_write_error, write_json
from toast_cli.utils.hashing import hash_bytes
from toast_cli.utils.version import __version__


def export_model(
    loaded: LoadedModel, name: str, wanted: ExportRequest, target: Path, replace: bool = False
) -> tuple[VerificationReport, tuple[Path, ...]]:
    """Write `loaded` in a registered format, prove it, and keep it at `target`, with `export_report.json`.

    Returns:
        How it stands against its run, and what was written: the target and, maybe, a second file with its weights.

    Raises:
        UsageError: the format cannot write what is wanted, or something is there already.
        ToastError: it cannot be written, cannot be opened, or does not give the run's outputs back; no file is left.
    """
    form: ExportFormat = registry.load_entry(registry.EXPORTS, name)
    if not loaded.model.objective.class_scores and (form.graph or not form.suffix):
        raise UsageError(
            f"A model of the task '{loaded.recipe.task.name}' predicts no classes, so '{name}' cannot hold it.",
            what_to_do="Export its backbone: --what backbone --format safetensors.",
            code="task.predicts-no-classes",
        )
    require_free_target(target, replace)
    lock = _make_folder_lock(target.parent)
    read_reports(target.parent / REPORT_FILE)
    expected = compute_reference(loaded, form, wanted)
    if wanted.part != "adapter":
        # What brings its own weights computes in one precision, not in the one that a backbone happens to be stored in.
        loaded.model.float()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale_folders(target.parent)
        folder = tempfile.TemporaryDirectory(prefix=f"{_get_temporary_prefix()}{os.getpid()}-", dir=target.parent)
    except OSError as error:
        raise make_write_error(target, error) from error
    with folder as temporary:
        place = Path(temporary) / "made"
        try:
            place.mkdir()
            log_stage(f"Writing {'over ' if target.exists() else ''}{target.name}")
            form.write(loaded, wanted, place / target.name)
            proof = verify_export(loaded, name, form, wanted, expected, place / target.name)
            made = tuple(sorted(path.name for path in place.iterdir()))
            report = {"run": loaded.path.resolve().name, "format": name, **_describe_request(wanted), **asdict(proof)}
            report |= {"bytes": compute_total_size(place / each for each in made), "toast_version": __version__}
            with lock:
                if (place / target.name).is_dir():
                    write_json(place / target.name / REPORT_FILE, {target.name: report})
                else:
                    write_json(place / REPORT_FILE, {**read_reports(target.parent / REPORT_FILE), target.name: report})
                _move_into_place(place, target.parent, Path(temporary) / "before", replace)
        except OSError as error:
            raise make_write_error(target, error) from error
    return proof, tuple(target.parent / each for each in made)


def _get_temporary_prefix() -> str:
    """What the folders of unfinished exports of this machine begin with, before the number of their process."""
    return f".export-{platform.node() or 'here'}-"


def _remove_stale_folders(folder: Path) -> None:
    """Remove what killed exports left: folders of processes that are no more."""
    for left in folder.glob(f"{glob.escape(_get_temporary_prefix())}*"):
        process = left.name.removeprefix(_get_temporary_prefix()).partition("-")[0]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            shutil.rmtree(left, ignore_errors=True)


def _make_folder_lock(folder: Path) -> FileLock:
    """While it is held, no other export of this machine moves anything into the folder or adds to its report.

    The lock lies in the cache: a folder of exports holds nothing else than them.

    Raises:
        ToastError: it cannot lie there.
    """
    locks = get_cache_folder() / "locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ToastError(
            f"The cache folder {locks} cannot be made.",
            error.strerror or str(error),
            "Name another in TOAST_CACHE_DIR, where files can be written.",
            code="cache.not-writable",
        ) from error
    return FileLock(locks / f"{hash_bytes(str(folder.resolve()).encode()).hex()}.lock")


def _move_into_place(place: Path, folder: Path, before: Path, replace: bool) -> None:
    """Move everything in `place` into `folder`, or nothing; what stood there waits in `before` until all is done.

    Raises:
        UsageError: something other than a report stands there, and is not to be replaced.
        OSError: it cannot be moved.
    """
    names = sorted(path.name for path in place.iterdir())
    for name in names:
        if name != REPORT_FILE:
            require_free_target(folder / name, replace)
    before.mkdir()
    try:
        for name in names:
            if (folder / name).exists():
                _back_up(folder / name, before / name)
            (place / name).replace(folder / name)
    except OSError:
        for name in names:
            if not (place / name).exists():
                (folder / name).replace(place / name)
            if (before / name).exists():
                (before / name).replace(folder / name)
        raise


def _back_up(path: Path, before: Path) -> None:
    """Keep what stands at `path` as `before`, too: a file under both names, so that it is never gone."""
    if path.is_file():
        try:
            before.hardlink_to(path)
            return
        except OSError:  # a file system that has no second names
            pass
    path.replace(before)


def compute_total_size(paths: Iterable[Path]) -> int:
    """Bytes of all files, and of all in folders."""
    files = (file for path in paths for file in (path.rglob("*") if path.is_dir() else (path,)))
    return sum(file.stat().st_size for file in files if file.is_file())


def _describe_request(wanted: ExportRequest) -> Mapping[str, Any]:
    return {name: value for name, value in asdict(wanted).items() if not name.startswith("backbone_")}


def is_folded_by_default(loaded: LoadedModel, form: ExportFormat) -> bool:
    """Whether an export of this run in this format is folded unasked."""
    return form.graph and isinstance(loaded.model.adapted.steering, Steering)
