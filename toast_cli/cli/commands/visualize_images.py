"""`toast visualize-attention` for images: load models and images, draw figures, and format the summary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from toast_cli.cli.find_run import resolve_run_path
from toast_cli.cli.output.console import err, print_json, print_line
from toast_cli.cli.output.progress import TerminalReporter
from toast_cli.data.base import Sample
from toast_cli.data.images.folder_scan import list_images
from toast_cli.evaluation.attention_evaluation import build_viewer
from toast_cli.evaluation.open_run import OpenedRun, RunRequest, open_run, open_run_data
from toast_cli.storage.load_model import build_plain_model
from toast_cli.storage.run_folder import find_newest_run
from toast_cli.training.data.run_data import describe_changed_split
from toast_cli.training.distributed.devices import make_accelerator
from toast_cli.training.reporter import Reporter
from toast_cli.utils.errors import ToastError, UsageError, did_you_mean
from toast_cli.utils.names import make_names_unique, to_file_name
from toast_cli.visualize.save_figures import save_attention_figure, save_comparison_figure
from toast_cli.visualize.styles.registry import choose_style
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


MAX_LISTED_IMAGES = 20
"""Largest number of images whose results are printed."""
MAX_ROWS = 100
"""Largest number of images in a figure with a row for each; an image file has at most 65,535 rows of pixels."""
SHEET_STYLES = (None, "simple")
"""Values of --style with which several images become a contact sheet and a page."""


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


@dataclass(frozen=True)
class ImageRequest:
    """A request to draw images: by whom, which, where, and how.

    `style` is None for the default one, `explain` a list of explanations with commas, and `largest` the strength at
    which an animation ends; None for 1.
    """

    viewers: list[AttentionViewer]
    samples: list[NamedLoader]
    folder: Path
    format: str
    style: str | None = None
    explain: str | None = None
    animate: bool = False
    per_image: bool = False
    largest: float | None = None

    def list_files(self) -> str:
        """Return the number and the kinds of files that will be written for several images."""
        images = len(self.samples)
        if self.explain is not None:
            return f"3 files in {self.folder}: one {self.format} figure, its maps (safetensors) and a record (json)"
        if self.makes_sheet:
            return (
                f"4 files in {self.folder}: one {self.format} contact sheet and one page (html) of {images:,} images, "
                "their maps (safetensors) and records (json)"
            )
        figures = images if self.per_image else 1
        return (
            f"{figures + 2 * images:,} files in {self.folder}: {figures:,} {self.format} "
            f"{'figure' if figures == 1 else 'figures'}, and the maps (safetensors) and a record (json) of each of "
            f"{images:,} images"
        )

    @property
    def makes_sheet(self) -> bool:
        """Whether all images are drawn on one contact sheet with a page."""
        several = len(self.samples) > 1 and not self.per_image
        return several and len(self.viewers) == 1 and not self.viewers[0].with_grad_cam and self.style in SHEET_STYLES


def draw_images(request: ImageRequest, as_json: bool) -> list[str]:
    """Draw the images of a request, print the records, and return the errors of images that cannot be read.

    Raises:
        UsageError: the options do not fit the models or the images.
    """
    check_image_count(request)
    broken: list[str] = []
    if len(request.samples) > 1:
        print_line(f"Writing {request.list_files()}.", err)
    with TerminalReporter() as reporter:
        tracked = reporter.track_progress(request.samples, len(request.samples), "images")
        records = draw_figures(request, read_or_skip(tracked, broken))
    if as_json:
        print_json(records)
    else:
        for line in format_records(records):
            print_line(line)
    return broken


def check_image_count(request: ImageRequest) -> None:
    """Check that the options fit the number of runs and images.

    Raises:
        UsageError: several runs or images, where one is shown; or more rows than a figure can have.
    """
    option = "--animate" if request.animate else "--explain" if request.explain is not None else None
    if option is not None and len(request.viewers) > 1:
        raise UsageError(f"{option} shows one run.", what_to_do="Pass one --run.", code="cli.conflicting-options")
    images = len(request.samples)
    if request.animate and images > 1:
        raise UsageError(
            "--animate shows one image.", what_to_do="Pass one image file.", code="cli.conflicting-options"
        )
    if not (request.makes_sheet or request.per_image) and images > MAX_ROWS:
        raise UsageError(
            f"A figure has a row for each image, and {images:,} images are too many: at most {MAX_ROWS}.",
            what_to_do="Pass fewer images, or --per-image for a figure of each.",
            code="cli.too-many-images",
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


def draw_figures(request: ImageRequest, samples: Iterable[tuple[str, Sample]]) -> list[dict[str, Any]]:
    """Draw a figure per image, or one of all images for several viewers, explanations or a sheet.

    Returns:
        A record per image.
    """
    viewers, folder, format = request.viewers, request.folder, request.format
    if request.explain is not None:
        from toast_cli.attention.explanations.registry import find_explanations
        from toast_cli.visualize.images.explanation_figure import save_explanation_figure

        return save_explanation_figure(viewers[0], find_explanations(request.explain), samples, folder, format)
    if request.animate:
        from toast_cli.visualize.images.animation import save_animation_record

        largest = 1.0 if request.largest is None else request.largest
        return [save_animation_record(viewers[0], sample, folder, name, largest) for name, sample in samples]
    style = choose_style(request.style, viewers)
    if request.makes_sheet:
        from toast_cli.visualize.images.sheet import save_image_sheet

        return save_image_sheet(viewers[0], samples, folder, format)
    mark = "" if style is choose_style(None, viewers) else f"-{style.name}"
    one_figure = len(request.samples) > 1 and not request.per_image
    if len(viewers) == 1 and not one_figure:
        return [save_attention_figure(viewers[0], each, folder, name + mark, format, style) for name, each in samples]
    groups = [samples] if one_figure else ([named] for named in samples)
    return [
        record for group in groups for record in save_comparison_figure(viewers, group, folder, format, style, mark)
    ]


def format_records(records: list[dict[str, Any]]) -> list[str]:
    """Return the lines to print for the records."""
    lines = []
    for key, what in (("figure", "Figure"), ("page", "Page"), ("animation", "Animation")):
        lines += [f"{what}: {path}" for path in dict.fromkeys(record[key] for record in records if key in record)]
    for record in records[:MAX_LISTED_IMAGES]:
        for view in record["views"]:
            who = " ".join(
                filter(None, [record["image"] * (len(records) > 1), view["name"] * (len(record["views"]) > 1)])
            )
            lines += [f"{who}: {line}" if who else line for line in _format_view(view)]
        lines += [f"{name}: {_format_scores(scores)}" for name, scores in record.get("scores", {}).items()]
        if "random" in record:
            lines.append(f"patches in random order: {_format_scores(record['random'])}")
    if len(records) > MAX_LISTED_IMAGES:
        lines.append(f"The first {MAX_LISTED_IMAGES} of {len(records):,} images; --json has all.")
    lines += _format_registers(records)
    if any(view["share_inside"] for record in records for view in record["views"]) and len(records) == 1:
        lines.append("A single image is anecdotal; run 'toast eval' for the mean over a split.")
    return lines


def _format_registers(records: list[dict[str, Any]]) -> list[str]:
    """Return a line on the register tokens of the first run's images, if there are any."""
    found = [record["views"][0].get("registers") for record in records]
    held = [each["share"] for each in found if each is not None and each["cells"]]
    if not held:
        return []
    share = sum(each.get("pass_two", each["pass_one"]) for each in held) / len(held)
    where = "" if len(records) == 1 else f" in {len(held):,} of {len(records):,} images"
    return [
        f"Register tokens{where}, marked ×, hold {share:.0%} of the attention. They are the backbone's own; "
        "--ignore-registers draws the rest."
    ]


