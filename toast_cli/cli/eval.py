"""`toast eval`: measure a run, an adapter or an exported file on a split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toast_cli.cli import options


def evaluate(
    run: options.Run = None,
    dataset: options.Dataset = None,
    data_dir: options.DataDir = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    weights: options.Weights = None,
    device: options.Device = None,
    precision: options.Precision = None,
    out: Annotated[Path | None, typer.Option(help="Also write the numbers to this JSON file.")] = None,
    as_json: options.Json = False,
) -> None:
    """Measure a run on a split of its own data set, or of another one with the same classes."""
    from toast_cli.cli.console import out as stdout
    from toast_cli.cli.console import print_json
    from toast_cli.cli.progress import TerminalReporter
    from toast_cli.cli.runs import chosen_run
    from toast_cli.cli.tables import results_table
    from toast_cli.storage.atomic import write_json
    from toast_cli.training.measuring import measure

    path = chosen_run(run)
    with TerminalReporter() as reporter:
        results = measure(path, dataset, data_dir, split, weights, device, precision, reporter)
    if out is not None:
        write_json(out, results)
    if as_json:
        print_json(results)
    else:
        stdout.print(results_table(f"{path}: {results['method']} on {results['dataset']}", results))
