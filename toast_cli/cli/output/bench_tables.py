"""Output of `toast bench`: time estimates, status and tables."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from toast_cli.bench.results import ExperimentResults
from toast_cli.bench.scheduler.cost_estimate import StageCost, estimate_remaining_time
from toast_cli.bench.scheduler.scheduler import ExperimentScheduler
from toast_cli.bench.tables.build import build_tables
from toast_cli.bench.tables.model import Cell
from toast_cli.bench.tables.model import FilledTable as Filled
from toast_cli.bench.tables.render import write_experiment_page, write_tables
from toast_cli.cli.output.console import PIPED_WIDTH, SafeConsole, err, out, print_json, print_line
from toast_cli.utils.formatting import format_duration

STATE_ORDER = ("done", "pruned", "running", "waiting", "wanted", "failed")
_last_progress: list[str] = []


def print_costs(costs: Sequence[StageCost], workers: int, console: Console, as_json: bool) -> None:
    """Print the remaining runs, their estimated time, and how it is known."""
    if as_json:
        print_json([{**vars(cost), "total": cost.total} for cost in costs])
        return
    if not costs:
        print_line("Nothing is left to run.", console)
        return
    heads = ("data set", "row", "stage", "runs", "per run", "total", "source")
    table = Table(*heads, box=box.SIMPLE_HEAD)
    for cost in costs:
        each = "?" if cost.seconds is None else format_duration(cost.seconds)
        together = "?" if cost.seconds is None else format_duration(cost.total)
        cells = (cost.dataset, cost.row, cost.stage, f"{cost.runs:,}", each, together, cost.source)
        table.add_row(*cells)
    _widen_console(console).print(table)
    total, unknown = sum(cost.total for cost in costs), sum(cost.runs for cost in costs if cost.seconds is None)
    runs = sum(cost.runs for cost in costs)
    if unknown == runs:
        print_line(f"{runs:,} runs; no time estimate, since their data cannot be read here.", console)
        return
    print_line(
        f"{runs:,} runs, about {_format_device_time(total)}: {format_duration(total / workers)} with "
        + ("1 worker" if workers == 1 else f"{workers} workers, if each has a device of its own")
        + (f"; without {unknown:,} runs whose data cannot be read here" if unknown else "")
        + ".",
        console,
    )


def _format_device_time(seconds: float) -> str:
    return f"{seconds / 3600:.2f} device-hours" if seconds >= 360 else f"{format_duration(seconds)} of device time"


def print_progress(board: ExperimentScheduler) -> None:
    """Print the number of runs by state if it has changed."""
    line = _format_counts(board)
    if _last_progress != [line]:
        _last_progress[:] = [line]
        print_line(line, err)


def print_status(board: ExperimentScheduler, folder: Path, as_json: bool) -> None:
    """Print the state of an experiment, its running and failed runs, and the remaining time."""
    results = ExperimentResults(board, folder)
    running = []
    for where in board.iterate_stages():
        for job, standing in (board.get_stage_status(*where) or {}).items():
            if standing.state == "running" and standing.trial is not None:
                since = standing.trial.datetime_start or datetime.now()
                worker = standing.trial.user_attrs.get("worker", "unknown worker")
                running.append({"run": job.name, "worker": worker, "since": since.isoformat(" ", "seconds")})
    failed = [{"run": job.name, "reason": reason} for job, reason in results.list_failures()]
    counts = board.count_runs_by_state()
    left = estimate_remaining_time(board)
    if as_json:
        status = {"runs": dict(counts), "running": running, "failed": failed, "seconds_left": left and left.seconds}
        print_json({"experiment": board.experiment.name, "folder": str(folder), **status})
        return
    print_line(f"{board.experiment.name} in {folder}: {_format_counts(board)}")
    for run in running:
        print_line(f"running: {run['run']}, {run['worker']}, since {run['since']}")
    for run in failed:
        print_line(f"failed: {run['run']}: {run['reason']}")
    if failed:
        print_line("To run them again: toast bench SUITE --retry")
    if left is not None:
        worker = "1 worker" if left.workers <= 1 else f"{left.workers} workers"
        known = f"{left.alike:,} of {left.runs:,} runs from finished runs of the same row, data set and stage"
        rest = ", the others from the most similar runs" if left.alike < left.runs else ""
        idle = "; no worker is running" if not left.workers else ""
        print_line(f"About {format_duration(left.seconds)} left with {worker}{idle} ({known}{rest}).")


def print_results(board: ExperimentScheduler, folder: Path, as_json: bool) -> None:
    """Write the tables and the HTML page, and print the tables."""
    results = ExperimentResults(board, folder)
    written, page = write_tables(results, folder), write_experiment_page(results, folder)
    if as_json:
        print_json(
            {"folder": str(folder), "runs": list(results.iterate_runs()), "counts": dict(board.count_runs_by_state())}
        )
        return
    for table in build_tables(results):
        print_filled_table(table, _widen_console(out))
        for note in table.notes:
            print_line(note)
    for job, reason in results.list_failures():
        print_line(f"failed: {job.name}: {reason}", err)
    for missing in dict.fromkeys(board.experiment.missing.values()):
        print_line(f"not run: {missing}", err)
    print_line(f"Tables (Markdown, LaTeX, CSV): {written}")
    print_line(f"Page: {page}")


def print_filled_table(filled: Filled, console: Console) -> None:
    """Print a table, split into parts that fit the width of the console.

    Columns that share a heading stay together if they fit. The shared heading is in the first cell of each part.
    """
    console.print(Text(filled.title, style="italic"))
    for span, places in filled.iterate_headings():
        while places:
            count = len(places)
            while (
                count > 1 and _measure_width(_build_table_part(filled, span, places[:count]), console) > console.width
            ):
                count -= 1
            console.print(_build_table_part(filled, span, places[:count]))
            places = places[count:]


def _measure_width(table: Table, console: Console) -> int:
    """Return the width of a table in an unlimited console."""
    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum


def _build_table_part(filled: Filled, span: str, places: Sequence[int]) -> Table:
    table = Table(span, box=box.SIMPLE_HEAD)
    for place in places:
        table.add_column(filled.columns[place].heading, justify="right", no_wrap=True)
    for group, lines in filled.iterate_row_groups():
        if group:
            table.add_row(Text(group, style="italic"))
        for line in lines:
            table.add_row(line.name, *(_format_cell(line.cells[place]) for place in places))
            if line.paper and any(line.paper[place] for place in places):
                table.add_row("  paper", *(line.paper[place] for place in places), style="dim")
    return table


def _format_cell(cell: Cell) -> Text:
    return Text(str(cell), style="bold" if cell.best else "")


def _format_counts(board: ExperimentScheduler) -> str:
    counts = board.count_runs_by_state()
    return ", ".join(f"{counts[state]:,} {state}" for state in STATE_ORDER if counts[state]) or "no runs yet"


def _widen_console(console: Console) -> Console:
    """Return the console if it is a terminal, else one that is wide enough for every table."""
    return console if console.is_terminal else SafeConsole(stderr=console.stderr, width=PIPED_WIDTH)
