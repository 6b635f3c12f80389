"""`toast bench`: a whole suite of runs and its tables from one command, on one machine or many."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toast_cli.cli import options
from toast_cli.cli.groups import Verbs
from toast_cli.utils.errors import RUNTIME_FAILURE, UsageError

if TYPE_CHECKING:
    from toast_cli.bench.scheduler.jobs import Experiment
    from toast_cli.bench.scheduler.scheduler import Board

RUN = "run"
LEDGER = "TOAST_BENCH_LEDGER"
"""What names the ledger where a command line, which every run keeps, should not: its URL may hold a password."""


class Bench(Verbs):
    """The verbs of `toast bench`; what is none of them is the name of a suite to run."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the verb, or run the suite."""
        return super().resolve_command(ctx, args if args and args[0] in self.commands else [RUN, *args])


app = typer.Typer(
    cls=Bench, invoke_without_command=True, rich_markup_mode=None, subcommand_metavar="SUITE|COMMAND [ARGS]..."
)

Out = Annotated[Path | None, typer.Option(help="Folder of the experiment. [default: bench/SUITE, or the newest]")]
LedgerUrl = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        envvar=LEDGER,
        help="Where runs are kept track of: sqlite:///FILE, journal:FILE, postgresql://..., mysql://... "
        "[default: SQLite in the folder]",
    ),
]


