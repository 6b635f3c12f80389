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
    style: Annotated[
        str | None,
        typer.Option(
            help="Style of the figure. simple: the picture, where the model looks without and with TOAST, and one "
            "sentence. full: every map of one run. paper: images as rows and runs as columns. [default: simple; paper "
            "for several runs; full with --grad-cam or for a model that labels pixels]"
        ),
    ] = None,
    class_name: Annotated[
        str | None,
        typer.Option(
            "--class",
            metavar="NAME",
            help="Class, label or number to explain: its probability and sentence, Grad-CAM and integrated gradients. "
            "[default: the most likely class or label, or the first number]",
        ),
    ] = None,
    grad_cam: Annotated[
        bool,
        typer.Option("--grad-cam", help='Also draw Grad-CAM of both passes (needs: pip install "grad-cam>=1.5.5").'),
    ] = False,
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Draw these explanations side by side, with deletion and insertion scores: any of attention, rollout, "
            "grad-cam and integrated-gradients, with commas between, or all.",
        ),
    ] = None,
    animate: Annotated[
        bool,
        typer.Option(
            "--animate", help="Write a GIF of one image that raises the strength of TOAST from 0 to 1, or to --alpha."
        ),
    ] = False,
    ignore_registers: Annotated[
        bool,
        typer.Option(
            "--ignore-registers",
            help="Draw attention without register tokens, rescaled to sum to 1. Saved maps and numbers keep them.",
        ),
    ] = False,
    per_image: Annotated[
        bool,
        typer.Option(
            "--per-image", help="Write a figure, maps and a record of each image, instead of one sheet of all images."
        ),
    ] = False,
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
    """Draw where a model looks, without and with TOAST.

    One image is drawn as a figure of its own, several images as one contact sheet with a page.
    """
    from toast_cli.utils.errors import ToastError, UsageError, did_you_mean

    if sum(map(bool, (images, test_image, prompt))) != 1:
        raise UsageError("Expected exactly one of image files, --test-image and --prompt.", code="cli.choose-one")
    if run and backbone is not None:
        raise UsageError(
            "--run and --backbone cannot be combined: a run has its own backbone.", code="cli.conflicting-options"
        )
    of_images = {
        "--style": style is not None, "--class": class_name is not None, "--grad-cam": grad_cam,
        "--explain": explain is not None, "--animate": animate, "--ignore-registers": ignore_registers,
        "--per-image": per_image, "--point": point is not None, "--box": box is not None,
    }  # fmt: skip
    refuse_together("--prompt", prompt is not None, of_images)
    refuse_together("--explain", explain is not None, {"--animate": animate, "--style": style is not None})
    refuse_together("--animate", animate, {"--style": style is not None, "--format": format != "png"})
    refuse_together("--ignore-registers", ignore_registers, {"--explain": explain is not None, "--animate": animate})
    refuse_together(
        "--point and --box",
        point is not None or box is not None,
        {"--explain": explain is not None, "--animate": animate},
    )
    refuse_together("--per-image", per_image, {"--explain": explain is not None, "--animate": animate})
    if format not in FIGURE_FORMATS:
        raise UsageError(
            f"Invalid value for --format: '{format}'.",
            what_to_do=did_you_mean(format, FIGURE_FORMATS),
            code="cli.invalid-value",
        )
    chosen = options.parse_head(head)
    pointed = options.parse_box(point, box)

    from toast_cli.utils.lazy_imports import collect_garbage_less_often

    collect_garbage_less_often()

    from toast_cli.cli.commands.visualize_images import (
        ImageRequest,
        draw_images,
        load_files,
        load_test_samples,
        load_viewers,
        require_class,
    )
    from toast_cli.evaluation.open_run import set_feedback_strength

    viewers, first, folder = load_viewers(
        run or [], backbone, weights, data_dir, device, bool(images), prompt is not None
    )
    for viewer in viewers:
        set_feedback_strength(viewer.model, alpha)
    if class_name is not None:
        require_class(viewers, class_name)
    viewers = [
        replace(viewer, level=layer, head=chosen, with_grad_cam=grad_cam, label=class_name, box=pointed)
        for viewer in viewers
    ]
    place = out or folder
    if prompt is not None:
        from toast_cli.cli.commands.visualize_text import show_text

        show_text(viewers, prompt, raw, place, as_json)
        return
    viewers = [replace(viewer, with_registers=True, ignore_registers=ignore_registers) for viewer in viewers]
    if test_image:
        assert first is not None  # load_viewers rejects --test-image without a run
        samples = load_test_samples(first, test_image)
    else:
        samples = load_files(images or [], viewers[0].images.white)
    request = ImageRequest(viewers, samples, place, format, style, explain, animate, per_image, alpha)
    broken = draw_images(request, as_json)
    if broken:
        raise ToastError(f"Could not draw {len(broken)} of {len(samples)} images.", broken, code="image.unreadable")


def refuse_together(option: str, given: bool, others: dict[str, bool]) -> None:
    """Check that an option is not combined with others.

    Raises:
        UsageError: both are given.
    """
    from toast_cli.utils.errors import UsageError

    for other, also in others.items():
        if given and also:
            raise UsageError(f"{option} cannot be combined with {other}.", code="cli.conflicting-options")
