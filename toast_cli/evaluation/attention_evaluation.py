"""Measuring where a model looks, over a split: numbers of its maps, curves, and what stronger steering does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from toast_cli.attention.bootstrap import bootstrap_mean
from toast_cli.attention.deletion_insertion import DeletionInsertionCurves, count_forward_passes
from toast_cli.attention.feedback_strength import set_feedback_strength
from toast_cli.attention.maps import HeadSelection
from toast_cli.attention.table import AttentionMetricsTable
from toast_cli.data.base import BatchLoader, ImageSplit, describe_masks, get_image_splits
from toast_cli.data.demo.mosaics import GridSplit
from toast_cli.data.subset import SplitSubset, draw_subset
from toast_cli.evaluation.evaluate_run import open_evaluation_data
from toast_cli.model.model import Model
from toast_cli.recipe.parse import replace_recipe_fields
from toast_cli.recipe.schema import Recipe
from toast_cli.steering.steering import run_one_pass
from toast_cli.storage.load_model import load_model
from toast_cli.training.distributed.devices import make_accelerator
from toast_cli.training.evaluate import report_skipped_samples
from toast_cli.training.reporter import Reporter
from toast_cli.training.session import Session
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.visualize.view import AttentionViewer

DEFAULT_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


@dataclass(frozen=True)
class AttentionEvalRequest:
    """Which run is measured, where, and how: what is None comes from the run's own recipe."""

    path: Path
    dataset: str | None = None
    data_dir: str | None = None
    split: str = "test"
    weights: str | None = None
    device: str | None = None
    precision: str | None = None
    limit: int | None = None
    layer: int = -1
    head: HeadSelection = "mean"
    alpha: float | None = None
    curve_images: int = 32


@dataclass(frozen=True)
class AttentionEvalResult:
    """What was measured: who looked, numbers of all images, curves of some, and the split's classes and names.

    `curve_names` are those of the images that the curves are of, in their order. `marks` says what stands for the
    object; None where nothing does. `skipped` are the images that could not be read: why, by split and name.
    """

    viewer: AttentionViewer
    numbers: AttentionMetricsTable
    curves: DeletionInsertionCurves | None
    kind: str
    classes: tuple[str, ...]
    names: Sequence[str]
    marks: str | None
    skipped: dict[str, dict[str, str]]
    curve_names: Sequence[str] = ()


@dataclass(frozen=True)
class StrengthSweepResult:
    """What was measured at every strength, and of whom; the images that could not be read: why, by split and name."""

    viewer: AttentionViewer
    lines: list[dict[str, Any]]
    skipped: dict[str, dict[str, str]]


def open_run(asked: AttentionEvalRequest, reporter: Reporter) -> tuple[Session, ImageSplit, int | None]:
    """The run with its data, the images asked for, and into how many cells a side they are divided if they are grids.

    Raises:
        UsageError: there is no such split, or it is made of texts or of labelled pixels.
        ToastError: the data set's classes are not the model's, or nothing can be loaded.
    """
    loaded = load_model(asked.path, asked.weights)
    recipe: Recipe = replace_recipe_fields(
        loaded.recipe,
        dataset=asked.dataset,
        data_dir=asked.data_dir,
        device=asked.device,
        precision=asked.precision,
    )
    accelerator = make_accelerator(recipe.device, recipe.precision)
    if accelerator.num_processes > 1:
        raise UsageError("Where a model looks is measured by one process.", what_to_do="Start it without a launcher.")
    data = open_evaluation_data(loaded.classes, recipe, asked.path, reporter, another=asked.dataset is not None)
    splits = get_image_splits(data, recipe.dataset.name)
    if asked.split not in splits:
        raise UsageError(f"This data set has no split '{asked.split}'.", what_to_do=f"It has {', '.join(splits)}.")
    if loaded.model.objective.dense:
        raise UsageError("This is for models that label images, and this one labels pixels.")
    whole = splits[asked.split]
    chosen = draw_subset(whole, asked.limit, recipe.seed)
    set_feedback_strength(loaded.model, asked.alpha)
    session = Session(
        recipe, replace(data, splits={asked.split: chosen}), loaded.model.to(accelerator.device), accelerator
    )
    return session, chosen, whole.options.cells if isinstance(whole, GridSplit) else None


