"""Prediction of new images with a finished run: one row per image in a table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from toast_cli.data.base import BatchOptions
from toast_cli.data.images.loader import ImageLoader
from toast_cli.evaluation.open_run import OpenedRun, RunRequest, open_run
from toast_cli.evaluation.prediction_answers import Answers, make_answers
from toast_cli.evaluation.prediction_sources import PredictionImages, open_prediction_images
from toast_cli.evaluation.prediction_table import PredictionSummary, PredictionTable
from toast_cli.model.recipe_data import build_batches
from toast_cli.recipe.parse import replace_recipe_fields
from toast_cli.training.distributed.collectives import call_in_first_process, raise_together
from toast_cli.training.reporter import Reporter
from toast_cli.utils.constants import IGNORE_INDEX
from toast_cli.utils.errors import ToastError
from toast_cli.utils.hashing import hash_json
from toast_cli.utils.table_files import Row
from toast_cli.utils.tensor_fingerprints import hash_tensors


@dataclass(frozen=True)
class PredictionRequest:
    """A request to label images.

    Attributes:
        run: the run.
        sources: files, folders, patterns, tables, archives, shards and data sets.
        split: the split of data sets; None: all of them.
        top: number of likely classes of each image.
        probabilities: add a column for every class.
        batch_size: images per forward pass, over all processes; None: that of the run's evaluation.
        workers: processes that decode images; None: that of the run.
        resume: keep the rows that the table already has.
    """

    run: RunRequest
    sources: tuple[str, ...]
    split: str | None = None
    top: int = 5
    probabilities: bool = False
    batch_size: int | None = None
    workers: int | None = None
    resume: bool = False


@dataclass(frozen=True)
class PredictionResult:
    """What the table holds, and how many of its images were read now, in how many seconds."""

    summary: PredictionSummary
    read: int
    seconds: float
    answers: Answers
    table: PredictionTable


def predict_images(request: PredictionRequest, out: Path, reporter: Reporter) -> PredictionResult:
    """Open a run, label the images of all sources, and write the table `out`, in the order of the sources.

    Several processes divide every batch; the first one writes.

    Raises:
        UsageError: a source or its split does not exist, the model does not label images, or `resume` is set and the
            table is of another model or has other columns.
        ToastError: the run or a source cannot be read, there are no images, or the table cannot be written.
    """
    return write_predictions(open_run(request.run), request, out, reporter)


def write_predictions(run: OpenedRun, request: PredictionRequest, out: Path, reporter: Reporter) -> PredictionResult:
    """Label the images of all sources with an opened run, and write the table, as `predict_images` does.

    Raises:
        UsageError: as in `predict_images`.
        ToastError: as in `predict_images`.
    """
    answers = make_answers(run.model.objective, run.classes, request.top, request.probabilities)
    images = open_shared_images(request, run)
    table = PredictionTable(out, answers.columns, compute_model_digest(run), request.run.path)
    loader = make_prediction_loader(request, run, images)
    done = call_in_first_process(run.accelerator, partial(table.begin, request.resume))
    for note in images.notes:
        reporter.report_message(note)
    if done:
        reporter.report_message(f"{out}: {len(done):,} images are in the table already")
    remaining = images
    if done:
        remaining = images.take([i for i, name in enumerate(images.names) if name not in done])
        loader = make_prediction_loader(request, run, remaining)
    began = time.perf_counter()
    for rows in reporter.track_samples(predict_rows(run, answers, remaining, loader), len(remaining), "images"):
        if run.accelerator.is_main_process:
            table.append(rows)
    seconds = time.perf_counter() - began
    order = {name: place for place, name in enumerate(images.names)}
    summary = call_in_first_process(run.accelerator, partial(table.finish, order, answers.labels))
    return PredictionResult(summary, len(remaining), seconds, answers, table)


def open_shared_images(request: PredictionRequest, run: OpenedRun) -> PredictionImages:
    """Find the images in every process, and check that all of them find the same ones.

    Raises:
        UsageError: a source does not exist.
        ToastError: a source cannot be read or has no images, or the processes find different images.
    """
    images, error = None, None
    try:
        images = open_prediction_images(request.sources, run.recipe, request.split)
    except ToastError as caught:
        error = caught
    raise_together(error)
    assert images is not None
    digests = gather_object([images.digest])
    unlike = [process for process, digest in enumerate(digests) if digest != digests[0]]
    if unlike:
        raise ToastError(
            f"Process {unlike[0]} of {len(digests)} finds other images than process 0.",
            what_to_do="Copy the same images to every machine, or let all processes read one folder.",
            code="data.unequal-processes",
        )
    return images


def compute_model_digest(run: OpenedRun) -> str:
    """Return a hash of everything that decides a model's answers: weights, classes, task and image options."""
    images = run.recipe.images.model_dump(mode="json", exclude={"augment", "on_error", "cache"})
    task = run.recipe.task.model_dump(mode="json")
    return hash_json([hash_tensors(run.model.state_dict()), run.classes, task, images])


def make_prediction_loader(request: PredictionRequest, run: OpenedRun, images: PredictionImages) -> ImageLoader:
    """Return the loader of an evaluation, which skips unreadable images.

    Raises:
        UsageError: the batch size is smaller than the number of processes.
    """
    training, options = run.recipe.training, run.recipe.images
    size = request.batch_size or training.eval_batch_size or training.batch_size
    workers = training.workers if request.workers is None else request.workers
    recipe = replace_recipe_fields(
        run.recipe,
        training={**training.model_dump(mode="json"), "workers": workers},
        images={**options.model_dump(mode="json"), "on_error": "skip", "cache": False},
    )
    process, processes = run.accelerator.process_index, run.accelerator.num_processes
    batches = BatchOptions(size, process=process, processes=processes)
    loader = build_batches(images, recipe, run.model.backbone, batches)
    assert isinstance(loader, ImageLoader)
    return loader


@torch.no_grad()
def predict_rows(
    run: OpenedRun, answers: Answers, images: PredictionImages, loader: ImageLoader
) -> Iterator[list[Row]]:
    """Yield the rows of every batch, of all processes, in the order of the images. This is a collective call."""
    model, objective = run.model.eval(), run.model.objective
    nothing = [None] * len(answers.columns)
    for indices, batch in zip(loader.batch_sampler, loader, strict=True):
        tensors: dict[str, Any] = {
            name: tensor.to(run.accelerator.device, non_blocking=True) for name, tensor in batch.items()
        }
        with run.accelerator.autocast():
            scores = objective.compute_scores(objective.predict(model, tensors)).cpu()
        cells = answers.format_cells(scores)
        rows: dict[int, Row] = {
            index: (images.names[index], *each, None)
            for index, label, each in zip(batch["index"].tolist(), batch["label"].tolist(), cells, strict=True)
            if label != IGNORE_INDEX
        }
        for index in indices:
            if (reason := loader.skipped.pop(images.names[index], None)) is not None:
                rows[index] = (images.names[index], *nothing, reason)
        for others in gather_object([rows]):
            rows |= others
        yield [rows[index] for index in sorted(rows)]