def _format_score(prediction: dict[str, Any]) -> str:
    """Format the probability of a class, or the value of a number."""
    return f"{prediction['value']:.4g}" if "value" in prediction else f"{prediction['confidence']:.1%}"


def _format_scores(scores: dict[str, float]) -> str:
    return ", ".join(f"{kind} {value:.3f}" for kind, value in scores.items())


def require_class(viewers: list[AttentionViewer], label: str) -> None:
    """Check that every model answers a class, label or number of this name.

    Raises:
        UsageError: A model does not, or labels pixels.
    """
    for viewer in viewers:
        if viewer.classes is None or label not in viewer.classes or viewer.model.objective.dense:
            known = () if viewer.model.objective.dense else viewer.classes or ()
            raise UsageError(
                f"{viewer.name} answers no class, label or number '{label}' of a whole image.",
                what_to_do=did_you_mean(label, known) if known else "Leave --class out.",
                code="cli.invalid-value",
            )


def _format_view(view: dict[str, Any]) -> list[str]:
    lines = []
    first, last = view["pass_one"], view["pass_two"]
    if first is not None:
        lines.append("Prediction: " + "; ".join(
            f"{each['prediction']} ({_format_score(each)}){where}"
            for each, where in ((first, " without TOAST" if last else ""), (last, " with TOAST"))
            if each is not None
        ))  # fmt: skip
    lines += [f"Pixels {name}: {covered}" for name, covered in view["segments"].items()]
    inside = view["share_inside"]
    if inside:
        passes = f" without TOAST, {inside['pass_two']:.1%} with TOAST" if "pass_two" in inside else ""
        kind = view["kind"][0].upper() + view["kind"][1:]
        even = f" (an even map: {inside['even']:.1%})"
        lines.append(f"{kind} on the object: {inside['pass_one']:.1%}{passes}{even}")
    return lines
