"""Export of a run: write it, verify it in another process, and move it into place.

If a step fails, no file is left.
"""

from __future__ import annotations

import glob
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from toast_cli import registry
from toast_cli.export.base import SCRIPT_BEGINNING, SCRIPT_FILE, ExportFormat, ExportRequest, log_stage
from toast_cli.export.existing_exports import REPORT_FILE, read_reports, require_free_target
from toast_cli.export.graphs.quantization import check_quantizable
from toast_cli.export.verification import (
    ReferenceOutputs,
    VerificationReport,
    compute_reference,
    verify_export,
    verify_quantized,
)
from toast_cli.model.model import fold_model, merge_model
from toast_cli.steering.steering import Steering
from toast_cli.storage.load_model import LoadedModel
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.files import get_cache_folder, make_write_error, write_json
from toast_cli.utils.hashing import hash_bytes
from toast_cli.utils.version import __version__


def export_model(
    loaded: LoadedModel, name: str, wanted: ExportRequest, target: Path, replace: bool = False
) -> tuple[VerificationReport, tuple[Path, ...]]:
    """Export a model in a registered format, verify it, and move it to `target` with an `export_report.json`.

    Returns:
        The verification report, and the files written: the target and, for some formats, a second file of weights.

    Raises:
        UsageError: The format does not support the request, or `target` exists and `replace` is false.
        ToastError: The export cannot be written or loaded, or its outputs differ from those of the run.
    """
    form: ExportFormat = registry.load_entry(registry.EXPORTS, name)
    if not loaded.model.objective.class_scores and (form.graph or not form.suffix):
        raise UsageError(
            f"Cannot export to {name}: a model of the task '{loaded.recipe.task.name}' does not predict classes.",
            what_to_do="Export its backbone: --what backbone --format safetensors.",
            code="task.predicts-no-classes",
        )
    if loaded.model.objective.target == "number" and wanted.dtype != "float32":
        raise UsageError(
            f"Cannot export numbers in {wanted.dtype}.",
            "It would round the mean and the standard deviation that turn outputs into the units of the data.",
            "Use --dtype float32.",
            code="export.rounded-numbers",
        )
    form.check(loaded, wanted)
    if wanted.quantize is not None:
        check_quantizable(loaded)
    if wanted.resize and (loaded.model.backbone.preprocessing is None or loaded.model.objective.dense):
        raise UsageError(
            f"--resize is not available for the task '{loaded.recipe.task.name}'.",
            "It is for images that are resized and cropped to one input.",
            "Leave it out.",
            code="export.cannot-resize",
        )
    require_free_target(target, replace)
    lock = _make_folder_lock(target.parent)
    read_reports(target.parent / REPORT_FILE)
    expected = compute_reference(loaded, form, wanted)
    if wanted.part != "adapter":
        # An export with its own weights computes in a single precision, independent of the stored backbone's.
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
            form.write(_fold_or_merge(loaded, form, wanted), wanted, place / target.name)
            proof = verify_export(loaded, name, form, wanted, expected, place / target.name)
            if wanted.quantize is not None:
                proof = _quantize(loaded, name, form, wanted, expected, proof, place / target.name)
            made = tuple(sorted(path.name for path in place.iterdir()))
            report = {"run": loaded.path.resolve().name, "format": name, **_describe_request(wanted), **asdict(proof)}
            report |= {"bytes": compute_total_size(place / each for each in made), "toast_version": __version__}
            with lock:
                if (place / target.name).is_dir():
                    write_json(place / target.name / REPORT_FILE, {target.name: report})
                else:
                    write_json(place / REPORT_FILE, {**read_reports(target.parent / REPORT_FILE), target.name: report})
                _install_files(place, target.parent, Path(temporary) / "before", replace)
        except OSError as error:
            raise make_write_error(target, error) from error
    return proof, tuple(target.parent / each for each in made)


