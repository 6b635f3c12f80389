"""`toast pretune`: pre-tune the feedback path of a backbone, once for all later runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toast_cli.cli import options
from toast_cli.utils.names import quote_argument


def run_pretune(
    context: typer.Context,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Recipe fields to override, e.g. pretuning.reconstruction=0.1."),
    ] = None,
    recipe: options.RecipeOption = None,
    backbone: options.BackboneOption = None,
    weights: options.WeightsOption = None,
    dataset: options.DatasetOption = None,
    data_dir: options.DataDirOption = None,
    method: Annotated[str | None, typer.Option(help="Method to pre-tune; only toast is supported.")] = None,
    least_squares: Annotated[
        bool, typer.Option("--least-squares", help="Solve for the feedback path in closed form, without training.")
    ] = False,
    init_from: options.ArtifactOption = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Output folder of the run. [default: a new folder in runs/]")
    ] = None,
    epochs: options.EpochsOption = None,
    lr: options.LearningRateOption = None,
    batch_size: options.BatchSizeOption = None,
    workers: options.WorkersOption = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.")] = None,
    device: options.DeviceOption = None,
    precision: options.PrecisionOption = None,
    resume: options.ResumeOption = None,
    dry_run: options.DryRunOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Pre-tune TOAST's feedback path on general data.

    The result initializes later runs with --init-from. Without arguments, uses the demo data.
    """
    from toast_cli.cli.output.console import err, out, print_json, print_line
    from toast_cli.recipe.lookup import PRETUNE_FOLDER, resolve_recipe

    training = options.collect_training_options(overrides, epochs=epochs, lr=lr, batch_size=batch_size, workers=workers)
    overrides, changes = overrides or [], list[str]()
    if resume is not None:
        changes = [*overrides, *(f"training.{name}={value}" for name, value in training.items())]
        options.check_resume_options(resume, context, changes)
        recipe, output_dir, overrides, training = str(resume / "recipe.yaml"), resume, [], {}
    # The recipe 'pretune/toast' is for the demo data.
    chosen = recipe or (f"{PRETUNE_FOLDER}/general" if dataset is not None else None)
    resolved = resolve_recipe(
        recipe=chosen,
        backbone=backbone,
        weights=weights,
        dataset=dataset,
        data_dir=data_dir,
        method=method,
        seed=seed,
        device=device,
        precision=precision,
        init_from=init_from,
        training=training,
        demo=PRETUNE_FOLDER,
        overrides=[*(["method.start=least-squares"] if least_squares else []), *overrides],
    )
    resolved = options.apply_recorded_backbone(resolved, recipe, backbone)
    for message in [resolved.source, *resolved.messages]:
        print_line(message, err)
    if dry_run:
        from toast_cli.cli.output.dry_run import print_dry_run
        from toast_cli.training.pretune import requires_labels, to_pretuning_recipe

        shown = to_pretuning_recipe(resolved.recipe, gradient=not least_squares)
        labels = requires_labels(shown, gradient=not least_squares)
        print_dry_run(shown, as_json, labels=labels)
        return

    from toast_cli.cli.output.progress import TerminalReporter
    from toast_cli.cli.output.run_summary import build_pretuning_table, draw_range_test
    from toast_cli.evaluation.training_figures import TrainingFigures
    from toast_cli.training.interrupts import raise_on_stop_signals
    from toast_cli.training.pretune import pretune_model

    raise_on_stop_signals()
    with TerminalReporter() as reporter:
        folder, results = pretune_model(
            resolved.recipe,
            output_dir,
            reporter,
            gradient=not least_squares,
            resume=resume is not None,
            overrides=changes,
            figures=TrainingFigures(),
        )
    draw_range_test(folder.path)
    if as_json:
        print_json({"run": str(folder.path), **results})
        return
    out.print(build_pretuning_table(f"{results['backbone']} on {results['data']}", results))
    print_line(f"Artifact: {folder.path / 'artifact'}")
    given = resolved.recipe.backbone.weights
    same = f" --weights {quote_argument(given)}" if given is not None else ""
    backbone, artifact = quote_argument(results["backbone"]), quote_argument(folder.path)
    print_line(f"To use it: toast tune --backbone {backbone}{same} --dataset DATA --init-from {artifact}")