@torch.no_grad()
def evaluate_attention(asked: AttentionEvalRequest, reporter: Reporter) -> AttentionEvalResult:
    """Measure where a run looks; curves are drawn for the first `curve_images` of the images, which the seed draws.

    Raises:
        UsageError: there is no such split, level or head.
        ToastError: a map is not what the model attends with, nothing can be loaded, or no image can be read.
    """
    session, split, cells = open_run(asked, reporter)
    model = session.model.eval()
    viewer = build_viewer(asked, session)
    recorder = viewer.recorder
    numbers = AttentionMetricsTable(cells)
    batches = session.batches(asked.split, with_masks=split.has_masks)
    reporter.message(describe_workload(asked, len(split), model))
    kind = ""
    for batch in iterate_readable_batches(batches, session, reporter, asked.split):
        with session.accelerator.autocast():
            found = recorder.look(batch["image"])
        kind = found.kind
        numbers.add(found, batch)
    skipped = report_skipped_samples(reporter, **{asked.split: batches})
    check_any_readable(numbers, asked)
    curves: DeletionInsertionCurves | None = None
    curve_names: list[str] = []
    if asked.curve_images:
        curves = DeletionInsertionCurves(model)
        few = draw_subset(select_readable_images(split, numbers), asked.curve_images, session.recipe.seed)
        part = Session(
            session.recipe, replace(session.data, splits={asked.split: few}), model, session.accelerator
        ).batches(asked.split)
        for batch in iterate_readable_batches(part, session, reporter, "deletion and insertion"):
            with session.accelerator.autocast():
                curves.add(recorder.look(batch["image"]), batch["image"])
            curve_names += [few.names[index] for index in batch["index"].tolist()]
    return AttentionEvalResult(
        viewer, numbers, curves, kind, session.data.classes, split.names, describe_masks(split), skipped, curve_names
    )


def build_viewer(asked: AttentionEvalRequest, session: Session) -> AttentionViewer:
    """The run as it is asked to look.

    Raises:
        UsageError: it has no such layer or head, when its recorder is asked for.
    """
    name, recipe = asked.path.resolve().name, session.recipe
    return AttentionViewer(
        name, session.model, recipe.images, session.data.classes, asked.layer, asked.head, recipe=recipe
    )


def iterate_readable_batches(
    batches: BatchLoader, session: Session, reporter: Reporter, what: str
) -> Iterator[dict[str, Tensor]]:
    """Batches on the device, without the black images that stand where nothing could be read."""
    for batch in reporter.track(batches, len(batches), what):
        there = batch["label"] != IGNORE_INDEX
        if there.any():
            yield send_to_device({name: value[there] for name, value in batch.items()}, session.accelerator.device)


def select_readable_images(split: ImageSplit, numbers: AttentionMetricsTable) -> ImageSplit:
    """The images of a split that could be read."""
    if len(numbers.rows) == len(split):
        return split
    return SplitSubset(split, tuple(sorted(row["index"] for row in numbers.rows)))


def check_any_readable(numbers: AttentionMetricsTable, asked: AttentionEvalRequest) -> None:
    """Refuse to tell of a split of which nothing could be read.

    Raises:
        ToastError: nothing could.
    """
    if not numbers.rows:
        raise ToastError(
            f"No image of {asked.split} could be read.", what_to_do="'toast data check' says what is wrong with each."
        )


def describe_workload(asked: AttentionEvalRequest, images: int, model: Model) -> str:
    """What is going to be done, and which part of it takes long."""
    # Three maps and a random order; where a stage has other cells than the similarity, a random order of those too.
    times = count_forward_passes(4 if model.backbone.has_attention else 5)
    few = min(asked.curve_images, images)
    curves = f"; then curves of {few:,} of them, for which each is shown up to {times} times" if few else ""
    return f"Looking at {images:,} images of {asked.split}{curves}."


@torch.no_grad()
def sweep_feedback_strength(
    asked: AttentionEvalRequest, reporter: Reporter, alphas: Sequence[float] = DEFAULT_ALPHAS
) -> StrengthSweepResult:
    """Accuracy and, with masks, the share of pass two inside the object as the signals grow from nothing to twice.

    Raises:
        UsageError: the model has no feedback path, or there is no such split.
        ToastError: without signals the model is not the plain backbone, or no image can be read.
    """
    session, split, _ = open_run(replace(asked, alpha=1.0), reporter)
    model = session.model.eval()
    viewer = build_viewer(asked, session)
    recorder = viewer.recorder
    found = {alpha: AttentionMetricsTable() for alpha in alphas}
    batches = session.batches(asked.split, with_masks=split.has_masks)
    for batch in iterate_readable_batches(batches, session, reporter, asked.split):
        with session.accelerator.autocast():
            for alpha in alphas:
                set_feedback_strength(model, alpha)
                seen = recorder.look(batch["image"])
                found[alpha].add(seen, batch)
                if alpha == 0:
                    check_zero_strength(model, batch["image"], seen.logits)
    set_feedback_strength(model, 1.0)
    skipped = report_skipped_samples(reporter, **{asked.split: batches})
    check_any_readable(found[alphas[0]], asked)
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
    return StrengthSweepResult(viewer, lines, skipped)


def check_zero_strength(model: Model, images: Tensor, logits: Tensor) -> None:
    """Without signals the second pass is the plain backbone's only one.

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
        )
