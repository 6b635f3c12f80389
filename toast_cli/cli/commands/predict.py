"""`toast predict`: label new images with a tuned model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toast_cli.cli import options

if TYPE_CHECKING:
    from rich.table import Table

    from toast_cli.evaluation.predict import PredictionResult
    from toast_cli.utils.table_files import Row

SHOWN_ROWS = 20
"""Number of images, and of unreadable files, that are printed; a table has all of them."""
SHOWN_CLASSES = 50
"""Number of classes whose images are counted on the terminal."""


def run_predict(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Image files, folders, quoted patterns ('photos/*.jpg'), tables with a column 'path', zip or tar "
            "files, shards:FOLDER, or data sets such as folder:PATH and hf:NAME.",
            show_default=False,
        ),
    ],
    run: options.RunOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the table to this file: .csv, .json, .jsonl or .parquet. [default: print it]"),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of likely classes of each image.")] = 5,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Add a column with the probability of every class.")
    ] = False,
    split: Annotated[str | None, typer.Option(help="Split of data sets: train, val or test. [default: all]")] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Keep the rows of an interrupted or earlier table, and label only other files."),
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per forward pass. [default: as in the run's evaluation]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that decode images. [default: as in the run]")
    ] = None,
    weights: options.WeightsOption = None,
    data_dir: options.DataDirOption = None,
    device: options.DeviceOption = None,
    precision: options.PrecisionOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Label new images with a tuned model.

    Writes one row per image: path, class, probability and the next likely classes. Unreadable files are listed at the
    end with the reason.
    """
    from toast_cli.utils.errors import UsageError

    if resume and out is None:
        raise UsageError(
            "--resume continues a table, so it needs --out.",
            what_to_do="Name it with --out.",
            code="cli.missing-option",
        )

    from tempfile import TemporaryDirectory

    from toast_cli.cli.find_run import resolve_run_path
    from toast_cli.cli.output.console import err, print_json, print_line
    from toast_cli.cli.output.progress import TerminalReporter
    from toast_cli.evaluation.open_run import RunRequest
    from toast_cli.evaluation.predict import PredictionRequest, predict_images
    from toast_cli.evaluation.prediction_table import check_table_path
    from toast_cli.utils.errors import ToastError

    if out is not None:
        check_table_path(out)
    chosen = RunRequest(resolve_run_path(run), data_dir=data_dir, weights=weights, device=device, precision=precision)
    request = PredictionRequest(chosen, tuple(sources), split, top, probabilities, batch_size, workers, resume)
    with TemporaryDirectory() as folder:
        try:
            with TerminalReporter() as reporter:
                result = predict_images(request, out or Path(folder) / "predictions.jsonl", reporter)
        except KeyboardInterrupt:
            if out is not None:
                print_line("The rows so far are kept. To continue, run the same command with --resume.", err)
            raise
        if as_json:
            print_json(_build_record(result, out))
        else:
            _print_result(result, out)
    broken = result.summary.broken
    if len(broken) == result.summary.images:
        reasons = [f"{path}: {reason}" for path, reason in list(broken.items())[:3]]
        raise ToastError(f"None of the {len(broken):,} files could be read.", reasons, code="image.unreadable")


def _build_record(result: PredictionResult, out: Path | None) -> dict[str, Any]:
    """Return the result as JSON values, with every row if it is in no file."""
    from toast_cli.utils.table_files import read_table

    summary, names = result.summary, [column.name for column in result.table.columns]
    return {
        "run": str(result.table.run),
        "out": None if out is None else str(out),
        "images": summary.images,
        "unreadable": [{"path": path, "reason": reason} for path, reason in summary.broken.items()],
        "classes": dict(summary.labels.most_common()),
        "images_per_second": result.read / result.seconds if result.read else None,
        **(
            {}
            if out is not None
            else {
                "predictions": [
                    dict(zip(names, row, strict=True)) for row in read_table(result.table.path, result.table.columns)
                ]
            }
        ),
    }


def _print_result(result: PredictionResult, out: Path | None) -> None:
    """Print the first rows if they are in no file, the number of images of each class, and the unreadable files."""
    from itertools import islice

    from toast_cli.cli.output.console import err, print_line, print_table
    from toast_cli.utils.table_files import read_table

    summary, columns = result.summary, result.table.columns
    labelled = summary.images - len(summary.broken)
    if out is None and labelled:
        rows = (row for row in read_table(result.table.path, columns) if row[-1] is None)
        print_table(_build_rows_table(result, list(islice(rows, SHOWN_ROWS))))
        if labelled > SHOWN_ROWS:
            print_line(f"... and {labelled - SHOWN_ROWS:,} more. --out FILE writes all of them, --json prints them.")
    if summary.labels and (out is not None or labelled > SHOWN_ROWS):
        print_table(_build_counts_table(result))
    for path, reason in islice(summary.broken.items(), SHOWN_ROWS):
        print_line(f"Not read: {path}: {reason}", err)
    if len(summary.broken) > SHOWN_ROWS:
        print_line(f"... and {len(summary.broken) - SHOWN_ROWS:,} more files could not be read.", err)
    rate = f" ({result.read / result.seconds:,.1f} images per second)" if result.read else ""
    broken = f", {len(summary.broken):,} could not be read" if summary.broken else ""
    print_line(f"{labelled:,} of {summary.images:,} images labelled{broken}{rate}", err)
    if out is not None:
        print_line(f"Table: {out}")


def _build_rows_table(result: PredictionResult, rows: list[Row]) -> Table:
    """Return a table of rows without errors."""
    from rich.table import Table

    table = Table(title=f"Predictions of {result.table.run}")
    for heading in ("path", *result.answers.headings):
        table.add_column(heading)
    for row in rows:
        table.add_row(str(row[0]), *result.answers.summarize_cells(row[1:-1]))
    return table


def _build_counts_table(result: PredictionResult) -> Table:
    from rich.table import Table

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
