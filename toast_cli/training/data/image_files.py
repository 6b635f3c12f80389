"""The check of a run's image files before its first step, over all processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerate.utils import gather_object

from toast_cli.data.audit.image_files import check_files
from toast_cli.data.images.folder_scan import to_printable_name
from toast_cli.utils.constants import UNREADABLE_IMAGE
from toast_cli.utils.errors import ToastError

if TYPE_CHECKING:
    from toast_cli.training.reporter import Reporter
    from toast_cli.training.session import Session

MAX_NAMED = 5
"""Number of files that a message names."""


def check_image_files(session: Session, reporter: Reporter, resume_command: str | None) -> None:
    """Check that the image files of the splits that a run reads can be opened; report what was checked.

    All processes must call it.

    Raises:
        ToastError: some cannot, and `images.on_error` is stop. `resume_command`, if the run is resumed, is part of the
            advice.
    """
    recipe, accelerator = session.recipe, session.accelerator
    read = {"train", "val", *(["test"] if recipe.test and recipe.pretuning is None else [])}
    splits = {part: split for part, split in session.data.splits.items() if part in read}
    check = check_files(splits, accelerator.process_index, accelerator.num_processes)
    if not check.total:
        return
    causes = {place: (error.what, error.reasons) for place, error in check.unreadable.items()}
    found = gather_object([(check.checked, causes)])
    checked = sum(count for count, _ in found)
    causes = {place: cause for _, each in found for place, cause in sorted(each.items())}
    scope = f"{checked:,}" if checked == check.total else f"{checked:,} of {check.total:,}"
    if not causes:
        reporter.report_message(
            f"Checked before the first step: {scope} image files open, by their headers; their pixels are read later."
        )
        return
    named = [
        f"{part}: {to_printable_name(name)}: {' '.join(reasons) or what}"
        for (part, name), (what, reasons) in list(causes.items())[:MAX_NAMED]
    ]
    if len(causes) > MAX_NAMED:
        named.append(f"and {len(causes) - MAX_NAMED:,} more")
    files = "1 image file" if len(causes) == 1 else f"{len(causes):,} image files"
    if recipe.images.on_error == "skip":
        reporter.report_message(
            f"{files} of {scope} checked cannot be read, and will be skipped (images.on_error=skip): "
            + "; ".join(named)
        )
        return
    add = "images.on_error=skip" if resume_command is None else f"{resume_command} images.on_error=skip"
    raise ToastError(
        f"{files} of {scope} checked before the first step cannot be read.",
        named,
        f"Replace or remove {'it' if len(causes) == 1 else 'them'} ('toast data check' lists all), or go on without "
        f"{'it' if len(causes) == 1 else 'them'}: {'add ' if resume_command is None else ''}{add}.",
        code=UNREADABLE_IMAGE,
    )
