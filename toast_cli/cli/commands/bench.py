"""The command `toast bench`: run a suite on one machine or many, and fill its tables."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toast_cli.cli import options
from toast_cli.cli.options import CommandGroup
from toast_cli.utils.errors import RUNTIME_FAILURE, UsageError

if TYPE_CHECKING:
    from toast_cli.bench.scheduler.jobs import Experiment
    from toast_cli.bench.scheduler.scheduler import ExperimentScheduler

RUN_COMMAND = "run"
LEDGER_VARIABLE = "TOAST_BENCH_LEDGER"
"""Environment variable for --ledger. Run folders record command lines, which should not contain a password."""


class BenchGroup(CommandGroup):
    """The subcommands of `toast bench`. Any other first argument is the suite to run."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Resolve a subcommand, or the hidden one that runs a suite."""
        return super().resolve_command(ctx, args if args and args[0] in self.commands else [RUN_COMMAND, *args])


app = typer.Typer(
    cls=BenchGroup, invoke_without_command=True, rich_markup_mode=None, subcommand_metavar="SUITE|COMMAND [ARGS]..."
)

OutOption = Annotated[Path | None, typer.Option(help="Experiment folder. [default: bench/SUITE, or the newest]")]
LedgerOption = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        envvar=LEDGER_VARIABLE,
        help="Where the state of runs is stored: sqlite:///FILE, journal:FILE, postgresql://..., mysql://... "
        "[default: SQLite in the experiment folder]",
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
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe fields for every run.")
    ] = None,
    out: OutOption = None,
    ledger: LedgerOption = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Worker processes on this machine; each uses one GPU if there are any.")
    ] = 1,
    dataset: Annotated[list[str] | None, typer.Option(help="Run only this data set; may be repeated.")] = None,
    row: Annotated[list[str] | None, typer.Option(help="Run only this row; may be repeated.")] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Use this seed instead of the suite's; may be repeated.")
    ] = None,
    init_from: Annotated[
        list[str] | None,
        typer.Option(help="Artifact from which pre-tuned rows start: [BACKBONE=]ARTIFACT; may be repeated."),
    ] = None,
    data_dir: options.DataDirOption = None,
    device: options.DeviceOption = None,
    precision: options.PrecisionOption = None,
    retry: Annotated[bool, typer.Option("--retry", help="Also run failed runs again.")] = False,
    join: Annotated[
        bool, typer.Option("--join", help="Start immediately, without an estimate before and tables after.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the runs, their time and device-hours, without running them.")
    ] = False,
    as_json: options.JsonOption = False,
) -> None:
    """Run a suite. Run the same command again to resume: finished runs are not repeated."""
    from toast_cli.bench.experiment_folder import DEFAULT_BENCH_DIR, EXPERIMENT_FILE, save_experiment
    from toast_cli.bench.scheduler.jobs import Experiment, parse_init_from
    from toast_cli.bench.suite import load_suite

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "'toast bench' cannot run as one of several distributed processes (WORLD_SIZE > 1).",
            what_to_do="Use --workers N, or the torchrun command in docs/how-to/bench-workers.md.",
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
    experiment.validate()
    folder = out or DEFAULT_BENCH_DIR / name
    _require_optuna()

    from toast_cli.bench.scheduler.cost_estimate import estimate_costs
    from toast_cli.bench.scheduler.recorded_data import check_recorded_data
    from toast_cli.bench.scheduler.scheduler import ExperimentScheduler
    from toast_cli.bench.scheduler.trials import Ledger, open_ledger
    from toast_cli.bench.scheduler.worker import run_worker
    from toast_cli.bench.scheduler.worker_pool import run_worker_pool
    from toast_cli.cli.output.bench_tables import print_costs, print_progress, print_results
    from toast_cli.cli.output.console import err, print_line
    from toast_cli.cli.output.console import out as stdout
    from toast_cli.cli.output.progress import TerminalReporter
    from toast_cli.training.interrupts import raise_on_stop_signals

    raise_on_stop_signals()
    fresh = ledger is None and not (folder / "ledger.db").exists()
    board = ExperimentScheduler(
        experiment, Ledger("memory:", folder) if dry_run and fresh else open_ledger(folder, ledger)
    )
    check_recorded_data(board, folder)
    if retry:
        board.enqueue_failed_runs()
    if not join:
        with TerminalReporter() as reporter:
            expected = estimate_costs(board, reporter)
        print_costs(expected, workers, stdout if dry_run else err, as_json and dry_run)
    for missing in dict.fromkeys(experiment.missing.values()):
        print_line(f"Not run: {missing}", err)
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
            print_line(f"{workers} workers; their logs are in {folder / 'workers'}", err)
            if ledger is not None:
                os.environ[LEDGER_VARIABLE] = ledger
            joining = _build_worker_arguments(folder, suite, experiment)
            codes = run_worker_pool(workers, joining, folder / "workers", lambda: print_progress(board))
    except KeyboardInterrupt:
        print_line("Stopped; progress is saved. Run the same command again to resume.", err)
        raise
    if not join:
        print_results(board, folder, as_json)
    _print_overtaken(board)
    counts = board.count_runs_by_state()
    unfinished = sum(counts[state] for state in ("waiting", "running", "wanted")) if any(codes) else 0
    if unfinished:
        exits = f"The workers exited with {', '.join(map(str, codes))}; their logs are in {folder / 'workers'}."
        runs = "run is" if unfinished == 1 else "runs are"
        print_line(f"{unfinished} {runs} not finished. {exits} Run the same command again.", err)
    if unfinished or counts["failed"]:
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
    """Show running and failed runs and the remaining time."""
    board, folder = _open_scheduler(out, ledger)
    from toast_cli.cli.output.bench_tables import print_status

    print_status(board, folder, as_json)
    _print_overtaken(board)


@app.command("tables")
def show_tables(out: OutOption = None, ledger: LedgerOption = None, as_json: options.JsonOption = False) -> None:
    """Print and write the tables of an experiment, also while it runs."""
    board, folder = _open_scheduler(out, ledger)
    from toast_cli.cli.output.bench_tables import print_results

    print_results(board, folder, as_json)
    _print_overtaken(board)


def _print_overtaken(board: ExperimentScheduler) -> None:
    from toast_cli.cli.output.console import err, print_line

    for sentence in board.list_overtaken_cells():
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
            "'toast bench' requires Optuna, which is not installed.",
            what_to_do='Run: pip install "optuna>=4.3"',
            code="cli.missing-package",
        )


def _build_worker_arguments(folder: Path, suite: str, experiment: Experiment) -> list[str]:
    """Return the arguments that start another worker of this experiment."""
    arguments = ["bench", suite, "--join", "--out", str(folder), *experiment.changes]
    options: list[tuple[str, Any]] = [
        ("--data-dir", experiment.data_dir),
        ("--device", experiment.device),
        ("--precision", experiment.precision),
        *(("--dataset", name) for name in experiment.datasets),
        *(("--row", name) for name in experiment.rows),
        *(("--seed", seed) for seed in experiment.seeds),
        *(("--init-from", f"{backbone}={path}" if backbone else path) for backbone, path in experiment.starts.items()),
    ]
    return [*arguments, *(text for name, value in options if value is not None for text in (name, str(value)))]
