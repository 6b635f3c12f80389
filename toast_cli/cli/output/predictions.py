"""Results of `toast predict`, as JSON values and on the terminal."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from toast_cli.cli.output.console import err, print_answer, print_line, print_table
from toast_cli.utils.table_files import read_table

if TYPE_CHECKING:
    from toast_cli.evaluation.prediction.answers import Answers
    from toast_cli.evaluation.prediction.predict import PredictionRequest, PredictionResult
    from toast_cli.utils.table_files import Row

SHOWN_ROWS = 20
"""Number of images, and of unreadable files, that are printed; a table has all of them."""
SHOWN_CLASSES = 50
"""Number of classes whose images are counted on the terminal."""


def build_record(result: PredictionResult, request: PredictionRequest, out: Path | None) -> dict[str, Any]:
    """Return the result as JSON values, with every row if it is in no file."""
    summary, table = result.summary, result.table
    record: dict[str, Any] = {
        "run": str(request.run.path),
        "out": None if out is None else str(out),
        result.noun: summary.images,
        "kept": result.kept,
        "unreadable": [{"path": path, "reason": reason} for path, reason in summary.broken.items()],
        "classes": dict(summary.labels.most_common()),
        f"{result.noun}_per_second": result.read / result.seconds if result.read > len(summary.broken) else None,
    }
    if result.vectors is not None:
        record |= {"features": str(request.features), "vectors": result.vectors}
    if out is None and table is not None:
        names = [column.name for column in table.columns]
        rows = read_table(table.path, table.columns)
        record["predictions"] = [dict(zip(names, row, strict=True)) for row in rows]
    return record


def print_result(result: PredictionResult, request: PredictionRequest, out: Path | None) -> None:
    """Print the rows that are in no file, the number of images of each class, and the unreadable files."""
    summary, table, answers = result.summary, result.table, result.answers
    done = summary.images - len(summary.broken)
    if out is None and table is not None and answers is not None and done:
        rows = (row for row in read_table(table.path, table.columns) if row[-1] is None)
        if result.noun == "prompts":
            for row in rows:
                print_answer(f"> {row[1]}\n{row[2]}\n")
        else:
            print_table(_build_rows_table(request.run.path, answers, list(islice(rows, SHOWN_ROWS))))
            if done > SHOWN_ROWS:
                print_line(f"... and {done - SHOWN_ROWS:,} more. --out FILE writes all of them, --json prints them.")
    if summary.labels and (out is not None or done > SHOWN_ROWS):
        print_table(_build_counts_table(result))
    verb = {"prompts": "answered"}.get(result.noun, "read" if table is None else "labelled")
    failure = "could not be answered" if verb == "answered" else "could not be read"
    for path, reason in islice(summary.broken.items(), SHOWN_ROWS):
        print_line(f"Not {'answered' if verb == 'answered' else 'read'}: {path}: {reason}", err)
    if len(summary.broken) > SHOWN_ROWS:
        print_line(f"... and {len(summary.broken) - SHOWN_ROWS:,} more files {failure}.", err)
    broken = f", {len(summary.broken):,} {failure}" if summary.broken else ""
    new = done - result.kept
    if result.kept and not new:
        print_line(f"Nothing new: {done:,} of {summary.images:,} {result.noun} were {verb} already{broken}", err)
    else:
        rate = f" ({result.read / result.seconds:,.1f} {result.noun} per second)" if result.read else ""
        now = f", {new:,} of them now" if result.kept else ""
        print_line(f"{done:,} of {summary.images:,} {result.noun} {verb}{now}{broken}{rate}", err)
    if out is not None and table is not None:
        if table.path != out:
            print_line(f"Class maps and overlays: {out}")
        print_line(f"Table: {table.path}")
    if result.vectors is not None:
        print_line(f"Features: {request.features} ({result.vectors:,} vectors)")


def _build_rows_table(run: Path, answers: Answers, rows: list[Row]) -> Table:
    """Return a table of rows without errors."""
    table = Table(title=f"Predictions of {run}")
    for heading in ("path", *answers.headings):
        table.add_column(heading)
    for row in rows:
        table.add_row(str(row[0]), *answers.summarize_cells(row[1:-1]))
    return table


def _build_counts_table(result: PredictionResult) -> Table:
    table = Table()
    table.add_column("class")
    table.add_column("images", justify="right")
    counts = result.summary.labels.most_common()
    for name, count in counts[:SHOWN_CLASSES]:
        table.add_row(name, f"{count:,}")
    if len(counts) > SHOWN_CLASSES:
        rest = sum(count for _, count in counts[SHOWN_CLASSES:])
        table.add_row(f"{len(counts) - SHOWN_CLASSES:,} other classes", f"{rest:,}")
    return table
