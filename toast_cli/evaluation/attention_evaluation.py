"""Measuring where a model looks, over a split: numbers of its maps, curves, and what stronger steering does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

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
from toast_cli.training.evaluate import report_skipped_samples
from toast_cli.training.reporter import Reporter
from toast_cli.training.session import Session
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.statistics import bootstrap_mean
from toast_cli.visualize.view import AttentionViewer

DEFAULT_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


@dataclass(frozen=True)
class AttentionEvalRequest(RunRequest):
    """Which run's maps are measured, on how many images, and how; curves are drawn for `curve_images` of them."""

    limit: int | None = None
    layer: int = -1
    head: HeadSelection = "mean"
    curve_images: int = 32


@dataclass(frozen=True)
class AttentionRun:
    """A run in evaluation mode with the images to measure it on, which are the session's only split.

    `grid_cells` is the number of cells a side where images are grids of photographs, else None.
    """

    request: AttentionEvalRequest
    viewer: AttentionViewer
    session: Session
    split: ImageSplit
    grid_cells: int | None

    def batches(self) -> BatchLoader:
        """Return the images in batches, with their masks where there are any."""
        return self.session.batches(self.request.split, with_masks=self.split.has_masks)


@dataclass(frozen=True)
class AttentionEvalResult:
    """What was measured of a run: numbers of all images, and curves of some, whose names are `curve_names`.

    `skipped` says why an image could not be read, by split and name.
    """

    run: AttentionRun
    numbers: AttentionMetricsTable
    curves: DeletionInsertionCurves | None
    kind: str
    skipped: dict[str, dict[str, str]]
    curve_names: Sequence[str] = ()


@dataclass(frozen=True)
class StrengthSweepResult:
    """What was measured at every strength, and of which viewer; `skipped` says why images could not be read."""

    viewer: AttentionViewer
    lines: list[dict[str, Any]]
    skipped: dict[str, dict[str, str]]


def open_attention_run(
    request: AttentionEvalRequest, reporter: Reporter, name: str | None = None, seed: int | None = None
) -> AttentionRun:
    """Open a run with the images that a request asks for.

    Args:
        request: the run, its data and how many images.
        reporter: told if the data's classes had to be put in order.
        name: what figures and records call the run; None for the name of its folder.
        seed: draws the images where only some are asked for; None for the run's own seed.

    Raises:
        UsageError: there is no such split, or it is made of texts or of labelled pixels.
        ToastError: the data set's classes are not the model's, or nothing can be loaded.
    """
    run = open_run(request)
    if run.accelerator.num_processes > 1:
        raise UsageError(
            "Where a model looks is measured by one process.",
            what_to_do="Start it without a launcher.",
            code="attention.several-processes",
        )
    session = open_session(run, reporter)
    all_images = get_image_splits(session.data, run.recipe.dataset.name)[request.split]
    if run.model.objective.dense:
        raise UsageError(
            "This is for models that label images, and this one labels pixels.", code="attention.unsupported-task"
        )
    split = draw_subset(all_images, request.limit, run.recipe.seed if seed is None else seed)
    session.data = replace(session.data, splits={request.split: split})
    viewer = replace(build_viewer(run, name or request.path.resolve().name), level=request.layer, head=request.head)
    cells = all_images.options.cells if isinstance(all_images, GridSplit) else None
    return AttentionRun(request, viewer, session, split, cells)


def build_viewer(run: OpenedRun, name: str) -> AttentionViewer:
    """Return the viewer of a run's model, as figures and records are to name it."""
    return AttentionViewer(name, run.model.eval(), run.recipe.images, run.classes, recipe=run.recipe)


@torch.no_grad()
def evaluate_attention(request: AttentionEvalRequest, reporter: Reporter) -> AttentionEvalResult:
    """Measure where a run looks; curves are drawn for the first `curve_images` of the images, which the seed draws.

    Raises:
        UsageError: there is no such split, level or head.
        ToastError: a map is not what the model attends with, nothing can be loaded, or no image can be read.
    """
    run = open_attention_run(request, reporter)
    session, split, recorder = run.session, run.split, run.viewer.recorder
    numbers, batches = AttentionMetricsTable(run.grid_cells), run.batches()
    reporter.message(describe_workload(request, len(split), session.model))
    kind = ""
    for batch in iterate_readable_batches(batches, session, reporter, request.split):
        with session.accelerator.autocast():
            output = recorder.record(batch["image"])
        kind = output.kind
        numbers.add(output, batch)
    skipped = report_skipped_samples(reporter, **{request.split: batches})
    check_any_readable(numbers, request)
    curves: DeletionInsertionCurves | None = None
    curve_names: list[str] = []
    if request.curve_images:
        curves = DeletionInsertionCurves(session.model)
        few = draw_subset(select_readable_images(split, numbers), request.curve_images, session.recipe.seed)
        part = replace(session, data=replace(session.data, splits={request.split: few})).batches(request.split)
        for batch in iterate_readable_batches(part, session, reporter, "deletion and insertion"):
            with session.accelerator.autocast():
                curves.add(recorder.record(batch["image"]), batch["image"])
            curve_names += [few.names[index] for index in batch["index"].tolist()]
    return AttentionEvalResult(run, numbers, curves, kind, skipped, curve_names)


