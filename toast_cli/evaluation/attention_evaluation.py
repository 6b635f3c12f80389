"""Evaluation of attention over a split: metrics of the maps, deletion and insertion curves, feedback strength."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from toast_cli.attention.deletion_insertion import DeletionInsertionCurves, count_forward_passes
from toast_cli.attention.maps import HeadSelection
from toast_cli.attention.table import AttentionMetricsTable
from toast_cli.data.base import BatchLoader, ImageSplit, get_image_splits
from toast_cli.data.demo.mosaics import GridSplit
from toast_cli.data.subset import SplitSubset, draw_subset
from toast_cli.evaluation.open_run import OpenedRun, RunRequest, open_run, open_session, set_feedback_strength
from toast_cli.model.model import Model
from toast_cli.steering.steering import run_one_pass
from toast_cli.training.reporter import Reporter
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.statistics import bootstrap_mean, estimate_proportion
from toast_cli.visualize.view import AttentionViewer

if TYPE_CHECKING:
    from toast_cli.training.session import Session

DEFAULT_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


@dataclass(frozen=True)
class AttentionEvalRequest(RunRequest):
    """A request to evaluate the attention of a run.

    `limit` is the number of images (None: all), and `curve_images` the number of those with curves.
    """

    limit: int | None = None
    layer: int = -1
    head: HeadSelection = "mean"
    curve_images: int = 32


@dataclass(frozen=True)
class AttentionRun:
    """A run in evaluation mode, with its images as the session's only split.

    `grid_cells` is the number of cells per side if the images are grids of photographs, else None.
    """

    request: AttentionEvalRequest
    viewer: AttentionViewer
    session: Session
    split: ImageSplit
    grid_cells: int | None

    def make_loader(self) -> BatchLoader:
        """Return a loader of the images, with masks if there are any."""
        return self.session.make_loader(self.request.split, with_masks=self.split.has_masks)


@dataclass(frozen=True)
class AttentionEvalResult:
    """The attention metrics of a run: `numbers` of all images, and curves of the images in `curve_names`.

    `skipped` holds the reason for each image that could not be read, by split and name.
    """

    run: AttentionRun
    numbers: AttentionMetricsTable
    curves: DeletionInsertionCurves | None
    kind: str
    skipped: dict[str, dict[str, str]]
    curve_names: Sequence[str] = ()


@dataclass(frozen=True)
class StrengthSweepResult:
    """The metrics at every feedback strength; `skipped` holds the reason for each unreadable image."""

    viewer: AttentionViewer
    lines: list[dict[str, Any]]
    skipped: dict[str, dict[str, str]]


def open_attention_run(
    request: AttentionEvalRequest, reporter: Reporter, name: str | None = None, seed: int | None = None
) -> AttentionRun:
    """Open a run with the images of a request.

    Args:
        request: the run, its data and the number of images.
        reporter: receives a message if the classes of the data had to be reordered.
        name: the name of the run in figures and records; None for the name of its folder.
        seed: the seed that draws images with a `limit`; None for the run's own seed.

    Raises:
        UsageError: the split does not exist, or does not hold images with class labels.
        ToastError: the classes of the data set differ from the model's, or the run or its data cannot be loaded.
    """
    run = open_run(request)
    if run.accelerator.num_processes > 1:
        raise UsageError(
            "Attention is evaluated in a single process.",
            what_to_do="Start it without a launcher.",
            code="attention.several-processes",
        )
    session = open_session(run, reporter)
    all_images = get_image_splits(session.data, run.recipe.dataset.name)[request.split]
    if run.model.objective.dense:
        raise UsageError(
            "Attention evaluation needs a model that classifies images, and this one labels pixels.",
            code="attention.unsupported-task",
        )
    split = draw_subset(all_images, request.limit, run.recipe.seed if seed is None else seed)
    session.data = replace(session.data, splits={request.split: split})
    viewer = replace(build_viewer(run, name or request.path.resolve().name), level=request.layer, head=request.head)
    cells = all_images.options.cells if isinstance(all_images, GridSplit) else None
    return AttentionRun(request, viewer, session, split, cells)


def build_viewer(run: OpenedRun, name: str) -> AttentionViewer:
    """Return the viewer of a run's model; `name` is its name in figures and records."""
    return AttentionViewer(name, run.model.eval(), run.recipe.images, run.classes, recipe=run.recipe)


@torch.no_grad()
def evaluate_attention(request: AttentionEvalRequest, reporter: Reporter) -> AttentionEvalResult:
    """Evaluate the attention of a run; the seed draws the `curve_images` images for the curves.

    Raises:
        UsageError: the split, level or head does not exist.
        ToastError: a map differs from the model's attention, the run cannot be loaded, or no image can be read.
    """
    from toast_cli.training.evaluate import report_skipped_samples  # imports all of training; pictures need none of it

    run = open_attention_run(request, reporter)
    session, split, recorder = run.session, run.split, run.viewer.recorder
    objective = session.model.objective
    if objective.target == "number" and request.curve_images:
        raise UsageError(
            "Deletion and insertion curves follow the probability of a class, and this model predicts numbers.",
            what_to_do="Use --curve-images 0.",
            code="attention.unsupported-task",
        )
    numbers = AttentionMetricsTable(run.grid_cells, build_registered_metrics(session), objective)
    batches = run.make_loader()
    reporter.report_message(describe_workload(request, len(split), session.model))
    kind = ""
    for batch in iterate_readable_batches(batches, session, reporter, request.split):
        with session.accelerator.autocast():
            output = recorder.record(batch["image"])
        kind = output.kind
        numbers.add(output, batch)
    skipped = report_skipped_samples(reporter, session.data, **{request.split: batches})
    check_any_readable(numbers, request)
    curves: DeletionInsertionCurves | None = None
    curve_names: list[str] = []
    if request.curve_images:
        curves = DeletionInsertionCurves(session.model, compute_scores=objective.compute_scores)
        few = draw_subset(select_readable_images(split, numbers), request.curve_images, session.recipe.seed)
        part = replace(session, data=replace(session.data, splits={request.split: few})).make_loader(request.split)
        for batch in iterate_readable_batches(part, session, reporter, "deletion and insertion"):
            with session.accelerator.autocast():
                curves.add(recorder.record(batch["image"]), batch["image"])
            curve_names += [few.names[index] for index in batch["index"].tolist()]
    return AttentionEvalResult(run, numbers, curves, kind, skipped, curve_names)


