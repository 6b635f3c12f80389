"""`toast bench`: a whole suite of runs and its tables from one command, on one machine or many."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toast_cli.cli import options
from toast_cli.cli.groups import CommandGroup
from toast_cli.utils.errors import RUNTIME_FAILURE, UsageError

if TYPE_CHECKING:
    from toast_cli.bench.scheduler.jobs import Experiment
    from toast_cli.bench.scheduler.scheduler import ExperimentScheduler

RUN_COMMAND = "run"
LEDGER_VARIABLE = "TOAST_BENCH_LEDGER"
"""What names the ledger where a command line, which every run keeps, should not: its URL may hold a password."""


class BenchGroup(CommandGroup):
    """The verbs of `toast bench`; what is none of them is the name of a suite to run."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the verb, or run the suite."""
        return super().resolve_command(ctx, args if args and args[0] in self.commands else [RUN_COMMAND, *args])


app = typer.Typer(
    cls=BenchGroup, invoke_without_command=True, rich_markup_mode=None, subcommand_metavar="SUITE|COMMAND [ARGS]..."
)

OutOption = Annotated[Path | None, typer.Option(help="Folder of the experiment. [default: bench/SUITE, or the newest]")]
LedgerOption = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        envvar=LEDGER_VARIABLE,
        help="Where runs are kept track of: sqlite:///FILE, journal:FILE, postgresql://..., mysql://... "
        "[default: SQLite in the folder]",
    ),
]


