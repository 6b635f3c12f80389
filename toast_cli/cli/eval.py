"""`toast eval`: measure a run, an adapter or an exported file on a split, or have its answers judged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toast_cli.cli import options


def evaluate(
    run: options.Runs = None,
    dataset: options.Dataset = None,
    data_dir: options.DataDir = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    weights: options.Weights = None,
    device: options.Device = None,
    precision: options.Precision = None,
    judge: Annotated[
        Path | None,
        typer.Option(help="Answer these questions (JSON lines: question_id, category, text) and have them scored."),
    ] = None,
    judge_model: Annotated[str, typer.Option(help="Model that scores.")] = "gpt-4",
    judge_url: Annotated[
        str | None, typer.Option(help="Any endpoint that speaks OpenAI's protocol. [default: OpenAI's]")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer to a judged question.")] = 512,
    seed: Annotated[int, typer.Option(help="Seed of the answers that are judged.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the numbers to this JSON file.")] = None,
    as_json: options.Json = False,
) -> None:
    """Measure a run on a split of its own data set, or of another one with the same classes; or judge its answers."""
    from toast_cli.cli.runs import chosen_run
    from toast_cli.errors import UsageError

    if judge is not None and dataset is not None:
        raise UsageError("--judge and --dataset exclude each other: the questions are the data.")
    if judge is None and run is not None and len(run) > 1:
        raise UsageError("Several runs are compared with --judge alone.", what_to_do="Name one --run.")

    from toast_cli.cli.console import out as stdout
    from toast_cli.cli.console import print_json
    from toast_cli.cli.judge import judge_table, judged
    from toast_cli.cli.progress import TerminalReporter
    from toast_cli.cli.tables import results_table
    from toast_cli.judging import Judge
    from toast_cli.storage.atomic import write_json
    from toast_cli.training.measuring import measure

    runs = run or [chosen_run(None)]
    if judge is not None:
        results = judged(runs, judge, Judge(judge_model, judge_url), weights, device, max_new_tokens, seed)
        table = judge_table(results, judge_model)
    else:
        with TerminalReporter() as reporter:
            results = measure(runs[0], dataset, data_dir, split, weights, device, precision, reporter)
        table = results_table(f"{runs[0]}: {results['method']} on {results['dataset']}", results)
    if out is not None:
        write_json(out, results)
    if as_json:
        print_json(results)
    else:
        stdout.print(table)
