"""`toast eval`: measure a run on a split, or where it looks there, or have its answers judged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toast_cli.cli import options


def run_eval(
    run: options.RunsOption = None,
    dataset: options.DatasetOption = None,
    data_dir: options.DataDirOption = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    weights: options.WeightsOption = None,
    device: options.DeviceOption = None,
    precision: options.PrecisionOption = None,
    attention: Annotated[
        bool,
        typer.Option(
            "--attention", help="Measure where it looks: against masks where there are any, in curves, between passes."
        ),
    ] = False,
    alpha: options.AlphaOption = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Measure at strengths of the feedback from 0 to 2.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="--attention, --sweep: only so many images, drawn by the run's seed.")
    ] = None,
    curve_images: Annotated[
        int, typer.Option(min=0, help="--attention: images for the deletion and insertion curves; 0 leaves them out.")
    ] = 32,
    layer: Annotated[int, typer.Option(help="--attention, --sweep: layer whose map is measured; -1 is the last.")] = -1,
    head: options.HeadOption = "mean",
    evaluation: Annotated[
        str | None,
        typer.Option(
            help="Of a model that labels pixels: slide (a window over the image in its own shape) or whole (the image "
            "squeezed to the input size). [default: the run's own]"
        ),
    ] = None,
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
    out: Annotated[
        Path | None,
        typer.Option(help="Also write the numbers to this JSON file; tables and curves of --attention go beside it."),
    ] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Measure a run on a split of its own data set, or of another one with the same classes; or judge its answers."""
    from toast_cli.cli.find_run import resolve_run_path
    from toast_cli.utils.errors import UsageError

    if judge is not None and dataset is not None:
        raise UsageError(
            "--judge and --dataset exclude each other: the questions are the data.", code="cli.conflicting-options"
        )
    if judge is None and run is not None and len(run) > 1:
        raise UsageError(
            "Several runs are taken with --judge alone.",
            what_to_do="'toast compare RUN RUN ...' measures several.",
            code="cli.too-many-runs",
        )
    if sum((attention, sweep, judge is not None)) > 1 or (sweep and alpha is not None):
        raise UsageError(
            "Of --attention, --sweep and --judge, choose one; --sweep sets --alpha itself.",
            code="cli.conflicting-options",
        )
    if evaluation is not None and (attention or sweep or judge is not None):
        raise UsageError(
            "--evaluation goes with plain measuring.",
            "What is looked at is the input's own size.",
            code="cli.conflicting-options",
        )
    if limit is not None and not (attention or sweep):
        raise UsageError(
            "--limit goes with --attention or --sweep.",
            "Accuracy is told of the whole split.",
            code="cli.missing-option",
        )

    from toast_cli.cli.commands.eval_attention import run_attention_eval, run_strength_sweep
    from toast_cli.cli.commands.eval_judge import build_judge_table, run_judge_eval
    from toast_cli.cli.output.console import print_json, print_table
    from toast_cli.cli.output.progress import TerminalReporter
    from toast_cli.cli.output.tables import build_results_table
    from toast_cli.evaluation.attention_evaluation import AttentionEvalRequest
    from toast_cli.evaluation.evaluate_run import evaluate_run
    from toast_cli.evaluation.llm_judge import Judge
    from toast_cli.evaluation.open_run import RunRequest
    from toast_cli.utils.files import write_json

    runs = run or [resolve_run_path(None)]
    if judge is not None:
        results = run_judge_eval(runs, judge, Judge(judge_model, judge_url), weights, device, max_new_tokens, seed)
        table = build_judge_table(results, judge_model)
    elif attention or sweep:
        request = AttentionEvalRequest(
            runs[0], dataset, data_dir, split, weights, device, precision, alpha, limit, layer,
            options.parse_head(head), curve_images,
        )  # fmt: skip
        results, table = (run_strength_sweep if sweep else run_attention_eval)(request, out)
    else:
        with TerminalReporter() as reporter:
            run_request = RunRequest(runs[0], dataset, data_dir, split, weights, device, precision, alpha)
            results = evaluate_run(run_request, reporter, evaluation)
        table = build_results_table(f"{runs[0]}: {results['method']} on {results['dataset']}", results)
    if out is not None:
        write_json(out, results)
    if as_json:
        print_json(results)
    else:
        print_table(table)