@app.callback()
def bench(context: typer.Context) -> None:
    """Run a suite of experiments and fill its tables: 'toast bench demo', 'toast bench SUITE --help'."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(RUN, hidden=True, context_settings={"help_option_names": ["-h", "--help"]})
def run(
    suite: Annotated[str, typer.Argument(help="A built-in suite (see 'toast bench ls') or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields of every run's recipe.")
    ] = None,
    out: Out = None,
    ledger: LedgerUrl = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that work on it here, a GPU each if there are any.")
    ] = 1,
    dataset: Annotated[list[str] | None, typer.Option(help="Only this data set of the suite; may be repeated.")] = None,
    row: Annotated[list[str] | None, typer.Option(help="Only this row of the suite; may be repeated.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="This seed instead of the suite's; may be repeated.")] = None,
    init_from: Annotated[
        list[str] | None,
        typer.Option(help="Pre-tuned start of the rows that have one: [BACKBONE=]ARTIFACT; may be repeated."),
    ] = None,
    data_dir: options.DataDir = None,
    device: options.Device = None,
    precision: options.Precision = None,
    retry: Annotated[bool, typer.Option("--retry", help="Also try again what failed.")] = False,
    join: Annotated[
        bool, typer.Option("--join", help="Start working at once: no estimate before, no tables after.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show runs, time and device-hours; run nothing.")] = False,
    as_json: options.Json = False,
) -> None:
    """Run a suite: what is done is not done again, what was interrupted goes on. Start it as often as you like."""
    from toast_cli.bench.experiment_folder import ASKED, BENCHES, remember
    from toast_cli.bench.scheduler.jobs import Experiment, parse_starts
    from toast_cli.bench.suite import find

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "A worker of a suite is one process, and this one is of several that share a run.",
            what_to_do="Use --workers N; docs/bench.md has the torchrun line.",
        )
    name, found, text = find(suite)
    experiment = Experiment(
        name,
        found,
        tuple(overrides or ()),
        data_dir,
        device,
        precision,
        parse_starts(init_from or ()),
        tuple(dataset or ()),
        tuple(row or ()),
        tuple(seed or ()),
    )
    experiment.check()
    folder = out or BENCHES / name
    _need_optuna()

    from toast_cli.bench.scheduler.cost_estimate import costs
    from toast_cli.bench.scheduler.scheduler import Board
    from toast_cli.bench.scheduler.trials import Ledger, open_ledger
    from toast_cli.bench.scheduler.worker import work
    from toast_cli.bench.scheduler.worker_pool import supervise
    from toast_cli.cli.output.bench_tables import print_costs, print_results, progress_line
    from toast_cli.cli.output.console import err, say
    from toast_cli.cli.output.console import out as stdout
    from toast_cli.cli.output.progress import TerminalReporter

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    fresh = ledger is None and not (folder / "ledger.db").exists()
    board = Board(experiment, Ledger("memory:", folder) if dry_run and fresh else open_ledger(folder, ledger))
    if retry:
        board.retry()
    if not join:
        with TerminalReporter() as reporter:
            expected = costs(board, reporter)
        print_costs(expected, workers, stdout if dry_run else err, as_json and dry_run)
    for missing in dict.fromkeys(experiment.missing.values()):
        say(f"Left out: {missing}", err)
    if dry_run:
        return
    if not (join and (folder / ASKED).exists()):
        remember(folder, experiment, text, ledger)
    codes: list[int] = []
    try:
        if workers == 1:
            with TerminalReporter() as reporter:
                work(board, folder, reporter)
        else:
            say(f"{workers} workers; what they say is in {folder / 'workers'}", err)
            if ledger is not None:
                os.environ[LEDGER] = ledger
            joining = _joining(folder, suite, experiment)
            codes = supervise(workers, joining, folder / "workers", lambda: progress_line(board))
    except KeyboardInterrupt:
        say("Stopped, and kept what was done. The same command goes on with it.", err)
        raise
    if not join:
        print_results(board, folder, as_json)
    _say_overtaken(board)
    counts = board.counts()
    undone = sum(counts[state] for state in ("waiting", "running", "wanted")) if any(codes) else 0
    if undone:
        ended = f"The workers ended with {', '.join(map(str, codes))}: see {folder / 'workers'}."
        say(f"{undone} {'run is' if undone == 1 else 'runs are'} not done. {ended} Start the same command again.", err)
    if undone or counts["failed"]:
        raise typer.Exit(RUNTIME_FAILURE)


@app.command("ls")
def ls(as_json: options.Json = False) -> None:
    """List the built-in suites."""
    from rich import box
    from rich.table import Table

    from toast_cli.bench import suite
    from toast_cli.cli.output.console import print_json, print_table
    from toast_cli.recipe.builtin import suite_names

    rows = [{"name": name, "about": suite.about(name)} for name in suite_names()]
    if as_json:
        print_json(rows)
        return
    table = Table("name", "about", box=box.SIMPLE_HEAD)
    for each in rows:
        table.add_row(each["name"], each["about"])
    print_table(table)


@app.command("status")
def status(out: Out = None, ledger: LedgerUrl = None, as_json: options.Json = False) -> None:
    """Say how far an experiment has come: what runs where, what failed and why, and the time left."""
    board, folder = _opened(out, ledger)
    from toast_cli.cli.output.bench_tables import print_status

    print_status(board, folder, as_json)
    _say_overtaken(board)


@app.command("tables")
def tables(out: Out = None, ledger: LedgerUrl = None, as_json: options.Json = False) -> None:
    """Show and write the tables of an experiment, as far as it has come."""
    board, folder = _opened(out, ledger)
    from toast_cli.cli.output.bench_tables import print_results

    print_results(board, folder, as_json)
    _say_overtaken(board)


def _say_overtaken(board: Board) -> None:
    from toast_cli.cli.output.console import err, say

    for sentence in board.overtaken():
        say(sentence, err)


def _opened(out: Path | None, ledger: str | None) -> tuple[Board, Path]:
    from toast_cli.bench.experiment_folder import newest, recall

    folder = out or newest()
    experiment, known = recall(folder)
    _need_optuna()
    from toast_cli.bench.scheduler.scheduler import Board
    from toast_cli.bench.scheduler.trials import open_ledger

    return Board(experiment, open_ledger(folder, ledger or known)), folder


def _need_optuna() -> None:
    from importlib.util import find_spec

    if find_spec("optuna") is None:
        raise UsageError(
            "Suites are kept track of by Optuna, which is not installed.", what_to_do="pip install 'toast-cli[bench]'."
        )


def _joining(folder: Path, suite: str, experiment: Experiment) -> list[str]:
    """The arguments of a further worker of this experiment."""
    words = ["bench", suite, "--join", "--out", str(folder), *experiment.changes]
    options: list[tuple[str, Any]] = [
        ("--data-dir", experiment.data_dir),
        ("--device", experiment.device),
        ("--precision", experiment.precision),
        *(("--dataset", name) for name in experiment.datasets),
        *(("--row", name) for name in experiment.rows),
        *(("--seed", seed) for seed in experiment.seeds),
        *(("--init-from", f"{backbone}={path}" if backbone else path) for backbone, path in experiment.starts.items()),
    ]
    return [*words, *(word for name, value in options if value is not None for word in (name, str(value)))]
