"""`toast visualize-attention` for images: load models and images, draw figures, and format the summary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from toast_cli.cli.find_run import resolve_run_path
from toast_cli.cli.output.console import err, print_line
from toast_cli.data.base import Sample
from toast_cli.data.images.folder_scan import list_images
from toast_cli.evaluation.attention_evaluation import build_viewer
from toast_cli.evaluation.open_run import OpenedRun, RunRequest, open_run, open_run_data
from toast_cli.storage.run_folder import find_newest_run
from toast_cli.training.data.run_data import describe_changed_split
from toast_cli.training.distributed.devices import make_accelerator
from toast_cli.training.reporter import Reporter
from toast_cli.training.session import build_plain_model
from toast_cli.utils.errors import ToastError, UsageError, did_you_mean
from toast_cli.utils.names import make_names_unique, to_file_name
from toast_cli.visualize.save_figures import save_attention_figure, save_comparison_figure
from toast_cli.visualize.view import AttentionViewer, load_image_sample, load_test_sample

DEFAULT_PLAIN_BACKBONE = "vit_demo"
"""Backbone to visualize if there is no run and no --backbone."""


def load_viewers(
    runs: list[Path],
    backbone: str | None,
    weights: str | None,
    data_dir: str | None,
    device: str | None,
    from_files: bool,
    texts: bool,
) -> tuple[list[AttentionViewer], OpenedRun | None, Path]:
    """Return the viewers, the first run (None for a plain backbone), and the default output folder.

    Raises:
        UsageError: A run is needed and there is none.
    """
    if backbone is None and (runs or find_newest_run() is not None or not (from_files or texts)):
        paths = runs or [resolve_run_path(None)]
        names = make_names_unique(path.resolve().name for path in paths)
        opened = [open_run(RunRequest(path, None, data_dir, weights=weights, device=device)) for path in paths]
        viewers = [build_viewer(each, name) for each, name in zip(opened, names, strict=True)]
        inside = len(paths) == 1 and paths[0].is_dir()
        return viewers, opened[0], paths[0] / "attention" if inside else Path("attention")
    if not (from_files or texts):
        raise UsageError(
            "--test-image needs a run, not a plain backbone.",
            what_to_do="Pass image files, or remove --backbone.",
            code="run.none-found",
        )
    if texts and backbone is None:
        raise UsageError(
            "--prompt needs a run or a backbone, and there is no run here.",
            what_to_do="Pass --run or --backbone lm:MODEL.",
            code="run.none-found",
        )
    name = backbone or DEFAULT_PLAIN_BACKBONE
    print_line(f"{'No run found. ' if backbone is None else ''}Using the plain backbone {name}.", err)
    model, recipe = build_plain_model(name, weights, device)
    model = model.to(make_accelerator(recipe.device, recipe.precision).device)
    return [AttentionViewer(name, model, recipe.images, None, recipe=recipe, plain=True)], None, Path("attention")


NamedLoader = tuple[str, Callable[[], Sample]]
"""An output name, and a function that loads the image."""


def load_test_samples(run: OpenedRun, indices: list[int]) -> list[NamedLoader]:
    """Return an output name and a load function for every test image."""
    data = open_run_data(run, Reporter())
    if (changed := describe_changed_split(run.request.path, "test", data)) is not None:
        print_line(f"{changed} An index may mean another image than in the run.", err)
    return [(f"test-{index}", partial(load_test_sample, data, index)) for index in indices]


def load_files(images: list[Path], white: int | None = None) -> list[NamedLoader]:
    """Return an output name and a load function for every image file. Folders are searched recursively.

    Raises:
        UsageError: A folder contains no image.
    """
    files = []
    for path in images:
        below = sorted(list_images(path)) if path.is_dir() else [path]
        if not below:
            raise UsageError(f"No images found in {path}.", code="data.no-images")
        files += below
    names = make_names_unique(to_file_name(file.stem) for file in files)
    return list(zip(names, (partial(load_image_sample, file, white) for file in files), strict=True))


def announce_figures(images: int, viewers: int, folder: Path, format: str) -> None:
    """Print how many files will be written, if there are several images."""
    if images > 1:
        figures = 1 if viewers > 1 else images
        files = f"{figures + 2 * images:,} files in {folder}"
        print_line(
            f"Writing {files}: {figures:,} {format} {'figure' if figures == 1 else 'figures'}, and the maps "
            f"(safetensors) and a record (json) of each of {images:,} images.",
            err,
        )


def read_or_skip(found: Iterable[NamedLoader], broken: list[str]) -> Iterator[tuple[str, Sample]]:
    """Yield the samples that can be read. The errors of the others are appended to `broken`."""
    for name, read in found:
        try:
            sample = read()
        except UsageError:  # invalid request, not a broken file
            raise
        except ToastError as error:
            broken.append(" ".join(part for part in (error.what, error.why) if part))
            continue
        yield name, sample


def draw_figures(
    viewers: list[AttentionViewer], samples: Iterable[tuple[str, Sample]], folder: Path, format: str
) -> list[dict[str, Any]]:
    """Draw one figure per image for a single viewer, or one figure of all images for several viewers.

    Returns:
        A record per image.
    """
    if len(viewers) > 1:
        return save_comparison_figure(viewers, samples, folder, format)
    (viewer,) = viewers
    return [save_attention_figure(viewer, sample, folder, name, format) for name, sample in samples]


def format_records(records: list[dict[str, Any]]) -> list[str]:
    """Return the lines to print for the records."""
    lines = [f"Figure: {figure}" for figure in dict.fromkeys(record["figure"] for record in records)]
    for record in records:
        for view in record["views"]:
            who = " ".join(
                filter(None, [record["image"] * (len(records) > 1), view["name"] * (len(record["views"]) > 1)])
            )
            lines += [f"{who}: {line}" if who else line for line in _format_view(view)]
    if any(view["share_inside"] for record in records for view in record["views"]) and len(records) == 1:
        lines.append("A single image is anecdotal; run 'toast eval' for the mean over a split.")
    return lines


def _format_score(prediction: dict[str, Any]) -> str:
    """Format the probability of a class, or the value of a number."""
    return f"{prediction['value']:.4g}" if "value" in prediction else f"{prediction['confidence']:.1%}"


def require_label(viewers: list[AttentionViewer], label: str) -> None:
    """Check that every model answers a class, label or number of this name.

    Raises:
        UsageError: A model does not, or labels pixels.
    """
    for viewer in viewers:
        if viewer.classes is None or label not in viewer.classes or viewer.model.objective.dense:
            known = () if viewer.model.objective.dense else viewer.classes or ()
            raise UsageError(
                f"{viewer.name} answers no class, label or number '{label}' of a whole image.",
                what_to_do=did_you_mean(label, known) if known else "Leave --label out.",
                code="cli.invalid-value",
            )


def _format_view(view: dict[str, Any]) -> list[str]:
    lines = []
    first, last = view["pass_one"], view["pass_two"]
    if first is not None:
        lines.append("Prediction: " + "; ".join(
            f"{each['prediction']} ({_format_score(each)}){where}"
            for each, where in ((first, " in pass one" if last else ""), (last, " in pass two"))
            if each is not None
        ))  # fmt: skip
    lines += [f"Pixels {name}: {covered}" for name, covered in view["segments"].items()]
    inside = view["share_inside"]
    if inside:
        passes = f" in pass one, {inside['pass_two']:.1%} in pass two" if "pass_two" in inside else ""
        kind = view["kind"][0].upper() + view["kind"][1:]
        even = f" (an even map: {inside['even']:.1%})"
        lines.append(f"{kind} on the object: {inside['pass_one']:.1%}{passes}{even}")
    return lines
