"""`toast runs`: list, show and remove runs."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toast_cli.cli import options
from toast_cli.cli.options import CommandGroup

if TYPE_CHECKING:
    from toast_cli.storage.run_records import RunRecord

DEFAULT_ROOT = Path("runs")

app = typer.Typer(cls=CommandGroup, invoke_without_command=True, rich_markup_mode=None)

RootOption = Annotated[
    Path, typer.Option(help="Folder that holds the runs, e.g. the one around --output-dir of 'toast tune'.")
]


def complete_run(incomplete: str) -> list[str]:
    """Return the names in the default folder of runs that begin with what was typed."""
    found = DEFAULT_ROOT.iterdir() if DEFAULT_ROOT.is_dir() else ()
    return sorted(path.name for path in found if path.is_dir() and path.name.startswith(incomplete))


@app.callback()
def runs(context: typer.Context) -> None:
    """List, show and remove runs."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("ls")
def print_runs(root: RootOption = DEFAULT_ROOT, as_json: options.JsonOption = False) -> None:
    """List the runs, the newest first, with their data, method, numbers, age and size.

    Runs with an --output-dir outside of runs/ are listed with --root.
    """
    from toast_cli.cli.output.console import print_json, print_line, print_table
    from toast_cli.storage.run_records import list_runs

    found = list_runs(root)
    if as_json:
        print_json([_make_json(run) for run in found])
        return
    if not found:
        print_line(f"No runs in {root}. Runs with an --output-dir elsewhere: toast runs ls --root FOLDER")
        return

    from rich import box
    from rich.table import Table

    from toast_cli.utils.formatting import format_bytes
    from toast_cli.utils.names import escape_newlines

    heads = ("name", "data", "backbone", "method", "state", "validation", "test", "age", "size")
    table = Table(*heads, box=box.SIMPLE_HEAD)
    for run in found:
        numbers = [_format_metrics(run, split) for split in ("validation", "test")]
        age, size = _format_age(time.time() - run.changed), format_bytes(run.size)
        cells = [run.path.name, run.data, run.backbone, run.method, _format_state(run), *numbers, age, size]
        table.add_row(*map(escape_newlines, cells))
    print_table(table)


@app.command("show")
def show_run(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="Name or folder of a run. [default: newest run]", autocompletion=complete_run
        ),
    ] = None,
    root: RootOption = DEFAULT_ROOT,
    as_json: options.JsonOption = False,
) -> None:
    """Show one run: its settings, state and results."""
    from toast_cli.cli.output.console import out, print_json, print_line
    from toast_cli.storage.run_records import RECIPE_FILE, list_runs, read_results, read_run
    from toast_cli.utils.errors import UsageError
    from toast_cli.utils.formatting import format_bytes

    newest = next(iter(list_runs(root)), None) if name is None else read_run(_find_run(name, root))
    if newest is None:
        raise UsageError(
            f"There is no run in {root}.",
            what_to_do="Start one with toast tune, or name another folder with --root.",
            code="run.none-found",
        )
    run = newest
    results = None if run.state == "damaged" else read_results(run.path)
    if as_json:
        print_json({**_make_json(run), "results": results})
        return
    print_line(f"Run folder: {run.path}")
    print_line(f"State: {_format_state(run)}" + (f" ({run.damage})" if run.damage else ""))
    print_line(f"Written to: {_format_age(time.time() - run.changed)} ago, {format_bytes(run.size)}")
    if run.state == "damaged":
        return
    print_line(f"Data: {run.data}, backbone: {run.backbone}, method: {run.method}, seed: {run.seed}")
    print_line(f"All settings: {run.path / RECIPE_FILE}")
    if results is None:
        for split in run.metrics:
            print_line(f"{split.capitalize()}: {_format_metrics(run, split)}")
        return
    from toast_cli.cli.output.run_summary import build_pretuning_table, build_results_table

    title = f"{run.method} on {run.data}, {run.backbone}"
    out.print(
        build_pretuning_table(title, results) if "before" in results else build_results_table(title, results),
    )


@app.command("rm")
def remove_runs(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="Names or folders of runs.", autocompletion=complete_run)
    ],
    root: RootOption = DEFAULT_ROOT,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete runs with everything in their folders.

    Asks for confirmation. Refuses a run that is in use, and a folder that is not a run.
    """
    from toast_cli.cli.output.console import err, print_line
    from toast_cli.storage.run_records import read_run, remove_run
    from toast_cli.utils.errors import ToastError, UsageError
    from toast_cli.utils.formatting import format_bytes

    # All are checked before the first is deleted.
    paths = {path.resolve(): path for path in (_find_run(name, root) for name in names)}
    found = [read_run(path) for path in paths.values()]
    for run in found:
        if run.state == "running":
            raise ToastError(
                f"Another process is using the run {run.path}.",
                "Nothing was deleted.",
                "Wait until it has finished, or stop it.",
                code="run.locked",
            )
    if not yes:
        for run in found:
            print_line(f"{run.path}: {run.data} {run.method}, {_format_state(run)}, {format_bytes(run.size)}", err)
        count = "this run" if len(found) == 1 else f"these {len(found)} runs"
        try:
            confirmed = typer.confirm(f"Delete {count}?", err=True)
        except typer.Abort:
            if sys.stdin.isatty():
                raise
            raise UsageError(
                f"Deleting {count} needs a confirmation, and there is no terminal to ask on.",
                what_to_do="Add --yes.",
                code="cli.missing-option",
            ) from None
        if not confirmed:
            print_line("Nothing was deleted.", err)
            raise typer.Exit(1)
    for run in found:
        remove_run(run.path)
        print_line(f"Deleted {run.path} ({format_bytes(run.size)}).")


def _find_run(name: str, root: Path) -> Path:
    """Return the folder of the run with this name in `root`, or at this path.

    Raises:
        UsageError: There is none.
    """
    from toast_cli.storage.run_records import is_run_folder, require_run_folder
    from toast_cli.utils.errors import UsageError, did_you_mean

    for path in (root / name, Path(name)):
        if path.is_dir():
            require_run_folder(path)
            return path
    known = [path.name for path in root.iterdir() if path.is_dir() and is_run_folder(path)] if root.is_dir() else []
    raise UsageError(
        f"There is no run '{name}' in {root}.",
        what_to_do=(f"{did_you_mean(name, known)} " if known else "") + "Runs elsewhere are found with --root.",
        code="run.unknown-run",
    )


def _make_json(run: RunRecord) -> dict[str, Any]:
    from dataclasses import asdict

    return {"name": run.path.name, **asdict(run), "path": str(run.path)}


def _format_state(run: RunRecord) -> str:
    if run.state in ("finished", "damaged") or run.epochs is None:
        return run.state
    return f"{run.state}, epoch {run.epoch or 0} of {run.epochs}"


def _format_metrics(run: RunRecord, split: str) -> str:
    """Format the main metric of a split: the task's own, else the first that is not its loss."""
    from toast_cli.cli.output.run_summary import format_headline

    metrics = run.metrics.get(split, {})
    others = (f"{name.replace('_', ' ')} {value:.4g}" for name, value in metrics.items() if name != "loss")
    return format_headline(dict(metrics)) or next(others, "")


def _format_age(seconds: float) -> str:
    """Format a duration in its largest unit: 30 s, 5 min, 3 h, 12 d."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
