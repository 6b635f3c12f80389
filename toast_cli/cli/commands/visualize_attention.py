"""`toast visualize-attention`: pictures of where a model looks in each pass, in images or in a text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toast_cli.cli import options

if TYPE_CHECKING:
    from toast_cli.data.base import Sample
    from toast_cli.recipe.schema import Recipe
    from toast_cli.visualize.view import AttentionViewer

DEFAULT_PLAIN_BACKBONE = "vit_demo"
"""The backbone shown when there is no run and none is named."""


def visualize_attention(
    images: Annotated[list[Path] | None, typer.Argument(help="Image files, or folders of them.")] = None,
    test_image: Annotated[
        list[int] | None,
        typer.Option(help="Instead of files: this image of the (first) run's own test split; may be repeated."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="For language models, instead of images: a text.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="--prompt: give it as it is, not marked as the run was trained on.")
    ] = False,
    run: options.RunsOption = None,
    backbone: options.BackboneOption = None,
    weights: options.WeightsOption = None,
    layer: Annotated[int, typer.Option(help="Layer whose map is shown; -1 is the last.")] = -1,
    head: options.HeadOption = "mean",
    alpha: options.AlphaOption = None,
    grad_cam: Annotated[
        bool, typer.Option("--grad-cam", help="Also show Grad-CAM of both passes (pip install 'toast-cli[grad-cam]').")
    ] = False,
    format: Annotated[str, typer.Option(help="png, svg or pdf.")] = "png",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for figures, raw maps and how they were made. [default: attention/ in the run folder, or here]"
        ),
    ] = None,
    data_dir: options.DataDirOption = None,
    device: options.DeviceOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Draw image, attention in pass one, similarity to xi, attention in pass two and what changed, side by side."""
    from toast_cli.utils.errors import ToastError, UsageError, did_you_mean

    if sum(map(bool, (images, test_image, prompt))) != 1:
        raise UsageError("Name images, or --test-image N of a run's own test split, or a --prompt.")
    if run and backbone is not None:
        raise UsageError("--run and --backbone exclude each other: a run brings its own backbone.")
    if prompt is not None and grad_cam:
        raise UsageError("--grad-cam is for images.")
    if format not in ("png", "svg", "pdf"):
        raise UsageError(f"There is no format '{format}'.", what_to_do=did_you_mean(format, ("png", "svg", "pdf")))
    chosen = options.parse_head(head)

    from toast_cli.attention.feedback_strength import set_feedback_strength
    from toast_cli.cli.output.console import print_json, print_line

    viewers, recipe, folder = _load_viewers(
        run or [], backbone, weights, data_dir, device, bool(images), prompt is not None
    )
    for viewer in viewers:
        set_feedback_strength(viewer.model, alpha)
    viewers = [_configure_viewer(viewer, layer, chosen, grad_cam) for viewer in viewers]
    place = out or folder
    if prompt is not None:
        from toast_cli.cli.commands.visualize_text import show_text

        show_text(viewers, prompt, None if raw else getattr(recipe.dataset, "template", None), place, as_json)
        return
    broken: list[str] = []
    records = _draw_figures(
        viewers, _load_samples(images or [], test_image or [], recipe, viewers[0], broken), place, format
    )
    if as_json:
        print_json(records)
    else:
        for line in _format_records(records):
            print_line(line)
    if broken:
        count = f"{len(broken)} of {len(broken) + len(records)} images"
        raise ToastError(f"{count} could not be shown.", broken)


def _load_viewers(
    runs: list[Path],
    backbone: str | None,
    weights: str | None,
    data_dir: str | None,
    device: str | None,
    from_files: bool,
    texts: bool,
) -> tuple[list[AttentionViewer], Recipe, Path]:
    """Who looks, the first one's recipe, and where pictures go unless told otherwise."""
    from toast_cli.cli.find_run import resolve_run_path
    from toast_cli.cli.output.console import err, print_line
    from toast_cli.recipe.parse import replace_recipe_fields
    from toast_cli.storage.load_model import load_model
    from toast_cli.storage.run_folder import find_newest_run
    from toast_cli.training.distributed.devices import make_accelerator
    from toast_cli.training.session import build_plain_model
    from toast_cli.utils.errors import UsageError
    from toast_cli.visualize.save_figures import make_names_unique
    from toast_cli.visualize.view import AttentionViewer

    if backbone is None and (runs or find_newest_run() is not None or not (from_files or texts)):
        paths = runs or [resolve_run_path(None)]
        viewers, recipes = [], []
        names = make_names_unique(path.resolve().name for path in paths)
        for path, name in zip(paths, names, strict=True):
            loaded = load_model(path, weights)
            recipes.append(replace_recipe_fields(loaded.recipe, data_dir=data_dir, device=device))
            model = loaded.model.to(make_accelerator(recipes[-1].device, recipes[-1].precision).device)
            viewers.append(AttentionViewer(name, model, loaded.recipe.images, loaded.classes, recipe=loaded.recipe))
        inside = len(paths) == 1 and paths[0].is_dir()
        return viewers, recipes[0], paths[0] / "attention" if inside else Path("attention")
    if not (from_files or texts):
        raise UsageError("--test-image needs a run.", what_to_do="Name image files, or leave --backbone out.")
    if texts and backbone is None:
        raise UsageError("There is no run here to show a text to.", what_to_do="Name one, or a --backbone llama:<...>.")
    name = backbone or DEFAULT_PLAIN_BACKBONE
    print_line(f"There is no run{' here' if backbone is None else ''}: showing the plain backbone {name}.", err)
    model, recipe = build_plain_model(name, weights, device)
    model.to(make_accelerator(recipe.device, recipe.precision).device)
    viewer = AttentionViewer(name, model, recipe.images, None, recipe=recipe, plain=True)
    return [viewer], recipe, Path("attention")


