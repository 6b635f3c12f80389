"""`toast compare`: compare runs on the same images or texts in a table, a figure and an HTML page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from toast_cli.cli import options


def run_compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="Two or more run folders, adapter folders or exported files; and with --dataset, fields of that data "
            "set, e.g. dataset.image_column=file.",
        ),
    ],
    dataset: options.DatasetOption = None,
    data_dir: options.DataDirOption = None,
    split: Annotated[
        str | None,
        typer.Option(help="Data split: train, val or test. [default: test; of texts given by --dataset, all of them]"),
    ] = None,
    weights: options.WeightsOption = None,
    device: options.DeviceOption = None,
    precision: options.PrecisionOption = None,
    layer: Annotated[int, typer.Option(help="Layer whose attention is shown; -1 is the last one.")] = -1,
    head: options.HeadOption = "mean",
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Evaluate a random subset of this many images or texts (seed of the first run)."),
    ] = None,
    images: Annotated[
        int,
        typer.Option(min=1, help="Number of images or texts to show, starting with those the runs disagree on most."),
    ] = 6,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Output folder for report.html, comparison.json, and comparison.png or losses.csv. [default: "
            "comparison/, or a numbered folder if it holds another comparison]"
        ),
    ] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Compare runs on the same images or texts.

    Reports every difference with a confidence interval, and shows the images or texts on which the runs disagree most.
    Language models are compared by their loss on each text.
    """
    from toast_cli.cli.output.comparison import (
        build_comparison_tables,
        build_json_report,
        build_page_context,
        describe_all_maps,
        hash_comparison,
    )
    from toast_cli.cli.output.console import err, print_json, print_line, print_table
    from toast_cli.cli.output.progress import TerminalReporter
    from toast_cli.cli.output.text_comparison import build_text_tables, write_text_comparison
    from toast_cli.evaluation.attention_evaluation import AttentionEvalRequest
    from toast_cli.evaluation.compare_runs import build_comparison
    from toast_cli.evaluation.open_run import DEFAULT_SPLIT
    from toast_cli.evaluation.texts.comparison import are_language_runs, build_text_comparison
    from toast_cli.utils.files import write_json, write_text
    from toast_cli.utils.formatting import render_template
    from toast_cli.visualize.figure import draw_figure
    from toast_cli.visualize.figure_output import save_figure
    from toast_cli.visualize.figure_panels import build_comparison_rows
    from toast_cli.visualize.report import build_report_images
    from toast_cli.visualize.save_figures import SOURCE_DIGEST_KEY, find_free_name
    from toast_cli.visualize.view import compute_image_view

    paths, overrides = options.split_dataset_overrides(runs)
    given_split, split = split, split or "test"
    attention_head = options.parse_head(head)
    requests = [
        AttentionEvalRequest(
            Path(path),
            dataset,
            data_dir,
            split,
            weights,
            device,
            precision,
            limit=limit,
            layer=layer,
            head=attention_head,
            overrides=overrides,
        )
        for path in paths
    ]
    if are_language_runs(requests):
        with TerminalReporter() as reporter:
            requests = [replace(request, split=given_split or DEFAULT_SPLIT) for request in requests]
            compared = build_text_comparison(requests, reporter)
        folder, numbers = write_text_comparison(compared, out, images)
        if as_json:
            print_json(numbers)
        else:
            for table in build_text_tables(compared):
                print_table(table)
        print_line(f"Report: {folder / 'report.html'}", err)
        return
    with TerminalReporter() as reporter:
        found = build_comparison(requests, reporter)
    disputed = found.find_most_disputed(images)
    samples = [found.split.load(index) for index in disputed]
    views = [[compute_image_view(run.viewer, sample) for run in found.runs] for sample in samples]
    digest = hash_comparison(found, split, [sample.image.tobytes() for sample in samples])
    folder = out or Path(find_free_name(Path(), "comparison", digest, "{}/comparison.json"))
    title = f"Images with the most disagreement, last pass of each run: {describe_all_maps(found)}"
    save_figure(draw_figure(build_comparison_rows(samples, views), title), folder / "comparison.png")
    shown, bars = build_report_images(samples, views)
    page = render_template(
        "visualize/templates/compare.html", split=split, shown=shown, bars=bars, **build_page_context(found)
    )
    write_text(folder / "report.html", page)
    numbers = {SOURCE_DIGEST_KEY: digest, **build_json_report(found, split, [sample.name for sample in samples])}
    write_json(folder / "comparison.json", numbers)
    if as_json:
        print_json(numbers)
    else:
        for table in build_comparison_tables(found):
            print_table(table)
    print_line(f"Report: {folder / 'report.html'}", err)
