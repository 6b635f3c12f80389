"""Files of a run's answers: written after the run, and named in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from toast_cli.evaluation.answer_files import (
    REPORT_FILE,
    choose_evaluation_folder,
    clear_previous_evaluation,
    write_answer_files,
    write_evaluation_record,
)
from toast_cli.evaluation.answer_report import render_answer_report
from toast_cli.evaluation.open_run import RunRequest
from toast_cli.evaluation.texts.exact_answers import ExactAnswers
from toast_cli.training.evaluate import SplitAnswers
from toast_cli.utils.files import write_text
from toast_cli.utils.names import format_json

ANSWERS_FILE = "answers.jsonl"
"""File of an evaluation with the answers of a language model beside those of the data."""


def format_written_files(answers: SplitAnswers, folder: Path, names: Sequence[str]) -> str:
    """Return a line that names the files of the answers to a split."""
    which = "all splits" if answers.split == "all" else f"the {answers.split} split"
    return f"Answers to {which}: {folder} ({', '.join(names)})"


def write_evaluation_files(
    answers: SplitAnswers,
    request: RunRequest,
    results: Mapping[str, Any],
    table: Table,
    *,
    evaluation: str | None,
    out: Path | None,
    report: bool,
) -> tuple[Path, str]:
    """Write the answers of an evaluation, with a page if there is to be a `report`.

    Return their folder, and a line that names the files. `table` has the headline numbers of the page.

    Raises:
        ToastError: the folder cannot be written to.
    """
    folder, digest = choose_evaluation_folder(answers, request, evaluation, out)
    clear_previous_evaluation(folder)
    names = write_answer_files(answers, folder)
    if report:
        name, value = (list(map(str, column.cells)) for column in table.columns)
        splits = tuple(f", {split}" for split in ("train", "validation", "test"))
        numbers = sorted(zip(name, value, strict=True), key=lambda row: not row[0].endswith(splits))
        write_text(folder / REPORT_FILE, render_answer_report(answers, folder, str(table.title), numbers))
        names.append(REPORT_FILE)
    write_evaluation_record(folder, digest, results)
    return folder, format_written_files(answers, folder, names)


def write_exact_answers(
    answers: ExactAnswers, request: RunRequest, results: Mapping[str, Any], out: Path | None
) -> tuple[Path, str]:
    """Write the compared answers of a language model as JSON Lines, those that differ first.

    Return their folder, and a line that names the file.

    Raises:
        ToastError: the folder cannot be written to.
    """
    folder, digest = choose_evaluation_folder(answers, request, None, out)
    clear_previous_evaluation(folder)
    ordered = sorted(answers.answers, key=lambda each: each.is_exact)
    write_text(folder / ANSWERS_FILE, "".join(f"{format_json(each.to_dict())}\n" for each in ordered))
    write_evaluation_record(folder, digest, results)
    return folder, f"Answers, those that differ first: {folder / ANSWERS_FILE}"