def build_registered_metrics(session: Session) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Return the registered metrics of attention maps by name."""
    return {
        name: metric.build(session.data.classes)
        for name, metric in session.recipe.plugins.metrics.items()
        if metric.needs == "attention"
    }


def iterate_readable_batches(
    batches: BatchLoader, session: Session, reporter: Reporter, what: str
) -> Iterator[dict[str, Tensor]]:
    """Yield batches on the device, without the black images that replace unreadable ones."""
    for batch in reporter.track_progress(batches, len(batches), what):
        label = batch["label"]
        readable = ~label.isnan().any(-1) if label.is_floating_point() else label != IGNORE_INDEX
        if readable.any():
            yield send_to_device({name: value[readable] for name, value in batch.items()}, session.accelerator.device)


def select_readable_images(split: ImageSplit, numbers: AttentionMetricsTable) -> ImageSplit:
    """Return the images of a split that could be read."""
    if len(numbers.rows) == len(split):
        return split
    return SplitSubset(split, tuple(sorted(row["index"] for row in numbers.rows)))


def check_any_readable(numbers: AttentionMetricsTable, request: AttentionEvalRequest) -> None:
    """Check that at least one image could be read.

    Raises:
        ToastError: no image could be read.
    """
    if not numbers.rows:
        raise ToastError(
            f"No image of {request.split} could be read.",
            what_to_do="Run 'toast data check' to see what is wrong with each.",
            code="data.no-readable-image",
        )


def describe_workload(request: AttentionEvalRequest, images: int, model: Model) -> str:
    """Return a message about the work ahead, with the number of forward passes of the slow part."""
    # Three maps and a random order, and another random order if the similarity has other cells than the maps.
    times = count_forward_passes(4 if model.backbone.has_attention else 5)
    few = min(request.curve_images, images)
    curves = f"; then curves of {few:,} of them, with up to {times} forward passes each" if few else ""
    return f"Evaluating attention on {images:,} images of {request.split}{curves}."


@torch.no_grad()
def sweep_feedback_strength(
    request: AttentionEvalRequest, reporter: Reporter, alphas: Sequence[float] = DEFAULT_ALPHAS
) -> StrengthSweepResult:
    """Measure accuracy and, with masks, the share of pass two inside the object at each feedback strength.

    Raises:
        UsageError: the model has no feedback path, or the split does not exist.
        ToastError: with strength 0 the model differs from the plain backbone, or no image can be read.
    """
    from toast_cli.training.evaluate import report_skipped_samples

    run = open_attention_run(request, reporter)
    session, model, recorder = run.session, run.session.model, run.viewer.recorder
    if model.adapted.steering is None:
        raise UsageError(
            "--sweep varies the strength of the feedback, and this model has no feedback path.",
            what_to_do="Leave --sweep out.",
            code="method.no-feedback-path",
        )
    if not model.objective.measure.percent:
        raise UsageError(
            "--sweep draws shares, and this model predicts numbers.",
            what_to_do="Use --alpha to evaluate one strength of the feedback.",
            code="attention.unsupported-task",
        )
    measure = model.objective.measure.name
    tables = {alpha: AttentionMetricsTable(objective=model.objective) for alpha in alphas}
    batches = run.make_loader()
    for batch in iterate_readable_batches(batches, session, reporter, request.split):
        with session.accelerator.autocast():
            for alpha in alphas:
                set_feedback_strength(model, alpha)
                output = recorder.record(batch["image"])
                tables[alpha].add(output, batch)
                if alpha == 0:
                    check_zero_strength(model, batch["image"], output.logits)
    set_feedback_strength(model, 1.0)
    skipped = report_skipped_samples(reporter, session.data, **{request.split: batches})
    check_any_readable(tables[alphas[0]], request)
    lines = []
    for alpha, numbers in tables.items():
        measured: dict[str, Any] = {"alpha": alpha}
        for name, column in (
            ("accuracy" if measure == "correct" else measure, measure),
            ("share_inside", "pass_two/share_inside"),
            ("shift", "passes/shift"),
        ):
            if column in numbers.rows[0]:
                estimate = estimate_proportion if column == "correct" else bootstrap_mean
                mean = estimate(numbers.get_values(column))
                if mean is not None:
                    measured[name] = asdict(mean)
        lines.append(measured)
    return StrengthSweepResult(run.viewer, lines, skipped)


def check_zero_strength(model: Model, images: Tensor, logits: Tensor) -> None:
    """Check that with strength 0 the second pass gives the logits of the plain backbone.

    Raises:
        ToastError: the logits differ.
    """
    plain = model.compute_outputs(run_one_pass(model.backbone, images).last.pooled)
    difference = float((plain - logits).abs().amax())
    if not difference <= 1e-3 * float(plain.abs().amax()):
        raise ToastError(
            "With feedback strength 0, this model differs from the plain backbone.",
            f"Logits differ by up to {difference:.3g}.",
            "Please report this with the name of the model.",
            code="attention.not-the-plain-backbone",
        )
