"""`toast tune`: adapt a frozen backbone to a data set."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from toast_cli.cli import options


def tune(
    context: typer.Context,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Any field of the recipe, dotted: training.lr=0.02 method.rank=8."
        ),
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Built-in recipe (see 'toast recipes ls') or a YAML file.")] = None,
    backbone: options.Backbone = None,
    weights: options.Weights = None,
    dataset: options.Dataset = None,
    data_dir: options.DataDir = None,
    method: Annotated[str | None, typer.Option(help="toast, toast-lite, linear, full, lora, vpt or peft:KIND.")] = None,
    init_from: options.InitFrom = None,
    output_dir: Annotated[Path | None, typer.Option(help="The run's folder. [default: a new one in runs/]")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    device: options.Device = None,
    precision: options.Precision = None,
    resume: options.Resume = None,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Adapt a backbone to a data set: TOAST, TOAST-Lite or a baseline. Without arguments, runs the demo."""
    from toast_cli.cli.output.console import err, say
    from toast_cli.recipe.resolve import resolve

    if resume is not None:
        options.check_resume(resume, context)
        recipe, output_dir = str(resume / "recipe.yaml"), resume
    resolved = resolve(
        recipe=recipe,
        backbone=backbone,
        weights=weights,
        dataset=dataset,
        data_dir=data_dir,
        method=method,
        seed=seed,
        device=device,
        precision=precision,
        init_from=init_from,
        overrides=overrides or [],
    )
    resolved = options.with_recorded_backbone(resolved, recipe, backbone)
    for message in [resolved.source, *resolved.messages]:
        say(message, err)
    if dry_run:
        from toast_cli.cli.output.dry_run import show

        show(resolved.recipe, as_json)
        return

    from toast_cli.cli.output.console import out, print_json
    from toast_cli.cli.output.progress import TerminalReporter
    from toast_cli.cli.output.tables import results_table
    from toast_cli.training.tune import tune as run

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # before and after training, which waits for a step
    with TerminalReporter() as reporter:
        folder, results = run(resolved.recipe, output_dir, reporter, resume=resume is not None)
    if as_json:
        print_json({"run": str(folder.path), **results})
        return
    title = f"{results['method']} on {results['dataset']}, {results['backbone']}, seed {results['seed']}"
    out.print(results_table(title, results))
    say(f"Run folder: {folder.path}")
    if results["attention_can_be_drawn"] and results["test"] is not None:
        say(f"Look: toast visualize-attention --test-image 0 --run {folder.path}")
