"""Prediction of new images or prompts with a finished run: one row each in a table, and features of images."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from accelerate.utils import gather_object

from toast_cli.evaluation.open_run import OpenedRun, RunRequest, make_text_generator, open_run
from toast_cli.evaluation.prediction.answers import Answers, MapAnswers, ScoreAnswers, make_answers
from toast_cli.evaluation.prediction.feature_file import FeatureFile
from toast_cli.evaluation.prediction.maps import TABLE_NAME, check_map_folder, has_files, predict_maps
from toast_cli.evaluation.prediction.samples import PredictedSample, PredictionSamples, gather_predictions
from toast_cli.evaluation.prediction.scores import make_prediction_loader, predict_batches
from toast_cli.evaluation.prediction.sources import PredictionImages, open_prediction_images
from toast_cli.evaluation.prediction.table import PredictionSummary, PredictionTable
from toast_cli.evaluation.prediction.texts import BATCH_SIZE, PromptList, open_prompts, predict_texts
from toast_cli.model.recipe_data import count_workers
from toast_cli.training.distributed.collectives import call_in_first_process, raise_together
from toast_cli.training.reporter import Reporter
from toast_cli.utils.errors import ToastError, UsageError
from toast_cli.utils.hashing import hash_json
from toast_cli.utils.table_files import Cell
from toast_cli.utils.tensor_fingerprints import hash_tensors


@dataclass(frozen=True)
class PredictionRequest:
    """A request to label images or to answer prompts.

    Attributes:
        run: the run.
        sources: files, folders, patterns, tables, archives, shards and data sets.
        split: the split of data sets; None: all of them.
        top: number of likely classes of each image.
        probabilities: add a column for every class.
        batch_size: samples per forward pass, over all processes; None: that of the run's evaluation, or 8 prompts.
        workers: processes that decode images; None: that of the run.
        resume: keep the rows that the table already has.
        features: file for the pooled features of the images; None: no features.
        features_of: the pass of the features.
        generation: settings of transformers for the answers to prompts.
        raw: continue prompts as they are, without the run's template.
        seed: seed of sampled answers.
    """

    run: RunRequest
    sources: tuple[str, ...]
    split: str | None = None
    top: int = 5
    probabilities: bool = False
    batch_size: int | None = None
    workers: int | None = None
    resume: bool = False
    features: Path | None = None
    features_of: Literal["last", "first"] = "last"
    generation: Mapping[str, Any] = field(default_factory=dict)
    raw: bool = False
    seed: int = 0


@dataclass(frozen=True)
class PredictionResult:
    """What the table holds, and how many samples were read now, in how many seconds.

    Attributes:
        summary: what the table holds; without one, the images that were read now, and the broken ones.
        read: number of samples that were read now.
        seconds: how long that took.
        answers: the columns of the table; None without one.
        table: the table, if there is one.
        noun: what was predicted, `images` or `prompts`.
        vectors: number of vectors in the file of features; None without one.
    """

    summary: PredictionSummary
    read: int
    seconds: float
    answers: Answers | None
    table: PredictionTable | None
    noun: str
    vectors: int | None = None

    @property
    def kept(self) -> int:
        """The number of samples that were in the files already."""
        return self.summary.images - self.read


Batches = Callable[[Any, Mapping[str, Cell]], Iterator[dict[int, PredictedSample]]]
"""A function from the remaining samples, and the first cell of every row that the table has, to predicted batches."""


@dataclass(frozen=True)
class PredictionPass:
    """A pass over the samples: how it predicts them, and which files its rows and features belong to."""

    batches: Batches
    table: PredictionTable | None
    features: FeatureFile | None


def predict_images(request: PredictionRequest, out: Path | None, reporter: Reporter) -> PredictionResult:
    """Open a run, predict the samples of all sources, and write `out`, in the order of the sources.

    `out` is a table, or for a segmentation model the folder of its class maps and their table. It may be None if
    features are asked for. Several processes divide every batch; the first one writes, except for class maps.

    Raises:
        UsageError: a source or its split does not exist, the model predicts nothing of the kind, or `resume` is set and
            the files are of another model or have other columns.
        ToastError: the run or a source cannot be read, there are no samples, or a file cannot be written.
    """
    return write_predictions(open_run(request.run), request, out, reporter)


def write_predictions(
    run: OpenedRun, request: PredictionRequest, out: Path | None, reporter: Reporter
) -> PredictionResult:
    """Predict the samples of all sources with an opened run, and write `out`, as `predict_images` does.

    Raises:
        UsageError: as in `predict_images`.
        ToastError: as in `predict_images`.
    """
    objective = run.model.objective
    answers = None if out is None else make_answers(objective, run.classes, request.top, request.probabilities)
    table, features = make_table(run, request, answers, out), make_feature_file(run, request)
    samples = open_shared_samples(request, run)
    passes = list(list_passes(run, request, answers, table, features, samples, reporter))
    first = partial(call_in_first_process, run.accelerator)
    if features is not None:
        first(partial(features.check, request.resume))
    done: dict[str, Cell] = {}
    if table is not None:
        done = first(partial(table.begin, request.resume, make_row_check(table, samples)))
    stored: set[str] = set() if features is None else first(partial(features.begin, request.resume))
    for note in samples.notes:
        reporter.report_message(note)
    summary, began, read = PredictionSummary(len(samples.names)), time.perf_counter(), set()
    for each in passes:
        have = [set(names) for file, names in ((each.table, done), (each.features, stored)) if file is not None]
        skipped = set.intersection(*have)
        if skipped:
            file = each.table.path if each.table is not None else request.features
            reporter.report_message(f"{file}: {len(skipped):,} {get_noun(run)} are in it already")
        remaining = take_remaining(samples, skipped)
        read |= set(remaining.names)
        batches = gather_predictions(each.batches(remaining, done))
        for batch in reporter.track_samples(batches, len(remaining.names), get_noun(run)):
            if run.accelerator.is_main_process:
                append_samples(batch, each, done, stored)
            if table is None:
                summary.broken |= {str(row[0]): str(row[-1]) for row, _ in batch if row[-1] is not None}
    seconds = time.perf_counter() - began
    order = {name: place for place, name in enumerate(samples.names)}
    if table is not None and answers is not None:
        summary = first(partial(table.finish, order, answers.labels))
    vectors = None if features is None else first(partial(features.finish, order))
    return PredictionResult(summary, len(read), seconds, answers, table, get_noun(run), vectors)


def get_noun(run: OpenedRun) -> str:
    """Return what a model predicts."""
    return "prompts" if run.model.objective.target == "text" else "images"


def make_table(
    run: OpenedRun, request: PredictionRequest, answers: Answers | None, out: Path | None
) -> PredictionTable | None:
    """Return the table of the answers; None without `out`.

    Raises:
        UsageError: `out` is not the path of a table, or not a new folder for class maps.
    """
    if answers is None or out is None:
        return None
    path, settings = out, dict[str, Any]()
    if isinstance(answers, MapAnswers):
        call_in_first_process(run.accelerator, partial(check_map_folder, out, request.resume))
        path = out / TABLE_NAME
    elif run.model.objective.target == "text":
        template = getattr(run.recipe.dataset, "template", None)
        settings = {**request.generation, "raw": request.raw, "template": template, "seed": request.seed}
    return PredictionTable(path, answers.columns, compute_model_digest(run), request.run.path, settings)


def make_feature_file(run: OpenedRun, request: PredictionRequest) -> FeatureFile | None:
    """Return the file of features that is asked for.

    Raises:
        UsageError: no format has its suffix, or the model is a language model.
    """
    if request.features is None:
        return None
    if run.model.objective.target == "text":
        raise UsageError(
            "--features are those of images, and this is a language model.",
            what_to_do="Leave --features out.",
            code="task.answers-text",
        )
    width = run.model.backbone.head_width
    return FeatureFile(request.features, compute_model_digest(run), request.features_of, width, request.run.path)


def open_shared_samples(request: PredictionRequest, run: OpenedRun) -> PredictionSamples:
    """Find the images or prompts in every process, and check that all of them find the same ones.

    Raises:
        UsageError: a source does not exist, or an override is invalid.
        ToastError: a source cannot be read or has no samples, or the processes find different ones.
    """
    samples: PredictionSamples | None = None
    error = None
    open_samples: Any = open_prompts if run.model.objective.target == "text" else open_prediction_images
    try:
        samples = open_samples(request.sources, run.recipe, request.split, request.run.overrides)
    except ToastError as caught:
        error = caught
    raise_together(error)
    assert samples is not None
    digests = gather_object([samples.digest])
    unlike = [process for process, digest in enumerate(digests) if digest != digests[0]]
    if unlike:
        raise ToastError(
            f"Process {unlike[0]} of {len(digests)} finds other {get_noun(run)} than process 0.",
            what_to_do="Copy the same files to every machine, or let all processes read one folder.",
            code="data.unequal-processes",
        )
    return samples


def make_row_check(table: PredictionTable, samples: PredictionSamples) -> Callable[[Sequence[Cell]], bool]:
    """Return a function that tells whether a row of an earlier table still holds."""
    if isinstance(samples, PromptList):
        return samples.is_current
    if any(column.name == "map" for column in table.columns):
        return partial(has_files, table.path.parent)
    return lambda row: True


def list_passes(
    run: OpenedRun,
    request: PredictionRequest,
    answers: Answers | None,
    table: PredictionTable | None,
    features: FeatureFile | None,
    samples: PredictionSamples,
    reporter: Reporter,
) -> Iterator[PredictionPass]:
    """Yield the passes over the samples. Features come from the pass that predicts classes, or from one of their own.

    Raises:
        UsageError: the model is not a language model, or the batch size is smaller than the number of processes.
        ToastError: the backbone has no tokenizer.
    """
    if isinstance(samples, PromptList):
        writer = make_text_generator(run, reporter.report_message, request.raw)
        size = request.batch_size or BATCH_SIZE
        yield PredictionPass(
            lambda prompts, done: predict_texts(run, writer, prompts, size, request.generation, request.seed),
            table,
            None,
        )
        return
    if isinstance(answers, MapAnswers) and table is not None:
        maps, folder = answers, table.path.parent
        workers = count_workers(run.recipe) if request.workers is None else request.workers
        yield PredictionPass(lambda images, done: predict_maps(run, maps, images, folder, done, workers), table, None)
    scores = answers if isinstance(answers, ScoreAnswers) else None
    if scores is not None or features is not None:
        assert isinstance(samples, PredictionImages)
        make_loader = partial(make_prediction_loader, run, batch_size=request.batch_size, workers=request.workers)
        make_loader(samples)  # checks the batch size before anything is written
        chosen = None if features is None else request.features_of
        yield PredictionPass(
            lambda images, done: predict_batches(run, images, make_loader(images), scores, chosen),
            table if scores else None,
            features,
        )


def take_remaining(samples: Any, done: Collection[str]) -> Any:
    """Return the samples whose names are not in `done`."""
    if not done:
        return samples
    return samples.take([index for index, name in enumerate(samples.names) if name not in done])


def append_samples(
    batch: Sequence[PredictedSample], each: PredictionPass, done: Collection[str], stored: Collection[str]
) -> None:
    """Append a batch to the files of a pass, without what they have already.

    Raises:
        ToastError: the disk is full, or a file cannot be written.
    """
    if each.table is not None:
        each.table.append(row for row, _ in batch if row[0] not in done)
    if each.features is not None:
        each.features.append(
            (str(row[0]), vector) for row, vector in batch if vector is not None and row[0] not in stored
        )


def compute_model_digest(run: OpenedRun) -> str:
    """Return a hash of everything that decides a model's answers: weights, classes, task and image options."""
    images = run.recipe.images.model_dump(mode="json", exclude={"augment", "on_error", "cache"})
    task = run.recipe.task.model_dump(mode="json")
    return hash_json([hash_tensors(run.model.state_dict()), run.classes, task, images])