def _quantize(
    loaded: LoadedModel,
    name: str,
    form: ExportFormat,
    wanted: ExportRequest,
    expected: ReferenceOutputs,
    proof: VerificationReport,
    path: Path,
) -> VerificationReport:
    """Quantize a verified export in place, and run it in another process. Return the report with what that changed."""
    assert wanted.quantize is not None
    report = form.quantizes[wanted.quantize](loaded, wanted, path)
    log_stage(f"Loading the quantized file with {form.loads} in another process, and running it")
    changed = verify_quantized(name, wanted, expected, path)
    return replace_fields(proof, quantization=report, **changed)


def _fold_or_merge(loaded: LoadedModel, form: ExportFormat, wanted: ExportRequest) -> LoadedModel:
    """Return the model to write. A graph of a model without a feedback path has nothing to fold.

    Raises:
        UsageError: The model has no feedback path, and the format is not a graph, or PEFT's layers cannot be merged.
    """
    if not wanted.fold or (form.graph and not isinstance(loaded.model.adapted.steering, Steering)):
        return replace_fields(loaded, model=merge_model(loaded.model)) if wanted.merge else loaded
    return replace_fields(loaded, model=fold_model(loaded.model))


def _get_temporary_prefix() -> str:
    """Return the name prefix of this machine's temporary export folders. The process ID follows it."""
    return f".export-{platform.node() or 'here'}-"


def _remove_stale_folders(folder: Path) -> None:
    """Remove the temporary folders of exports whose processes have ended."""
    for left in folder.glob(f"{glob.escape(_get_temporary_prefix())}*"):
        process = left.name.removeprefix(_get_temporary_prefix()).partition("-")[0]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            shutil.rmtree(left, ignore_errors=True)


def _make_folder_lock(folder: Path) -> FileLock:
    """Return a lock that serializes exports of this machine into `folder`.

    The lock file is in the cache folder, so that `folder` contains only exports.

    Raises:
        ToastError: The cache folder cannot be created.
    """
    locks = get_cache_folder() / "locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ToastError(
            f"Cannot create the cache folder {locks}.",
            error.strerror or str(error),
            "Set TOAST_CACHE_DIR to a writable folder.",
            code="cache.cannot-write",
        ) from error
    return FileLock(locks / f"{hash_bytes(str(folder.resolve()).encode()).hex()}.lock")


def _install_files(place: Path, folder: Path, before: Path, replace: bool) -> None:
    """Move all files in `place` into `folder`, or none of them. Replaced files are kept in `before` until then.

    Raises:
        UsageError: A file exists and `replace` is false. The report is always replaced, and so is a script of toast.
        OSError: A file cannot be moved.
    """
    names = sorted(path.name for path in place.iterdir())
    for name in names:
        if name != REPORT_FILE and not (name == SCRIPT_FILE and _is_own_script(folder / name)):
            require_free_target(folder / name, replace)
    before.mkdir()
    try:
        for name in names:
            if (folder / name).exists():
                _back_up_file(folder / name, before / name)
            (place / name).replace(folder / name)
    except OSError:
        for name in names:
            if not (place / name).exists():
                (folder / name).replace(place / name)
            if (before / name).exists():
                (before / name).replace(folder / name)
        raise


def _is_own_script(old: Path) -> bool:
    """Return whether the script that is there begins as the one that toast writes."""
    try:
        return old.read_text(encoding="utf-8").startswith(SCRIPT_BEGINNING)
    except (OSError, UnicodeDecodeError):
        return False


def _back_up_file(path: Path, before: Path) -> None:
    """Keep `path` as `before`. A file is hard-linked if possible, so that it always exists at `path`."""
    if path.is_file():
        try:
            before.hardlink_to(path)
            return
        except OSError:  # the file system has no hard links
            pass
    path.replace(before)


def compute_total_size(paths: Iterable[Path]) -> int:
    """Return the bytes of all files, including those in folders."""
    files = (file for path in paths for file in (path.rglob("*") if path.is_dir() else (path,)))
    return sum(file.stat().st_size for file in files if file.is_file())


def _describe_request(wanted: ExportRequest) -> Mapping[str, Any]:
    return {name: value for name, value in asdict(wanted).items() if not name.startswith("backbone_")}


def is_folded_by_default(loaded: LoadedModel, form: ExportFormat) -> bool:
    """Return whether an export of this model in this format is folded without `--fold`."""
    return form.graph and isinstance(loaded.model.adapted.steering, Steering)
