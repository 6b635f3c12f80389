"""`toast predict`: label new images, or answer prompts, with a tuned model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from toast_cli.cli import options

if TYPE_CHECKING:
    from toast_cli.evaluation.open_run import OpenedRun

DEFAULT_MAP_FOLDER = Path("predictions")
"""Folder of the class maps of a segmentation model."""
TEXT_OPTIONS = ("max_new_tokens", "temperature", "top_p", "beams", "seed", "raw")
IMAGE_OPTIONS = ("top", "probabilities", "workers", "features", "features_pass")
"""Options that only models of texts, or of images, have."""


def run_predict(
    context: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Image files, folders, quoted patterns ('photos/*.jpg'), tables of paths, zip or tar files, "
            "shards:FOLDER, or data sets such as folder:PATH and hf:NAME; and fields of tables and data sets, such as "
            "dataset.image_column=file. Of a language model: files of prompts, one per line, or .json or .jsonl.",
            show_default=False,
        ),
    ],
    run: options.RunOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the table to this file: .csv, .json, .jsonl or .parquet. Of a segmentation model: the folder "
            "of class maps, overlays and their table. [default: print the table; of class maps: predictions]"
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="Write the pooled features of every image to this file: .safetensors or .parquet."),
    ] = None,
    features_pass: Annotated[
        Literal["last", "first"],
        typer.Option("--pass", help="With --features: pass of the model, last (as tuned) or first (before feedback)."),
    ] = "last",
    top: Annotated[int, typer.Option(min=1, help="Number of likely, or largest, classes of each image.")] = 5,
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities", help="Add a column with the probability, or the share of pixels, of every class."
        ),
    ] = False,
    split: Annotated[str | None, typer.Option(help="Split of data sets: train, val or test. [default: all]")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Keep what an interrupted or earlier command wrote, and predict only other files."
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images or prompts at a time. [default: as in the run's evaluation; 8 prompts]"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that decode images. [default: as in the run]")
    ] = None,
    max_new_tokens: options.MaxNewTokensOption = 256,
    temperature: options.TemperatureOption = 0.0,
    top_p: options.TopPOption = 1.0,
    beams: Annotated[int, typer.Option(min=1, help="Number of beams of an answer.")] = 1,
    seed: options.SamplingSeedOption = 0,
    raw: options.RawOption = False,
    weights: options.WeightsOption = None,
    data_dir: options.DataDirOption = None,
    device: options.DeviceOption = None,
    precision: options.PrecisionOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Label new images, or answer prompts, with a tuned model.

    Writes one row per image: path, class, probability and the next likely classes. A segmentation model also writes a
    class map and an overlay per image. A language model answers every prompt of a file. Unreadable files are listed at
    the end with the reason.
    """
    from tempfile import TemporaryDirectory

    from toast_cli.utils.lazy_imports import collect_garbage_less_often

    collect_garbage_less_often()

    from toast_cli.cli.find_run import resolve_run_path
    from toast_cli.cli.output.console import err, print_json, print_line
    from toast_cli.cli.output.predictions import build_record, print_result
    from toast_cli.cli.output.progress import TerminalReporter
    from toast_cli.evaluation.open_run import RunRequest, open_run
    from toast_cli.evaluation.prediction.feature_file import find_feature_format
    from toast_cli.evaluation.prediction.predict import PredictionRequest, write_predictions
    from toast_cli.model.generation import make_generation_settings
    from toast_cli.utils.errors import ToastError, UsageError

    if features is not None:
        find_feature_format(features)
    sources, overrides = options.split_dataset_overrides(sources)
    chosen = RunRequest(
        resolve_run_path(run),
        data_dir=data_dir,
        weights=weights,
        device=device,
        precision=precision,
        overrides=overrides,
    )
    opened = open_run(chosen)
    _check_options(context, opened)
    if out is None and features is None and opened.model.objective.target == "pixels":
        out = DEFAULT_MAP_FOLDER
    if resume and out is None and features is None:
        raise UsageError(
            "--resume continues a file, so it needs --out or --features.",
            what_to_do="Name it with --out.",
            code="cli.missing-option",
        )
    if opened.model.objective.target != "pixels":
        for file in filter(None, (out, features)):
            if file.exists() and not (resume or force):
                raise UsageError(
                    f"{file} exists already.",
                    what_to_do="Add --resume to predict only files that it lacks, or --force to replace it; or choose "
                    "another name.",
                    code="disk.already-exists",
                )
    request = PredictionRequest(
        chosen,
        tuple(sources),
        split,
        top,
        probabilities,
        batch_size,
        workers,
        resume,
        features,
        features_pass,
        make_generation_settings(max_new_tokens, temperature, top_p, beams),
        raw,
        seed,
    )
    with TemporaryDirectory() as folder:
        table = out if out is not None or features is not None else Path(folder) / "predictions.jsonl"
        try:
            with TerminalReporter() as reporter:
                result = write_predictions(opened, request, table, reporter)
        except KeyboardInterrupt:
            if out is not None or features is not None:
                print_line("The results so far are kept. To continue, run the same command with --resume.", err)
            raise
        if as_json:
            print_json(build_record(result, request, out))
        else:
            print_result(result, request, out)
    broken = result.summary.broken
    if len(broken) == result.summary.images:
        reasons = [f"{path}: {reason}" for path, reason in list(broken.items())[:3]]
        what = "prompts could be answered" if opened.model.objective.target == "text" else "files could be read"
        code = "text.no-answers" if opened.model.objective.target == "text" else "image.unreadable"
        raise ToastError(f"None of the {len(broken):,} {what}.", reasons, code=code)


def _check_options(context: typer.Context, run: OpenedRun) -> None:
    """Check that no option is given that the run's kind of model does not have.

    Raises:
        UsageError: There is one.
    """
    from toast_cli.utils.errors import UsageError

    is_text = run.model.objective.target == "text"
    flags = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    for name in IMAGE_OPTIONS if is_text else TEXT_OPTIONS:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(
                f"{flags[name]} is for models of {'images' if is_text else 'texts'}.",
                f"{run.request.path} is a {'language model' if is_text else 'model of images'}.",
                f"Leave {flags[name]} out.",
                code="cli.conflicting-options",
            )
    if context.params["features_pass"] != "last" and context.params["features"] is None:
        raise UsageError(
            "--pass selects the features, so it needs --features.",
            what_to_do="Name their file with --features.",
            code="cli.missing-option",
        )
