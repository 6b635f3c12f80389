"""`toast tune`: adapt a frozen backbone to a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toast_cli.cli import options
from toast_cli.utils.names import quote_argument


def run_tune(
    context: typer.Context,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Recipe fields to override, e.g. method.rank=8, or images.on_error=skip to leave out unreadable "
            "images. 'toast recipes schema' lists all fields.",
        ),
    ] = None,
    recipe: options.RecipeOption = None,
    backbone: options.BackboneOption = None,
    weights: options.WeightsOption = None,
    dataset: options.DatasetOption = None,
    data_dir: options.DataDirOption = None,
    method: Annotated[
        str | None,
        typer.Option(
            autocompletion=options.complete_method,
            help="Method: toast, toast-lite, linear, full, lora, vpt or peft:KIND.",
        ),
    ] = None,
    init_from: options.InitFromOption = None,
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
    """Adapt a frozen backbone to a data set.

    The method is TOAST, TOAST-Lite or a baseline such as LoRA. Without arguments, runs TOAST on the demo data.
    With --init-from, classes are matched by name: put the images of old and new classes into one data set.

    'toast train' and 'toast fit' are other names of this command.
    """
    from toast_cli.cli.output.console import err, print_line
    from toast_cli.recipe.lookup import resolve_recipe

    training = options.collect_training_options(overrides, epochs=epochs, lr=lr, batch_size=batch_size, workers=workers)
    overrides, changes = overrides or [], list[str]()
    if resume is not None:
        changes = [*overrides, *(f"training.{name}={value}" for name, value in training.items())]
        options.check_resume_options(resume, context, changes)
        recipe, output_dir, overrides, training = str(resume / "recipe.yaml"), resume, [], {}
    resolved = resolve_recipe(
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
        training=training,
        overrides=overrides,
        start=options.read_start(init_from, overrides, weights),
    )
    resolved = options.apply_recorded_backbone(resolved, recipe, backbone)
    for message in [resolved.source, *resolved.messages]:
        print_line(message, err)
    if dry_run:
        from toast_cli.cli.output.dry_run import print_dry_run

        print_dry_run(resolved.recipe, as_json)
        return

    from toast_cli.cli.output.answers import format_written_files
    from toast_cli.cli.output.console import out, print_json
    from toast_cli.cli.output.progress import TerminalReporter
    from toast_cli.cli.output.run_summary import build_results_table, draw_range_test
    from toast_cli.evaluation.answer_files import write_answer_files
    from toast_cli.evaluation.training_figures import CURVES_FIGURE, TrainingFigures
    from toast_cli.training.evaluate import SplitAnswers
    from toast_cli.training.interrupts import raise_on_stop_signals
    from toast_cli.training.tune import tune_model

    raise_on_stop_signals()
    answers: list[SplitAnswers] = []
    with TerminalReporter() as reporter:
        folder, results = tune_model(
            resolved.recipe,
            output_dir,
            reporter,
            resume=resume is not None,
            overrides=changes,
            on_answers=answers.append,
            figures=TrainingFigures(),
        )
    draw_range_test(folder.path)
    if as_json:
        print_json({"run": str(folder.path), **results})
    else:
        title = f"{results['method']} on {results['data']}, {results['backbone']}, seed {results['seed']}"
        out.print(build_results_table(title, results))
        print_line(f"Run folder: {folder.path}")
        if (folder.path / CURVES_FIGURE).is_file():
            print_line(f"Curves: {folder.path / CURVES_FIGURE}")
    for each in answers:
        written = write_answer_files(each, folder.path)
        print_line(format_written_files(each, folder.path, written), err if as_json else out)
    if as_json:
        return
    place = quote_argument(folder.path)
    if results["test"] is not None and answers:
        print_line(f"The numbers in detail and the worst mistakes: toast eval --report --run {place}")
    if resolved.recipe.task.name == "language":
        talks = getattr(resolved.recipe.dataset, "template", None) is not None
        print_line(f"Ask it: toast generate {'--interactive' if talks else 'PROMPT'} --run {place}")
    else:
        print_line(f"Label new files: toast predict FILES --run {place}")
    if results["attention_can_be_drawn"] and results["test"] is not None:
        print_line(f"See its attention: toast visualize-attention --test-image 0 --run {place}")
