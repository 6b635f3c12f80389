"""What `toast bench` prints: the cost before, how far it has come, and the tables."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from toast_cli.bench.board import Board
from toast_cli.bench.estimate import Cost, in_words
from toast_cli.bench.page import write_page
from toast_cli.bench.table import Number, Results
from toast_cli.bench.table import Table as Filled
from toast_cli.bench.writing import write_all
from toast_cli.cli.console import PIPED_WIDTH, Screen, err, out, print_json, say

ORDER = ("done", "pruned", "running", "waiting", "wanted", "failed")
_last: list[str] = []


def print_costs(costs: Sequence[Cost], workers: int, console: Console, as_json: bool) -> None:
    """What is left to do, how long it takes, and how that is known."""
    if as_json:
        print_json([{**vars(cost), "total": cost.total} for cost in costs])
        return
    if not costs:
        say("Nothing is left to run.", console)
        return
    heads = ("data set", "row", "stage", "runs", "each", "together", "known from")
    table = Table(*heads, box=box.SIMPLE_HEAD)
    for cost in costs:
        each = "?" if cost.seconds is None else in_words(cost.seconds)
        together = "?" if cost.seconds is None else in_words(cost.total)
        cells = (cost.dataset, cost.row, cost.stage, f"{cost.runs:,}", each, together, cost.source)
        table.add_row(*map(escape, cells))
    _wide(console).print(table)
    total, unknown = sum(cost.total for cost in costs), sum(cost.runs for cost in costs if cost.seconds is None)
    runs = sum(cost.runs for cost in costs)
    say(
        f"{runs:,} runs, about {total / 3600:.2f} device-hours: {in_words(total / workers)} with "
        + ("1 worker" if workers == 1 else f"{workers} workers that have a device each")
        + (f"; {unknown:,} runs are not in it, their data cannot be read here" if unknown else "")
        + ".",
        console,
    )


def progress_line(board: Board) -> None:
    """Say how far everything has come, whenever that has changed."""
    line = _counted(board)
    if _last != [line]:
        _last[:] = [line]
        say(line, err)


def print_status(board: Board, folder: Path, as_json: bool) -> None:
    """How far an experiment has come."""
    results = Results(board, folder)
    running, seconds = [], []
    for where in board.stages():
        for job, standing in (board.stage(*where) or {}).items():
            if standing.state == "done":
                seconds.append(standing.record["seconds"])
            if standing.state == "running" and standing.trial is not None:
                since = standing.trial.datetime_start or datetime.now()
                worker = standing.trial.user_attrs.get("worker", "someone")
                running.append({"run": job.name, "worker": worker, "since": since.isoformat(" ", "seconds")})
    failed = [{"run": job.name, "reason": reason} for job, reason in results.failures()]
    counts = board.counts()
    left = sum(counts[state] for state in ("wanted", "waiting", "running"))
    remaining = sum(seconds) / len(seconds) * left / max(len(running), 1) if seconds else None
    if as_json:
        found = {"runs": dict(counts), "running": running, "failed": failed, "seconds_left": remaining}
        print_json({"experiment": board.experiment.name, "folder": str(folder), **found})
        return
    say(f"{board.experiment.name} in {folder}: {_counted(board)}")
    for run in running:
        say(f"running: {run['run']}, {run['worker']}, since {run['since']}")
    for run in failed:
        say(f"failed: {run['run']}: {run['reason']}")
    if failed:
        say("What failed is tried again with 'toast bench SUITE --retry'.")
    if remaining is not None and left:
        say(f"About {in_words(remaining)} left, at the mean time of what is done.")


def print_results(board: Board, folder: Path, as_json: bool) -> None:
    """Write the tables and the page, and print the tables."""
    results = Results(board, folder)
    written, page = write_all(results, folder), write_page(results, folder)
    if as_json:
        print_json({"folder": str(folder), "runs": list(results.runs()), "counts": dict(board.counts())})
        return
    for table in results.tables():
        _wide(out).print(_terminal(table))
        for note in table.notes:
            say(note)
    for job, reason in results.failures():
        say(f"failed: {job.name}: {reason}", err)
    for missing in dict.fromkeys(board.experiment.missing.values()):
        say(f"left out: {missing}", err)
    say(f"Tables (Markdown, LaTeX, CSV): {written}")
    say(f"Page: {page}")


def _terminal(filled: Filled) -> Table:
    table = Table("", *filled.columns, title=filled.title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
        column.no_wrap = True
    group = ""
    for line in filled.lines:
        if line.group != group:
            group = line.group
            table.add_row(f"[italic]{escape(group)}[/]")
        cells = [_marked(cell) for cell in line.cells]
        table.add_row(escape(line.name), *cells)
        if line.paper:
            table.add_row("  paper", *map(escape, line.paper), style="dim")
    return table


def _marked(cell: Any) -> str:
    text = escape(str(cell))
    return f"[bold]{text}[/]" if isinstance(cell, Number) and cell.best else text


def _counted(board: Board) -> str:
    counts = board.counts()
    return ", ".join(f"{counts[state]:,} {state}" for state in ORDER if counts[state]) or "nothing yet"


def _wide(console: Console) -> Console:
    """The console, or where nobody looks at it, one that cuts nothing."""
    return console if console.is_terminal else Screen(stderr=console.stderr, highlight=False, width=PIPED_WIDTH)