def _configure_viewer(viewer: AttentionViewer, layer: int, head: Any, grad_cam: bool) -> AttentionViewer:
    from dataclasses import replace

    return replace(viewer, level=layer, head=head, with_grad_cam=grad_cam)


def _load_samples(
    images: list[Path], test_images: list[int], recipe: Recipe, first: AttentionViewer, broken: list[str]
) -> Any:
    """What is shown, each under the name that its files get, and read when its turn comes.

    Why an image could not be read is added to `broken`; the others are shown.
    """
    from toast_cli.data.images.folder_scan import list_images
    from toast_cli.evaluation.evaluate_run import check_classes
    from toast_cli.model.batches import open_data
    from toast_cli.utils.errors import UsageError
    from toast_cli.visualize.save_figures import make_names_unique
    from toast_cli.visualize.view import load_image_sample, load_test_sample

    if test_images:
        data = open_data(recipe)
        if first.classes:  # its classes name the labels
            check_classes(first.classes, data.classes, Path(first.name))
        found = ((f"test-{index}", partial(load_test_sample, data, index)) for index in test_images)
        yield from _read_or_skip(found, broken)
        return
    files = []
    for path in images:
        below = sorted(list_images(path)) if path.is_dir() else [path]
        if not below:
            raise UsageError(f"There is no image below {path}.")
        files += below
    names = make_names_unique(file.stem for file in files)
    yield from _read_or_skip(zip(names, (partial(load_image_sample, file) for file in files), strict=True), broken)


def _read_or_skip(found: Iterable[tuple[str, Callable[[], Sample]]], broken: list[str]) -> Iterator[tuple[str, Sample]]:
    """Those that can be read; of the others, what is wrong is added to `broken`."""
    from toast_cli.utils.errors import ToastError, UsageError

    for name, read in found:
        try:
            sample = read()
        except UsageError:  # asked for wrongly: nothing is broken
            raise
        except ToastError as error:
            broken.append(" ".join(part for part in (error.what, error.why) if part))
            continue
        yield name, sample


def _draw_figures(
    viewers: list[AttentionViewer], samples: Iterable[tuple[str, Sample]], folder: Path, format: str
) -> list[dict[str, Any]]:
    from toast_cli.visualize.save_figures import save_attention_figure, save_comparison_figure

    if len(viewers) > 1:
        return save_comparison_figure(viewers, samples, folder, format)
    (viewer,) = viewers
    return [save_attention_figure(viewer, sample, folder, name, format) for name, sample in samples]


def _format_records(records: list[dict[str, Any]]) -> list[str]:
    """What a terminal shows of the records."""
    lines = [f"Figure: {figure}" for figure in dict.fromkeys(record["figure"] for record in records)]
    for record in records:
        for view in record["views"]:
            who = " ".join(
                filter(None, [record["image"] * (len(records) > 1), view["name"] * (len(record["views"]) > 1)])
            )
            lines += [f"{who}: {line}" if who else line for line in _format_view(view)]
    if any(view["share_inside"] for record in records for view in record["views"]) and len(records) == 1:
        lines.append("One image says little; 'toast eval' gives the mean over a split.")
    return lines


def _format_view(view: dict[str, Any]) -> list[str]:
    lines = []
    first, last = view["pass_one"], view["pass_two"]
    if first is not None:
        lines.append("Prediction: " + "; ".join(
            f"{said['prediction']} ({said['confidence']:.1%}){word}"
            for said, word in ((first, " in pass one" if last else ""), (last, " in pass two"))
            if said is not None
        ))  # fmt: skip
    lines += [f"Pixels {name}: {covered}" for name, covered in view["segments"].items()]
    inside = view["share_inside"]
    if inside:
        passes = f" in pass one, {inside['pass_two']:.1%} in pass two" if "pass_two" in inside else ""
        kind = view["kind"][0].upper() + view["kind"][1:]
        even = f" (an even map: {inside['even']:.1%})"
        lines.append(f"{kind} on the object: {inside['pass_one']:.1%}{passes}{even}")
    return lines
