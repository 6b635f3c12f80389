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
from toast_cli.export.base import Format, Wanted
from toast_cli.export.progress import stage
from toast_cli.export.report import REPORT, reports_of, require_free
from toast_cli.export.verification import Proof, expected_of, prove
from toast_cli.steering.steering import Steering
from toast_cli.storage.load_model import Loaded
from toast_cli.utils.atomic import cannot_write, write_json
from toast_cli.utils.cache_dir import cache_folder
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.hashing import digest_of
from toast_cli.utils.version import __version__


def export(
    loaded: Loaded, name: str, wanted: Wanted, target: Path, replace: bool = False
) -> tuple[Proof, tuple[Path, ...]]:
    """Write `loaded` in a registered format, prove it, and keep it at `target`, with `export_report.json`.

    Returns:
        How it stands against its run, and what was written: the target and, maybe, a second file with its weights.

    Raises:
        UsageError: the format cannot write what is wanted, or something is there already.
        ToastError: it cannot be written, cannot be opened, or does not give the run's outputs back; no file is left.
    """
    form: Format = registry.load(registry.EXPORTS, name)
    if not loaded.model.objective.class_scores and (form.graph or not form.suffix):
        raise UsageError(
            f"A model of the task '{loaded.recipe.task.name}' predicts no classes, so '{name}' cannot hold it.",
            what_to_do="Export its backbone: --what backbone --format safetensors.",
        )
    require_free(target, replace)
    lock = _lock_of(target.parent)
    reports_of(target.parent / REPORT)
    expected = expected_of(loaded, form, wanted)
    if wanted.part != "adapter":
        # What brings its own weights computes in one precision, not in the one that a backbone happens to be stored in.
        loaded.model.float()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_away(target.parent)
        folder = tempfile.TemporaryDirectory(prefix=f"{_begun_here()}{os.getpid()}-", dir=target.parent)
    except OSError as error:
        raise cannot_write(target, error) from error
    with folder as temporary:
        place = Path(temporary) / "made"
        try:
            place.mkdir()
            stage(f"Writing {'over ' if target.exists() else ''}{target.name}")
            form.write(loaded, wanted, place / target.name)
            proof = prove(loaded, name, form, wanted, expected, place / target.name)
            made = tuple(sorted(path.name for path in place.iterdir()))
            report = {"run": loaded.path.resolve().name, "format": name, **_told(wanted), **asdict(proof)}
            report |= {"bytes": size(place / each for each in made), "toast_version": __version__}
            with lock:
                if (place / target.name).is_dir():
                    write_json(place / target.name / REPORT, {target.name: report})
                else:
                    write_json(place / REPORT, {**reports_of(target.parent / REPORT), target.name: report})
                _keep(place, target.parent, Path(temporary) / "before", replace)
        except OSError as error:
            raise cannot_write(target, error) from error
    return proof, tuple(target.parent / each for each in made)


def _begun_here() -> str:
    """What the folders of unfinished exports of this machine begin with, before the number of their process."""
    return f".export-{platform.node() or 'here'}-"


def _clear_away(folder: Path) -> None:
    """Remove what killed exports left: folders of processes that are no more."""
    for left in folder.glob(f"{glob.escape(_begun_here())}*"):
        process = left.name.removeprefix(_begun_here()).partition("-")[0]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            shutil.rmtree(left, ignore_errors=True)


def _lock_of(folder: Path) -> FileLock:
    """While it is held, no other export of this machine moves anything into the folder or adds to its report.

    The lock lies in the cache: a folder of exports holds nothing else than them.

    Raises:
        ToastError: it cannot lie there.
    """
    locks = cache_folder() / "locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ToastError(
            f"The cache folder {locks} cannot be made.",
            error.strerror or str(error),
            "Name another in TOAST_CACHE_DIR, where files can be written.",
        ) from error
    return FileLock(locks / f"{digest_of(str(folder.resolve()).encode()).hex()}.lock")


def _keep(place: Path, folder: Path, before: Path, replace: bool) -> None:
    """Move everything in `place` into `folder`, or nothing; what stood there waits in `before` until all is done.

    Raises:
        UsageError: something other than a report stands there, and is not to be replaced.
        OSError: it cannot be moved.
    """
    names = sorted(path.name for path in place.iterdir())
    for name in names:
        if name != REPORT:
            require_free(folder / name, replace)
    before.mkdir()
    try:
        for name in names:
            if (folder / name).exists():
                _set_aside(folder / name, before / name)
            (place / name).replace(folder / name)
    except OSError:
        for name in names:
            if not (place / name).exists():
                (folder / name).replace(place / name)
            if (before / name).exists():
                (before / name).replace(folder / name)
        raise


def _set_aside(path: Path, before: Path) -> None:
    """Keep what stands at `path` as `before`, too: a file under both names, so that it is never gone."""
    if path.is_file():
        try:
            before.hardlink_to(path)
            return
        except OSError:  # a file system that has no second names
            pass
    path.replace(before)


def size(paths: Iterable[Path]) -> int:
    """Bytes of all files, and of all in folders."""
    files = (file for path in paths for file in (path.rglob("*") if path.is_dir() else (path,)))
    return sum(file.stat().st_size for file in files if file.is_file())


def _told(wanted: Wanted) -> Mapping[str, Any]:
    return {name: value for name, value in asdict(wanted).items() if not name.startswith("backbone_")}


def folds(loaded: Loaded, form: Format) -> bool:
    """Whether an export of this run in this format is folded unasked."""
    return form.graph and isinstance(loaded.model.adapted.steering, Steering)