@app.callback()
def bench(context: typer.Context) -> None:
    """Run a suite of experiments and fill its tables: 'toast bench demo', 'toast bench SUITE --help'."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(RUN_COMMAND, hidden=True, context_settings={"help_option_names": ["-h", "--help"]})
def run_suite(
    suite: Annotated[str, typer.Argument(help="A built-in suite (see 'toast bench ls') or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields of every run's recipe.")
    ] = None,
    out: OutOption = None,
    ledger: LedgerOption = None,
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
    data_dir: options.DataDirOption = None,
    device: options.DeviceOption = None,
    precision: options.PrecisionOption = None,
    retry: Annotated[bool, typer.Option("--retry", help="Also try again what failed.")] = False,
    join: Annotated[
        bool, typer.Option("--join", help="Start working at once: no estimate before, no tables after.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show runs, time and device-hours; run nothing.")] = False,
    as_json: options.JsonOption = False,
) -> None:
    """Run a suite: what is done is not done again, what was interrupted goes on. Start it as often as you like."""
    from toast_cli.bench.experiment_folder import DEFAULT_BENCH_DIR, EXPERIMENT_FILE, save_experiment
    from toast_cli.bench.scheduler.jobs import Experiment, parse_init_from
    from toast_cli.bench.suite import load_suite

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "A worker of a suite is one process, and this one is of several that share a run.",
            what_to_do="Use --workers N; docs/bench.md has the torchrun line.",
            code="bench.inside-torchrun",
        )
    name, found, text = load_suite(suite)
    experiment = Experiment(
        name,
        found,
        tuple(overrides or ()),
        data_dir,
        device,
        precision,
        parse_init_from(init_from or ()),
        tuple(dataset or ()),
        tuple(row or ()),
        tuple(seed or ()),
    )
    experiment.check()
    folder = out or DEFAULT_BENCH_DIR / name
    _require_optuna()

    from toast_cli.bench.scheduler.cost_estimate import estimate_costs
    from toast_cli.bench.scheduler.scheduler import ExperimentScheduler
    from toast_cli.bench.scheduler.trials import Ledger, open_ledger
    from toast_cli.bench.scheduler.worker import run_worker
    from toast_cli.bench.scheduler.worker_pool import run_worker_pool
    from toast_cli.cli.output.bench_tables import print_costs, print_progress, print_results
    from toast_cli.cli.output.console import err, print_line
    from toast_cli.cli.output.console import out as stdout
    from toast_cli.cli.output.progress import TerminalReporter

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    fresh = ledger is None and not (folder / "ledger.db").exists()
    board = ExperimentScheduler(
        experiment, Ledger("memory:", folder) if dry_run and fresh else open_ledger(folder, ledger)
    )
    if retry:
        board.retry()
    if not join:
        with TerminalReporter() as reporter:
            expected = estimate_costs(board, reporter)
        print_costs(expected, workers, stdout if dry_run else err, as_json and dry_run)
    for missing in dict.fromkeys(experiment.missing.values()):
        print_line(f"Left out: {missing}", err)
    if dry_run:
        return
    if not (join and (folder / EXPERIMENT_FILE).exists()):
        save_experiment(folder, experiment, text, ledger)
    codes: list[int] = []
    try:
        if workers == 1:
            with TerminalReporter() as reporter:
                run_worker(board, folder, reporter)
        else:
            print_line(f"{workers} workers; what they say is in {folder / 'workers'}", err)
            if ledger is not None:
                os.environ[LEDGER_VARIABLE] = ledger
            joining = _build_worker_arguments(folder, suite, experiment)
            codes = run_worker_pool(workers, joining, folder / "workers", lambda: print_progress(board))
    except KeyboardInterrupt:
        print_line("Stopped, and kept what was done. The same command goes on with it.", err)
        raise
    if not join:
        print_results(board, folder, as_json)
    _print_overtaken(board)
    counts = board.counts()
    undone = sum(counts[state] for state in ("waiting", "running", "wanted")) if any(codes) else 0
    if undone:
        ended = f"The workers ended with {', '.join(map(str, codes))}: see {folder / 'workers'}."
        print_line(
            f"{undone} {'run is' if undone == 1 else 'runs are'} not done. {ended} Start the same command again.", err
        )
    if undone or counts["failed"]:
        raise typer.Exit(RUNTIME_FAILURE)


@app.command("ls")
def print_suites(as_json: options.JsonOption = False) -> None:
    """List the built-in suites."""
    from rich import box
    from rich.table import Table

    from toast_cli.bench import suite
    from toast_cli.cli.output.console import print_json, print_table
    from toast_cli.recipe.builtin import list_suites

    rows = [{"name": name, "about": suite.read_suite_summary(name)} for name in list_suites()]
    if as_json:
        print_json(rows)
        return
    table = Table("name", "about", box=box.SIMPLE_HEAD)
    for each in rows:
        table.add_row(each["name"], each["about"])
    print_table(table)


@app.command("status")
def show_status(out: OutOption = None, ledger: LedgerOption = None, as_json: options.JsonOption = False) -> None:
    """Say how far an experiment has come: what runs where, what failed and why, and the time left."""
    board, folder = _open_scheduler(out, ledger)
    from toast_cli.cli.output.bench_tables import print_status

    print_status(board, folder, as_json)
    _print_overtaken(board)


@app.command("tables")
def show_tables(out: OutOption = None, ledger: LedgerOption = None, as_json: options.JsonOption = False) -> None:
    """Show and write the tables of an experiment, as far as it has come."""
    board, folder = _open_scheduler(out, ledger)
    from toast_cli.cli.output.bench_tables import print_results

    print_results(board, folder, as_json)
    _print_overtaken(board)


def _print_overtaken(board: ExperimentScheduler) -> None:
    from toast_cli.cli.output.console import err, print_line

    for sentence in board.overtaken():
        print_line(sentence, err)


def _open_scheduler(out: Path | None, ledger: str | None) -> tuple[ExperimentScheduler, Path]:
    from toast_cli.bench.experiment_folder import find_newest_experiment, load_experiment

    folder = out or find_newest_experiment()
    experiment, known = load_experiment(folder)
    _require_optuna()
    from toast_cli.bench.scheduler.scheduler import ExperimentScheduler
    from toast_cli.bench.scheduler.trials import open_ledger

    return ExperimentScheduler(experiment, open_ledger(folder, ledger or known)), folder


def _require_optuna() -> None:
    from importlib.util import find_spec

    if find_spec("optuna") is None:
        raise UsageError(
            "Suites are kept track of by Optuna, which is not installed.",
            what_to_do='pip install "optuna>=4.3".',
            code="bench.missing-package",
        )


def _build_worker_arguments(folder: Path, suite: str, experiment: Experiment) -> list[str]:
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