def iterate_readable_batches(
    batches: BatchLoader, session: Session, reporter: Reporter, what: str
) -> Iterator[dict[str, Tensor]]:
    """Yield batches on the device, without the black images that stand where nothing could be read."""
    for batch in reporter.track(batches, len(batches), what):
        readable = batch["label"] != IGNORE_INDEX
        if readable.any():
            yield send_to_device({name: value[readable] for name, value in batch.items()}, session.accelerator.device)


def select_readable_images(split: ImageSplit, numbers: AttentionMetricsTable) -> ImageSplit:
    """Return the images of a split that could be read."""
    if len(numbers.rows) == len(split):
        return split
    return SplitSubset(split, tuple(sorted(row["index"] for row in numbers.rows)))


def check_any_readable(numbers: AttentionMetricsTable, request: AttentionEvalRequest) -> None:
    """Refuse a split of which no image could be read.

    Raises:
        ToastError: none could.
    """
    if not numbers.rows:
        raise ToastError(
            f"No image of {request.split} could be read.",
            what_to_do="'toast data check' says what is wrong with each.",
            code="data.no-readable-image",
        )


def describe_workload(request: AttentionEvalRequest, images: int, model: Model) -> str:
    """Say what is going to be done, and which part of it takes long."""
    # Three maps and a random order; where a stage has other cells than the similarity, a random order of those too.
    times = count_forward_passes(4 if model.backbone.has_attention else 5)
    few = min(request.curve_images, images)
    curves = f"; then curves of {few:,} of them, for which each is shown up to {times} times" if few else ""
    return f"Looking at {images:,} images of {request.split}{curves}."


@torch.no_grad()
def sweep_feedback_strength(
    request: AttentionEvalRequest, reporter: Reporter, alphas: Sequence[float] = DEFAULT_ALPHAS
) -> StrengthSweepResult:
    """Measure accuracy and, with masks, the share of pass two inside the object at every strength of the feedback.

    Raises:
        UsageError: the model has no feedback path, or there is no such split.
        ToastError: without signals the model is not the plain backbone, or no image can be read.
    """
    run = open_attention_run(replace(request, alpha=1.0), reporter)
    session, model, recorder = run.session, run.session.model, run.viewer.recorder
    found = {alpha: AttentionMetricsTable() for alpha in alphas}
    batches = run.batches()
    for batch in iterate_readable_batches(batches, session, reporter, request.split):
        with session.accelerator.autocast():
            for alpha in alphas:
                set_feedback_strength(model, alpha)
                output = recorder.record(batch["image"])
                found[alpha].add(output, batch)
                if alpha == 0:
                    check_zero_strength(model, batch["image"], output.logits)
    set_feedback_strength(model, 1.0)
    skipped = report_skipped_samples(reporter, **{request.split: batches})
    check_any_readable(found[alphas[0]], request)
    lines = []
    for alpha, numbers in found.items():
        measured: dict[str, Any] = {"alpha": alpha}
        for name, column in (
            ("accuracy", "correct"),
            ("share_inside", "pass_two/share_inside"),
            ("shift", "passes/shift"),
        ):
            if column in numbers.rows[0]:
                mean = bootstrap_mean(numbers.column(column))
                if mean is not None:
                    measured[name] = asdict(mean)
        lines.append(measured)
    return StrengthSweepResult(run.viewer, lines, skipped)


def check_zero_strength(model: Model, images: Tensor, logits: Tensor) -> None:
    """Check that without signals the second pass is the plain backbone's only one.

    Raises:
        ToastError: it is not.
    """
    plain = model.outputs(run_one_pass(model.backbone, images).last.pooled)
    difference = float((plain - logits).abs().amax())
    if not difference <= 1e-3 * float(plain.abs().amax()):
        raise ToastError(
            "With steering strength 0 this model is not the plain backbone.",
            f"Logits differ by up to {difference:.3g}.",
            "Please report which model it is.",
            code="attention.not-the-plain-backbone",
        )
