"""`toast visualize-attention`: draw the attention of each pass over images or a text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from toast_cli.cli import options

FIGURE_FORMATS = ("png", "svg", "pdf")


def visualize_attention(
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="IMAGE", help="Image files, or folders of images.")
    ] = None,
    test_image: Annotated[
        list[int] | None,
        typer.Option(help="Use this image of the test split instead of a file, by index from 0. Can be repeated."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Text to visualize, for language models.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="With --prompt: use the text as it is, without the prompt template.")
    ] = False,
    run: options.RunsOption = None,
    backbone: options.BackboneOption = None,
    weights: options.WeightsOption = None,
    layer: Annotated[int, typer.Option(help="Layer whose attention is shown; -1 is the last one.")] = -1,
    head: options.HeadOption = "mean",
    alpha: options.AlphaOption = None,
    grad_cam: Annotated[
        bool,
        typer.Option("--grad-cam", help='Also draw Grad-CAM of both passes (needs: pip install "grad-cam>=1.5.5").'),
    ] = False,
    label: Annotated[
        str | None,
        typer.Option(
            help="Class, label or number whose Grad-CAM and probability are shown. [default: the most likely class or "
            "label, or the first number]"
        ),
    ] = None,
    point: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y",
            help="Experiment: set xi to what lies at this pixel of the image, and show where pass two looks then.",
        ),
    ] = None,
    box: Annotated[
        str | None, typer.Option(metavar="X,Y,WIDTH,HEIGHT", help="As --point, for all that lies in a rectangle.")
    ] = None,
    format: Annotated[str, typer.Option(help="Figure format: png, svg or pdf.")] = "png",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Output folder for figures, maps and metadata. [default: attention/, in the run folder if possible]"
        ),
    ] = None,
    data_dir: options.DataDirOption = None,
    device: options.DeviceOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Draw the attention maps of both passes.

    Each figure shows the image, the attention in pass one, the similarity to xi, the attention in pass two, and the
    difference between the passes.
    """
    from toast_cli.utils.errors import ToastError, UsageError, did_you_mean

    if sum(map(bool, (images, test_image, prompt))) != 1:
        raise UsageError("Expected exactly one of image files, --test-image and --prompt.", code="cli.choose-one")
    if run and backbone is not None:
        raise UsageError(
            "--run and --backbone cannot be combined: a run has its own backbone.", code="cli.conflicting-options"
        )
    if prompt is not None and grad_cam:
        raise UsageError(
            "--grad-cam needs images and cannot be combined with --prompt.", code="cli.conflicting-options"
        )
    if prompt is not None and label is not None:
        raise UsageError("--label needs images and cannot be combined with --prompt.", code="cli.conflicting-options")
    if prompt is not None and (point is not None or box is not None):
        raise UsageError(
            "--point and --box need images and cannot be combined with --prompt.", code="cli.conflicting-options"
        )
    if format not in FIGURE_FORMATS:
        raise UsageError(
            f"Invalid value for --format: '{format}'.",
            what_to_do=did_you_mean(format, FIGURE_FORMATS),
            code="cli.invalid-value",
        )
    chosen = options.parse_head(head)
    pointed = options.parse_box(point, box)

    from toast_cli.cli.commands.visualize_images import (
        announce_figures,
        draw_figures,
        format_records,
        load_files,
        load_test_samples,
        load_viewers,
        read_or_skip,
        require_label,
    )
    from toast_cli.cli.output.console import print_json, print_line
    from toast_cli.cli.output.progress import TerminalReporter
    from toast_cli.evaluation.open_run import set_feedback_strength

    viewers, first, folder = load_viewers(
        run or [], backbone, weights, data_dir, device, bool(images), prompt is not None
    )
    for viewer in viewers:
        set_feedback_strength(viewer.model, alpha)
    if label is not None:
        require_label(viewers, label)
    viewers = [
        replace(viewer, level=layer, head=chosen, with_grad_cam=grad_cam, label=label, box=pointed)
        for viewer in viewers
    ]
    place = out or folder
    if prompt is not None:
        from toast_cli.cli.commands.visualize_text import show_text

        show_text(viewers, prompt, raw, place, as_json)
        return
    broken: list[str] = []
    if test_image:
        assert first is not None  # load_viewers rejects --test-image without a run
        samples = load_test_samples(first, test_image)
    else:
        samples = load_files(images or [], viewers[0].images.white)
    announce_figures(len(samples), len(viewers), place, format)
    with TerminalReporter() as reporter:
        tracked = reporter.track_progress(samples, len(samples), "images")
        records = draw_figures(viewers, read_or_skip(tracked, broken), place, format)
    if as_json:
        print_json(records)
    else:
        for line in format_records(records):
            print_line(line)
    if broken:
        count = f"{len(broken)} of {len(broken) + len(records)} images"
        raise ToastError(f"Could not draw {count}.", broken, code="image.unreadable")
